"""The sweep: every missing record once, whatever is killed, damaged or done twice."""

import contextlib
import io
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from conftest import (
    DEADLINE,
    DIES,
    DIES_ONCE,
    GOOD,
    HANGS,
    HEARD,
    LACKS_DATA,
    MEETS_ANOTHER,
    RAISES,
    SEES_ANOTHER_DIE,
    SET_TINY,
    STARVES_ONCE,
    make_data_record,
    make_network_record,
    make_provenance,
    make_record,
    serve_made_up,
    tiny_conditions,
    tiny_store,
    wait_for,
)
from faults import InlineExecutor

from cifarlib import cli, data
from cifarlib.config import DATASETS
from cifarlib.data import Images
from cifarlib.errors import CifarlibError
from cifarlib.runs import (
    checkpoints,
    describe,
    executors,
    inputs,
    locks,
    provenance,
    sweep,
    verify,
    worker,
)
from cifarlib.runs.budget import BORDER, Budget
from cifarlib.runs.executors import LANES, Outcome
from cifarlib.runs.progress import Prices, parse_budget
from cifarlib.runs.provenance import of_this_process
from cifarlib.runs.store import RecordStore
from cifarlib.runs.worker import SAFETY, Checkpointer, OutOfTimeError, RunJob, Settings
from cifarlib.study import Condition, expand, load_scale, load_study

EMPTY = dict.fromkeys(checkpoints.PARTS) | {"provenance": make_provenance().model_dump()}
"""A checkpoint's state, without content."""


def run_sweep(conditions, store, **settings) -> tuple[executors.Outcome, list[str]]:
    """A sweep on the CPU with one thread a worker: its outcome, and the lines it said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        outcome = sweep.sweep(conditions, store, device="cpu", threads=1, **settings)
    return outcome, said.getvalue().splitlines()


def results(store, conditions) -> list:
    """What the configurations decided, in order; every record must be there and valid."""
    return [store.read_run(c.run_id).result for c in conditions]


pytestmark = pytest.mark.usefixtures("forked")

# ---------------------------------------------------------------------------------------------
# Real runs
# ---------------------------------------------------------------------------------------------

SHORT, *LONG = NAMES = ("stage1-base/1", "stage1-long/9", "stage1-long/13")


@pytest.fixture(scope="module")
def conditions():
    return tiny_conditions(*NAMES)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, conditions, fork_server):
    """A build folder after a sweep by two workers; two stages share a run. And what was said."""
    store = tiny_store(tmp_path_factory.mktemp("swept"))
    shared = replace(conditions[0], stage="another-stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors, "multiprocessing", fork_server)
        outcome, said = run_sweep([*conditions, shared], store, workers=2)
    assert outcome == executors.Outcome(done=3)
    return store, said


@pytest.fixture
def copy(swept, tmp_path):
    """The swept folder, to be spoilt."""
    shutil.copytree(swept[0].folder, tmp_path / "copy")
    return RecordStore(tmp_path / "copy")


def test_every_run_is_recorded_once(swept, conditions):
    """Also the one that two stages share."""
    store, said = swept
    for condition in conditions:
        record = store.read_run(condition.run_id)
        assert record.config == condition.config
        assert record.result.history.epochs == condition.config.epochs
        assert (record.provenance.resumed, record.provenance.threads) == (0, 1)
    assert store.run_ids() == sorted(c.run_id for c in conditions)
    assert list(store.state.iterdir()) == []  # no lock, no checkpoint
    assert said[0].startswith("0 of 3 runs are recorded; 3 to go, workers: 2, about ")
    ended = [line.split("]")[0] for line in said if line.startswith("[")]
    assert ended == ["[1/3", "[2/3", "[3/3"]


def test_a_second_sweep_only_removes_what_a_dead_worker_left(copy, conditions, monkeypatch):
    monkeypatch.setattr(sweep, "LocalExecutor", None)
    before = {path: path.stat().st_mtime_ns for path in copy.runs.rglob("*")}
    for ending in ("pt", "error.txt", "lock"):
        (copy.state / f"{conditions[0].run_id}.{ending}").write_text("left")
    outcome, said = run_sweep(conditions, copy)
    assert (outcome, said) == (executors.Outcome(), ["nothing is missing"])
    assert {path: path.stat().st_mtime_ns for path in copy.runs.rglob("*")} == before
    assert list(copy.state.iterdir()) == []


@pytest.mark.usefixtures("inline")
def test_what_is_damaged_is_set_aside_and_made_again(swept, copy, conditions, caplog):
    """A cut-off record, a record gone beside a damaged checkpoint, and a killed write's rest."""
    cut, gone = conditions[0], conditions[1]
    copy.run_path(cut.run_id).write_bytes(copy.run_path(cut.run_id).read_bytes()[:1000])
    copy.run_path(gone.run_id).unlink()
    (copy.state / f"{gone.run_id}.pt").write_bytes(b"PK\3\4 half a checkpoint")
    (copy.state / f".{gone.run_id}.pt.abc").write_bytes(b"a tenth of one")
    (copy.state / f"{gone.run_id}.lock").write_bytes(b"")
    outcome, said = run_sweep(conditions, copy, workers=1)
    assert outcome == executors.Outcome(done=2)
    assert results(copy, conditions) == results(swept[0], conditions)
    aside = copy.folder / "damaged"
    assert {path.name for path in aside.iterdir()} == {
        f"{cut.run_id}.json",
        f"{cut.run_id}.json.reason.txt",
        f"{gone.run_id}.pt",
        f"{gone.run_id}.pt.reason.txt",
    }
    assert "truncated" in (aside / f"{cut.run_id}.json.reason.txt").read_text()
    assert "truncated" in caplog.text
    assert "to be made again" in caplog.text
    notes = [line for line in said if "checkpoint" in line]
    assert len(notes) == 1
    assert notes[0].startswith(f"{gone.name}: the checkpoint is damaged and was set aside as ")
    assert notes[0].endswith("training from the start")
    assert list(copy.state.iterdir()) == []


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (EMPTY | {"run_id": "another"}, "it is of another run, another"),
        ({"model": {}}, "it lacks best, optimizer, provenance, resumed, seconds"),
    ],
)
def test_a_whole_checkpoint_that_does_not_fit_is_not_taken_up(tmp_path, state, reason):
    store, path, notes = tiny_store(tmp_path), tmp_path / "state" / "0123456789abcdef.pt", []
    begin(path, 2)
    assert checkpoints.read_checkpoint(path, store, notes.append)["model"] is None
    begin(path, 2, state)
    assert checkpoints.read_checkpoint(path, store, notes.append) is None
    assert (tmp_path / "damaged" / f"{path.name}.reason.txt").read_text() == f"{reason}\n"
    assert "training from the start" in notes[0]


