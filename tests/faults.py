"""Faults that tests inject, and the table of what came of them: ``build/bench/faults.md``.

``CIFARLIB_FAULTS`` is how often faults are repeated (2), ``CIFARLIB_FAULT_SEED`` the seed of the
random moments (a new one each time; it is printed). Where ``CIFARLIB_FAULT_LOG`` names a file, each
kind of fault leaves a line of JSON in it. As a program, ``faults.py LOG FOLDER`` makes the table
from such lines, and ``faults.py sweep …`` is the command line with a log of the epochs it trains.
"""

import contextlib
import datetime
import itertools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from cifarlib import cli
from cifarlib.config import run_id
from cifarlib.runs import executors, provenance, worker
from cifarlib.runs.store import write_atomically

REPETITIONS = int(os.environ.get("CIFARLIB_FAULTS") or 2)
SEED = int(os.environ.get("CIFARLIB_FAULT_SEED") or secrets.randbelow(1_000_000))
LONG = REPETITIONS > 2

# ---------------------------------------------------------------------------------------------
# What came of them
# ---------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """One kind of fault: how often it was tried and survived, and what it cost."""

    kind: str
    tried: int = 0
    survived: int = 0
    epochs_lost: list[int] = field(default_factory=list)  # for each kill and run it cut off
    note: str = ""  # what else a reader of the table should know

    def __post_init__(self) -> None:
        self.random = random.Random(f"{SEED} {self.kind}")

    @contextlib.contextmanager
    def attempt(self, times: int = 1) -> Iterator[None]:
        """The fault happens in the block; it is survived if nothing there fails."""
        self.tried += times
        yield
        self.survived += times

    def row(self) -> dict[str, Any]:
        """As a line of the log."""
        return {
            "kind": self.kind,
            "tried": self.tried,
            "survived": self.survived,
            "epochs_lost_max": max(self.epochs_lost, default=None),
            "epochs_lost": sum(self.epochs_lost) if self.epochs_lost else None,
            "seed": SEED,
            "note": self.note,
        }


@contextlib.contextmanager
def open_fault(kind: str, note: str = "") -> Iterator[Fault]:
    """A kind of fault, whose row is logged at the end of the block whatever happens there."""
    fault = Fault(kind, note=note)
    print(f"{kind}: CIFARLIB_FAULT_SEED={SEED} CIFARLIB_FAULTS={REPETITIONS}")
    try:
        yield fault
    finally:
        if log := os.environ.get("CIFARLIB_FAULT_LOG"):
            with Path(log).open("a", encoding="utf-8") as file:
                file.write(json.dumps(fault.row()) + "\n")


def write_table(log: Path, folder: Path) -> list[Path]:
    """``faults.json`` and ``faults.md`` in a folder from the lines of a log; the two paths."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    finished = datetime.datetime.fromtimestamp(log.stat().st_mtime, datetime.UTC)
    content = {
        "repetitions": REPETITIONS,
        "date": finished.isoformat(timespec="seconds"),
        "machine": {"processor": provenance.processor(), "cores": os.cpu_count()},
        "versions": provenance.versions(),
        "faults": rows,
    }
    written = [folder / "faults.json", folder / "faults.md"]
    raw = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(written[0], raw.encode())
    write_atomically(written[1], _markdown(content).encode())
    return written


def _markdown(content: dict[str, Any]) -> str:
    machine = content["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    lines = [
        "# Faults injected, and what came of them",
        "",
        f"Made by `make faults` on {content['date']}: {machine['processor']}, {machine['cores']} "
        f"cores; {versions}. Asked for were "
        f"{content['repetitions']} kills of each kind (`FAULTS={content['repetitions']}`).",
        "",
        "A fault is survived if the same command then finishes, every record is valid and, where "
        "runs were trained, each `result` has the bits of one that was never disturbed. A damaged "
        "file (cut, a bit turned over, emptied, garbage, another's content) is survived if it is "
        "never read as good, but made again or named, without a traceback. Lost is an epoch that "
        "had to be trained again: per kill and run, at most, and in total. The moments are random, "
        "from the seed. Build folders have spaces and letters beyond ASCII in their names; killed "
        "sweeps have a `TMPDIR` longer than the name of a socket may be.",
        "",
        "| Fault | Tried | Survived | Epochs lost, at most | Epochs lost | Seed | Note |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    keys = ("kind", "tried", "survived", "epochs_lost_max", "epochs_lost", "seed", "note")
    for row in content["faults"]:
        cells = ("–" if row[key] is None else str(row[key]).replace("|", "\\|") for key in keys)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------
# Processes to be killed
# ---------------------------------------------------------------------------------------------

EPOCHS = "epochs.log"  # in the build folder: a line for each epoch that is begun


def serve_counting(connections: Any, folder: Path, settings: worker.Settings) -> None:
    """A worker that notes every epoch it begins."""
    from cifarlib import training

    train_epoch = training.Run.train_epoch

    def counted(run: Any, epoch: int, *rest: Any) -> float:
        with (folder / EPOCHS).open("a") as log:
            log.write(f"{run_id(run.config)} {epoch}\n")
        return train_epoch(run, epoch, *rest)

    training.Run.train_epoch = counted
    worker.serve(connections, folder, settings)


def read_epochs(folder: Path) -> dict[str, list[int]]:
    """The epochs that were begun of each run, in order."""
    begun: dict[str, list[int]] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / EPOCHS).read_text().splitlines():
            name, epoch = line.split()
            begun.setdefault(name, []).append(int(epoch))
    return begun


def epochs_lost(begun: list[int]) -> list[int]:
    """What each interruption of a run cost, from the epochs it began: 1, 2, 2, 3 lost one."""
    return [
        before - after + 1 for before, after in itertools.pairwise(begun) if after != before + 1
    ]


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A counting sweep as a program in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, "sweep", "--out", str(folder), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | environment,
    )


def worker_processes(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The living workers of a sweep."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("spawn_main" in word for word in child.cmdline()):
                    found.append(child)
    return found


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a sweep with all its workers at once, as a machine that loses its power would."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class InlineExecutor(executors.Executor):
    """Does jobs one after the other in this process: no worker has to start."""

    share = 1

    def choose_workers(self, workers: Any, threads: Any) -> tuple[int, int]:
        self.jobs: list[worker.Job] = []
        return 1, 1

    def hand_out(self) -> None:
        if not self.jobs and (job := self.budget.choose(self.waiting)):
            self.jobs.append(job)

    def running(self) -> list[worker.Job]:
        return self.jobs

    def listen(self) -> None:
        messages: list[worker.Message] = []
        job, connection = self.jobs[0], SimpleNamespace(send=messages.append)
        settings = worker.Settings("cpu", 1, self.checkpoint_every, self.budget.last_border)
        worker.run_job(job, self.store, connection, settings)
        for message in messages:
            if self.hear(job, message):
                self.jobs.remove(job)

    def stop(self) -> None:
        """Nothing."""


if __name__ == "__main__":
    if sys.argv[1] == "sweep":
        from faults import serve_counting as serve  # by a name that workers can import

        executors.serve = serve
        sys.exit(cli.main(sys.argv[1:]))
    for path in write_table(Path(sys.argv[1]), Path(sys.argv[2])):
        print(path)