@pytest.mark.parametrize("kind", ["data", "network"])
def test_run_job_describes_once_where_two_sweeps_want_it(tmp_path, monkeypatch, kind):
    """While another makes it: busy. Once it is there: nothing to do. Leftovers go."""
    store, made, said = RecordStore(tmp_path), [], queue.SimpleQueue()
    connection = SimpleNamespace(send=said.put)
    if kind == "data":
        job, path = worker.DescribeJob("data", "synthetic"), store.data_path("synthetic")
        record = make_data_record("synthetic")
        monkeypatch.setattr(describe, "describe_dataset", lambda name: made.append(name) or record)
    else:
        job, path, record = worker.DescribeJob("network"), store.network_path, make_network_record()
        monkeypatch.setattr(describe, "describe_network", lambda: made.append("it") or record)

    def run_job() -> str:
        worker.run_job(job, store, connection, Settings("cpu", 1, None))
        return said.get_nowait().kind

    with locks.lock(store.state / f"{path.stem}.lock"):
        assert (run_job(), made) == ("busy", [])
    path.parent.mkdir()
    leftover = path.with_name(f".{path.name}.abc")
    leftover.write_text("half a description")
    assert (run_job(), len(made)) == ("done", 1)
    assert (run_job(), len(made)) == ("done", 1)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("inline")
def test_missing_and_damaged_imagenet_weights_leave_runs_pending_and_train_the_others(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("CIFARLIB_WEIGHTS", str(tmp_path))
    (tmp_path / "resnet18-f37072fd.pth").write_bytes(b"cut off")
    store = tiny_store(tmp_path / "build")
    recorded, other = tiny_conditions("stage3/1")[0], tiny_conditions(SHORT)[0]
    store.write(make_record(recorded))
    arguments = ["sweep", "--stage", "stage3", "--run", SHORT, "--out", str(store.folder)]
    assert cli.main([*arguments, *SET_TINY, "--device", "cpu"]) == 0
    said = capfd.readouterr().err
    for start in (
        f"stage3/2: pending, {tmp_path}/resnet18-f37072fd.pth is no weight file of resnet18",
        "stage3/3: pending, densenet121: weights not available offline; download https://",
    ):
        assert sum(line.startswith(start) for line in said.splitlines()) == 1, said
    assert said.splitlines()[-1] == "2 runs stay pending (see above)"
    assert set(store.run_ids()) == {recorded.run_id, other.run_id}


# ---------------------------------------------------------------------------------------------
# Killed and stopped
# ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(folder: Path, stage: str):
    """A sweep of one stage by two workers, as a program in a process group of its own."""
    command = [sys.executable, "-m", "cifarlib", "sweep", "--stage", stage, *SET_TINY]
    command += ["--out", str(folder), "--device", "cpu", "--workers", "2"]
    command += ["--checkpoint-every", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("every", "least", "saved"),
    [(1, 0.0, [1, 2]), (2, 0.0, [2]), (0, 0.0, []), (None, 0.0, [1, 2]), (None, 60.0, [])],
)
def test_checkpoints_are_written_when_they_are_due(tmp_path, monkeypatch, every, least, saved):
    (condition,) = tiny_conditions("stage1-long/13")
    written = []

    def note(path, state, aside):
        written.append(len(state["history"]["learning_rate"]) - 1)

    monkeypatch.setattr(worker, "write_checkpoint", note)
    monkeypatch.setattr(worker, "LEAST_WORK", least)
    record = worker.train(
        condition.config, tiny_store(tmp_path), Settings("cpu", 1, every), lambda _: None
    )
    assert record.result.history.epochs == 3
    assert written == saved  # never after the last epoch: there is the record


@pytest.mark.parametrize("first", ["0 of 36 runs", "[1/36]", "residual network: described"])
def test_ctrl_c_ends_a_sweep_in_one_line(tmp_path, first):
    """While the workers are still starting, while they train, after one has traced the network."""
    store = tiny_store(tmp_path)
    if "described" in first:
        store.network_path.unlink()
    with started(tmp_path, "stage1-base") as process:
        before = 0
        for line in process.stderr:
            before += line.startswith("[")
            if line.startswith(first):
                break
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read().splitlines()
        assert process.wait(DEADLINE) == 130
    assert rest[-1] == "cifarlib: stopped; the same command goes on from here"
    finished = [line for line in rest[:-1] if line.startswith("[")]
    assert rest[:-1] == finished
    recorded, faults = store.read_runs(store.run_ids())
    assert faults == []
    assert len(recorded) >= before + len(finished)


# ---------------------------------------------------------------------------------------------
# In slices of time
# ---------------------------------------------------------------------------------------------


def as_jobs(*names: str, **settings) -> list[RunJob]:
    return [RunJob(c.run_id, c.name, c.config) for c in tiny_conditions(*names, **settings)]


def make_budget(folder: Path, seconds: float | None, checkpoints: bool = True) -> Budget:
    """A budget of some seconds up to the last border, on a machine where every epoch takes 10."""
    deadline = None if seconds is None else time.monotonic() + BORDER + seconds
    prices = Prices()
    prices.seconds = lambda config: 10.0 / SAFETY * config.epochs
    return Budget(deadline, RecordStore(folder), prices, 1, checkpoints)


def begin(path: Path, epoch: int, state=None) -> None:
    """A checkpoint."""
    state = state or EMPTY
    history = {"learning_rate": [None] * (epoch + 1)}
    owner = path.with_stem(state["run_id"]) if "run_id" in state else path
    checkpoints.write_checkpoint(owner, state | {"history": history})
    owner.replace(path)
    assert RecordStore(path.parent.parent).checkpoint_epoch(path.stem) == epoch


def test_without_a_budget_jobs_are_taken_as_they_come(tmp_path):
    jobs = as_jobs(*NAMES)
    budget, waiting = make_budget(tmp_path, None), deque(jobs)
    assert [budget.choose(waiting) for _ in range(4)] == [*jobs, None]
    assert not budget.is_spent()


@pytest.mark.parametrize(
    ("seconds", "waiting", "begun", "chosen"),
    [
        (35, "long short other", {}, "long"),  # the first that can end: 1, 3 and 3 epochs of 10 s
        (15, "long short other", {}, "short"),
        (15, "long other", {"other": 2}, "other"),  # one that is begun needs time for its rest only
        (15, "long other", {}, "long"),  # where no run can end, one gets an epoch further
        (15, "long other", {"other": 1}, "other"),  # rather one that is begun
        (5, "long other", {"other": 1}, None),
    ],
)
def test_a_budget_chooses_a_run_that_can_end(tmp_path, seconds, waiting, begun, chosen):
    jobs = dict(zip(("short", "long", "other"), as_jobs(*NAMES), strict=True))
    for name, epoch in begun.items():
        begin(tmp_path / "state" / f"{jobs[name].run_id}.pt", epoch)
    queue = deque(jobs[name] for name in waiting.split())
    left = [job for job in queue if job is not jobs.get(chosen)]
    assert make_budget(tmp_path, seconds).choose(queue) is jobs.get(chosen)
    assert list(queue) == left
    if "short" not in waiting.split() and not begun:  # which without checkpoints gains nothing
        assert make_budget(tmp_path, seconds, checkpoints=False).choose(queue) is None


def test_the_first_seed_of_every_run_comes_before_a_second(tmp_path):
    chosen = tiny_conditions(SHORT, "stage1-base/2", overrides=("seeds=[7, 3]",))
    jobs, _ = sweep._take_stock(chosen, tiny_store(tmp_path))
    assert [(job.config.seed, job.name) for job in jobs] == [
        (7, f"{SHORT} (seed 7)"),
        (7, "stage1-base/2 (seed 7)"),
        (3, f"{SHORT} (seed 3)"),
        (3, "stage1-base/2 (seed 3)"),
    ]


def test_train_in_slices_gives_the_record_of_one_at_once(swept, tmp_path, conditions):
    """Each slice is out of time after its first epoch; the record is the same."""
    store, condition = tiny_store(tmp_path), conditions[2]
    arguments = condition.config, store, Settings("cpu", 1, None, time.monotonic()), lambda _: None
    for epoch in (1, 2):
        with pytest.raises(worker.OutOfTimeError, match=f"stopped after epoch {epoch} of 3"):
            worker.train(*arguments)
        assert store.checkpoint_epoch(condition.run_id) == epoch
    record = worker.train(*arguments)
    assert record.result == swept[0].read_run(condition.run_id).result
    assert (record.provenance.resumed, record.provenance.changes) == (2, ())


def test_a_record_says_what_changed_between_its_parts(tmp_path, conditions, monkeypatch):
    """Threads, processor or versions: such a run cannot be made again to the bit."""
    store, condition = tiny_store(tmp_path), conditions[2]
    path = store.state / f"{condition.run_id}.pt"
    state = None
    for threads in (1, 2):
        settings = Settings("cpu", threads, None, time.monotonic())
        with pytest.raises(worker.OutOfTimeError):
            worker.train(condition.config, store, settings, lambda _: None)
        state = state or checkpoints.read_checkpoint(path, store, pytest.fail)
    monkeypatch.setattr(provenance, "processor", lambda: "another")
    settings = replace(settings, deadline=None)
    record = worker.train(condition.config, store, settings, lambda _: None)
    threads, device = record.provenance.changes
    assert threads == "from epoch 2: 2 instead of 1 threads"
    assert device.startswith("from epoch 3: trained on another instead of ")
    assert verify.differing_origins(record.provenance, record.provenance) == [
        f"it was made in parts, {change}" for change in (threads, device)
    ]
    for before, now, said in ((True, False, True), (None, False, None), (False, None, None)):
        parts = [record.provenance.model_copy(update={"dirty": dirty}) for dirty in (before, now)]
        assert worker._take_over(state | {"provenance": parts[0]}, parts[1]).dirty is said


def test_a_deadline_stops_no_run_without_checkpoints(tmp_path, conditions):
    settings = Settings("cpu", 1, 0, time.monotonic())
    record = worker.train(conditions[1].config, tiny_store(tmp_path), settings, lambda _: None)
    assert record.result.history.epochs == 3


def test_a_sweep_ends_by_its_deadline_and_says_what_is_left(made_up, tmp_path):
    """One run hangs: at the deadline it is ended, and what waits behind it stays."""
    store = tiny_store(tmp_path)
    deadline = time.monotonic() + 10
    outcome, said = run_sweep(with_seeds(HANGS, GOOD), store, workers=1, deadline=deadline)
    assert time.monotonic() < deadline
    assert outcome.done == 0
    assert outcome.stopped == [f"{SHORT} (seed {HANGS})"]
    assert outcome.left == [f"{SHORT} (seed {GOOD})"]
    assert outcome.failed == {}
    assert outcome.seconds_left > 0
    assert f"{SHORT} (seed {HANGS}): stopped within an epoch" in said


@pytest.mark.usefixtures("inline")
def test_the_command_begins_nothing_that_cannot_end(tmp_path, capfd):
    store = tiny_store(tmp_path)
    arguments = ["sweep", "--stage", "stage1-long", "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main([*arguments, *SET_TINY, "--budget", "0.001s"]) == 0
    said = capfd.readouterr().err.splitlines()[-1]
    used = "the budget of 0.001s is used: 0 done, 0 stopped on the way, 2 not begun, about "
    assert said.startswith(used)
    assert store.run_ids() == []


def serve_as_if_on_cuda(connections, folder, settings):
    assert settings.device == "cuda"
    serve_made_up(connections, folder, replace(settings, device="cpu"))


def test_a_budget_begins_runs_on_a_gpu_without_records(made_up, tmp_path, monkeypatch):
    """Slow records of processors are no reason to begin nothing in five and a half minutes."""
    monkeypatch.setattr(executors, "serve", serve_as_if_on_cuda)
    store, study = tiny_store(tmp_path), load_study()
    store.write(make_data_record("cifar10"))
    full = expand(study, load_scale("full", [], study))
    known, *wanted = [c for c in full if c.stage == "stage1-base"][:9]
    store.write(make_record(known, train_s=36_000.0, threads=2))
    said, deadline = io.StringIO(), time.monotonic() + 330
    with contextlib.redirect_stderr(said):
        outcome = sweep.sweep([known, *wanted], store, device="cuda", deadline=deadline)
    assert outcome == executors.Outcome(done=len(wanted))
    first = said.getvalue().splitlines()[0]
    assert first.startswith("1 of 9 runs are recorded; 8 to go, workers: 8, about ")
    assert first.endswith(" min")


def test_loading_the_data_is_not_taken_for_time_of_an_epoch(tmp_path):
    """A run of two short epochs ends, though it took long to begin."""
    (condition,) = tiny_conditions("stage1-daa1/13", overrides=("epochs.30=2",))
    state = {
        "history": {"learning_rate": [None, 0.001], "validation": {"top1": [1, 2]}},
        "seconds": {"train": 1.0, "evaluation": 2.0},
    }
    for left, late in ((10.0, False), (2.0, True)):
        deadline = time.monotonic() + left
        settings = Settings("cpu", 1, None, deadline)
        told = []
        path, made_by = tmp_path / "run.pt", of_this_process(1)
        after = Checkpointer(path, condition.config, settings, told.append, made_by)
        after.began -= 60.0
        with pytest.raises(OutOfTimeError) if late else contextlib.nullcontext():
            after(state)
        assert told[0].epoch == 1


def test_a_budget_shorter_than_an_epoch_is_said_to_be_too_short():
    """Repeating it would never get anywhere."""
    outcome = Outcome(stopped=["stage1-daa1/13"])
    said = outcome.say_left("4m", "go on")
    assert "before an epoch ended, so nothing is kept" in said
    assert said.endswith("; name a longer one")
    for more in ({"epochs": 1}, {"done": 1}, {"stopped": [], "left": ["stage1-daa1/9"]}):
        assert replace(outcome, **more).say_left("4m", "go on").endswith(" left; go on")


@pytest.mark.parametrize("text", ["soon", "9 minutes", "-5s", "0m", "5", "1e3s"])
def test_a_malformed_budget_gets_one_sentence(text, capsys):
    assert cli.main(["sweep", f"--budget={text}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f"cifarlib: --budget {text}: write a time such as 540s, 9m or 2h"]


@pytest.mark.parametrize(("text", "seconds"), [("540s", 540), ("9m", 540), ("1.5h", 5400)])
def test_a_budget_is_read(text, seconds):
    assert parse_budget(text, "budget") == seconds


# ---------------------------------------------------------------------------------------------
# Locks
# ---------------------------------------------------------------------------------------------


def test_a_lock_has_one_holder_and_ends_with_it(tmp_path):
    path = tmp_path / "state" / "run.lock"
    with locks.lock(path) as first:
        assert first
        with locks.lock(path) as second:
            assert not second
        assert path.exists()
    assert not path.exists()
    with locks.lock(path) as third:
        assert third


def test_a_place_that_cannot_be_locked_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CifarlibError, match="cannot be locked"),
        locks.lock(tmp_path / "file" / "a.lock"),
    ):
        pass


# ---------------------------------------------------------------------------------------------
# Made-up runs
# ---------------------------------------------------------------------------------------------


KILLED_TWICE = (
    "its worker was killed (signal 9), as happens where memory runs out, at the second try, too"
)


def with_seeds(*seeds: int) -> list[Condition]:
    return tiny_conditions(SHORT, overrides=(f"seeds={list(seeds)}",))


def test_one_runs_fault_stops_no_other(made_up, tmp_path, capfd):
    """One raises, one kills each worker that takes it; both are named, the other is recorded."""
    store = tiny_store(tmp_path)
    raises, dies, good = with_seeds(RAISES, DIES, GOOD)
    overrides = ["--set", f"seeds=[{RAISES}, {DIES}, {GOOD}]", *SET_TINY]
    assert cli.main(["run", SHORT, "--out", str(tmp_path), "--device", "cpu", *overrides]) == 1
    captured = capfd.readouterr()
    reasons = {RAISES: "ZeroDivisionError: a fault of one run", DIES: KILLED_TWICE}
    said = captured.err.splitlines()
    for seed, reason in reasons.items():
        assert said.count(f"{SHORT} (seed {seed}): failed, {reason}") == 1
        assert f"cifarlib: {SHORT} (seed {seed}): {reason}" in said[-3:-1]
    assert said[-1] == f"cifarlib: 2 runs failed; their errors: {store.state / '*.error.txt'}"
    assert captured.out.splitlines()[1:] == [str(store.run_path(good.run_id))]
    assert [len(trained_by(store)[c.run_id]) for c in (raises, dies)] == [1, 2]
    assert store.run_ids() == [good.run_id]
    logs = {path.name: path.read_text() for path in store.state.glob("*.error.txt")}
    assert logs.keys() == {f"{c.run_id}.error.txt" for c in (raises, dies)}
    assert "Traceback (most recent call last)" in logs[f"{raises.run_id}.error.txt"]
    assert "in two lines" in logs[f"{raises.run_id}.error.txt"]
    assert "signal 9" in logs[f"{dies.run_id}.error.txt"]


@pytest.mark.parametrize("cause", [DIES_ONCE, STARVES_ONCE])
def test_a_run_that_lost_its_worker_is_tried_once_more(made_up, tmp_path, cause, capfd):
    overrides = ["--set", f"seeds=[{cause}, {GOOD}]", *SET_TINY]
    tiny_store(tmp_path)
    arguments = ["run", SHORT, "--out", str(tmp_path), "--device", "cpu", *overrides]
    assert cli.main(arguments) == 0
    store = RecordStore(tmp_path)
    assert store.run_ids() == sorted(c.run_id for c in with_seeds(cause, GOOD))
    assert len(trained_by(store)[with_seeds(cause)[0].run_id]) == 2
    said = capfd.readouterr().err.splitlines()
    (line,) = [line for line in said if "to be tried once more" in line]
    reason = "signal 9" if cause == DIES_ONCE else "MemoryError"
    assert reason in line
    assert line.startswith(f"{SHORT} (seed {cause}): ")
    assert said[-1] == "1 runs lost their worker and were tried once more (see above)"


def test_a_second_try_has_half_the_workers(tmp_path):
    """While one is to end no more begin; then all may again, and processes come back."""
    executor = executors.LocalExecutor(RecordStore(tmp_path), "cpu", 4, 1, None)
    ended = []
    executor._start = lambda number: [SimpleNamespace(job=None, shares_process=False)] * number
    executor._end = ended.append
    executor.display = SimpleNamespace(say=lambda text: None)
    executor.waiting.extend(as_jobs(*NAMES, "stage1-base/2", "stage1-base/3"))
    executor._fit_pool()
    assert (executor._room(), len(executor.pool)) == (4, 4)
    lost = executor.waiting.popleft()
    executor.try_again(lost, "its worker died", "")
    assert executor.waiting[0] == lost
    executor._fit_pool()
    assert (executor._room(), len(executor.pool), len(ended)) == (2, 2, 2)
    executor.waiting.popleft()
    executor._fit_pool()
    assert (executor._room(), len(executor.pool)) == (4, 4)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError("no more"), "starved"),
        (torch.OutOfMemoryError("CUDA out of memory"), "starved"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "starved"),
        (RuntimeError("shapes differ"), "failed"),
    ],
)
def test_run_job_distinguishes_a_lack_of_memory_from_a_fault(
    tmp_path, monkeypatch, conditions, error, kind
):
    def train(*arguments, **settings):
        raise error

    said = queue.SimpleQueue()
    monkeypatch.setattr(worker, "train", train)
    job = RunJob(conditions[0].run_id, SHORT, conditions[0].config)
    connection = SimpleNamespace(send=said.put)
    worker.run_job(job, RecordStore(tmp_path), connection, Settings("cpu", 1, None))
    assert said.get_nowait().kind == kind


def test_an_idle_worker_that_is_killed_is_no_loss(made_up, tmp_path, monkeypatch):
    store, hear = tiny_store(tmp_path), executors.Executor.hear

    def note(executor, job, message):
        """Tell the other worker that the sweep knows of the first one's end of work."""
        if message.kind == "done":
            (store.folder / HEARD).touch()
        return hear(executor, job, message)

    monkeypatch.setattr(executors.Executor, "hear", note)
    outcome, _ = run_sweep(with_seeds(GOOD, SEES_ANOTHER_DIE), store, workers=2)
    assert outcome == executors.Outcome(done=2)
    assert len(store.run_ids()) == 2


def test_what_is_wrong_for_every_run_ends_the_sweep(made_up, tmp_path):
    store = tiny_store(tmp_path)
    chosen = with_seeds(GOOD, LACKS_DATA, RAISES)
    with pytest.raises(CifarlibError, match=r"^the data are gone; fetch them$"):
        run_sweep(chosen, store, workers=1)
    assert store.run_ids() == [chosen[0].run_id]
    assert not list(store.state.glob("*.error.txt"))


def sweep_that_hangs(folder: Path) -> None:
    executors.serve = serve_made_up
    run_sweep(with_seeds(HANGS), RecordStore(folder), workers=1)


def test_a_worker_that_never_looks_up_dies_with_its_sweep(tmp_path, fork_server):
    tiny_store(tmp_path)
    process = fork_server.get_context("spawn").Process(target=sweep_that_hangs, args=(tmp_path,))
    process.start()
    (log,) = wait_for(lambda: list(tmp_path.glob("trained.log")), "a start")
    worker_process = psutil.Process(int(wait_for(log.read_text, "a start").split()[0]))
    process.kill()
    process.join()
    try:
        worker_process.wait(DEADLINE)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker_process.kill()


def test_two_sweeps_share_the_work(made_up, tmp_path):
    store = tiny_store(tmp_path)
    chosen = with_seeds(*range(MEETS_ANOTHER, MEETS_ANOTHER + 6))
    one = partial(sweep.sweep, chosen, store, device="cpu", workers=1, threads=1)
    with ThreadPoolExecutor(2) as pool:
        pair = [pool.submit(one), pool.submit(one)]
    assert [sweeping.result().failed for sweeping in pair] == [{}, {}]
    trained = [line.split()[1] for line in (tmp_path / "trained.log").open()]
    assert sorted(trained) == sorted(c.run_id for c in chosen)
    assert results(store, chosen) == [make_record(c).result for c in chosen]
    assert list(store.state.iterdir()) == []


def test_a_run_that_another_sweep_trains_is_waited_for_and_said_once(tmp_path):
    job, network, said = *as_jobs(SHORT), worker.DescribeJob("network"), []
    executor = InlineExecutor(tiny_store(tmp_path), "cpu")
    executor.display = SimpleNamespace(say=said.append, drop=lambda job: None)
    for each in (job, job, network):
        assert executor.hear(each, worker.Message("busy"))
    assert list(executor.busy) == [job, job, network]
    assert said == [
        f"{job.name}: another sweep is training it; waiting",
        "network: another sweep is describing it; waiting",
    ]


@pytest.fixture
def in_lanes(made_up, monkeypatch):
    """As on a machine with a CUDA device."""
    monkeypatch.setattr(executors, "uses_cuda", lambda device: True)


def trained_by(store: RecordStore) -> dict[str, list[str]]:
    """The processes that each run was given to, in this order."""
    found: dict[str, list[str]] = {}
    for line in (store.folder / "trained.log").read_text().splitlines():
        process, name = line.split()
        found.setdefault(name, []).append(process)
    return found


def test_lanes_are_workers_of_one_process(in_lanes, tmp_path):
    store = tiny_store(tmp_path)
    names = [f"stage1-base/{number}" for number in range(1, 6)]
    chosen = tiny_conditions(*names, overrides=(f"seeds=[{GOOD}]",))
    outcome, said = run_sweep(chosen, store, workers=3)
    assert outcome == executors.Outcome(done=5)
    assert "workers: 3" in said[0]
    assert len({process for given in trained_by(store).values() for process in given}) == 1


def test_sweep_finds_the_run_that_kills_the_process_of_its_lanes(in_lanes, tmp_path):
    """What trained beside it is trained again, in processes of its own."""
    store = tiny_store(tmp_path)
    chosen = with_seeds(GOOD, DIES)
    outcome, _ = run_sweep(chosen[::-1], store, workers=2)
    assert outcome.done == 1
    assert outcome.failed == {f"{SHORT} (seed {DIES})": KILLED_TWICE}
    assert store.run_ids() == [chosen[0].run_id]
    assert len(set(trained_by(store)[chosen[1].run_id])) == 3


# ---------------------------------------------------------------------------------------------
# Workers
# ---------------------------------------------------------------------------------------------


def test_choose_workers_gives_one_a_core_and_several_lanes_to_a_gpu(tmp_path, monkeypatch):
    def choose(device: str, threads: int | None = None) -> tuple[int, int]:
        executor = executors.LocalExecutor(RecordStore(tmp_path), device, None, threads)
        return executor.workers, executor.threads

    monkeypatch.setattr(executors, "cores", lambda: 8)
    assert choose("cpu") == (8, 1)
    assert choose("cpu", threads=3) == (2, 3)
    assert choose("cpu", threads=16) == (1, 16)
    assert choose("cuda") == (LANES, 8)
    for place in ("/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1"):
        monkeypatch.setattr(Path, "exists", lambda path, place=place: str(path) == place)
        assert choose("auto") == (LANES, 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert choose("auto") == (8, 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert choose("auto") == (8, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a CUDA device")
@pytest.mark.usefixtures("forked")
def test_no_run_falls_back_to_the_processor_in_a_process_that_others_share(tmp_path, monkeypatch):
    """Such as where a driver is installed, but a torch without CUDA."""
    monkeypatch.setattr(executors, "uses_cuda", lambda device: True)
    chosen = tiny_conditions("stage1-daa1/7", "stage1-daa1/13")
    with pytest.raises(CifarlibError, match="torch finds none here; use --device cpu"):
        sweep.sweep(chosen, tiny_store(tmp_path), workers=2)


# ---------------------------------------------------------------------------------------------
# The description of a data set
# ---------------------------------------------------------------------------------------------


def test_describe_dataset_follows_from_the_images(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    labels = np.arange(100) % 10
    images = Images(random.integers(0, 256, (100, 3, 32, 32), dtype=np.uint8), labels)
    monkeypatch.setattr(
        data, "load", lambda name: (images, Images(images.images[:20], labels[:20]))
    )
    uncached = inputs.computed_statistics.__wrapped__
    monkeypatch.setattr(inputs, "computed_statistics", uncached)
    record = describe.describe_dataset("synthetic")
    assert record.class_counts == {"train": (9,) * 10, "validation": (1,) * 10, "test": (2,) * 10}
    scaled = images.images / 255
    assert record.statistics.mean == pytest.approx(scaled.mean((0, 2, 3)))
    assert record.statistics.std == pytest.approx(scaled.std((0, 2, 3)))
    methods = {"nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"}
    assert record.resized.keys() == methods
    total = record.mean_image * DATASETS["synthetic"].train_images
    assert total == pytest.approx(scaled.sum(0))
    assert record.first_loss["fan_out"] > 2 * record.first_loss["fan_in"] > 2 * np.log(10)
    assert len(record.examples) == 10
    assert len(record.transforms) == 6
    store = RecordStore(tmp_path)
    store.write(record)
    assert store.read_data("synthetic") == record
    assert record.provenance.threads == 1
