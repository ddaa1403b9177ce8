"""A sweep from a notebook's cell: its cost beforehand, live progress, a budget, and *Interrupt*."""

import contextlib
import html
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cifarlib import data, extras
from cifarlib.checking import suggest
from cifarlib.errors import ConfigError, DataError, MissingPackageError, RunError
from cifarlib.formatting import say_count, say_list
from cifarlib.runs.executors import Outcome
from cifarlib.runs.further import list_conditions
from cifarlib.runs.parameters import TRAINING, check_injected, find_shell
from cifarlib.runs.progress import Prices, cores, duration, parse_budget, uses_cuda
from cifarlib.runs.progress_line import ProgressLine
from cifarlib.runs.results import Results
from cifarlib.runs.running import checkpoint_epoch, list_running
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import AnyRecord, RecordStore
from cifarlib.runs.sweep import sweep
from cifarlib.runs.worker import Job, RunJob
from cifarlib.study import Condition


class Stopped(KeyboardInterrupt):
    """Training was interrupted; a notebook shows the sentence instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


# ---------------------------------------------------------------------------------------------
# The missing runs of a chapter
# ---------------------------------------------------------------------------------------------


def complete(
    results: Results, stages: Sequence[str] | None, *, train: bool, budget: str, device: str
) -> Results:
    """What ``Results.complete`` does."""
    check_injected()
    seconds = parse_budget(budget, "budget") if budget else None
    chosen = choose_conditions(results, stages)
    records, _ = results.store.read_runs(chosen)
    missing = [condition for name, condition in chosen.items() if name not in records]
    if missing:
        show(_say_missing(missing, len(chosen), records.values(), results.store, train, device))
    elif train and chosen:
        show(f"All {say_count(len(chosen), 'run')} of this chapter are recorded.")
    if not train or (not missing and results.data and results.network):
        return results
    try:
        extras.require("torch", "torchvision")
        data.find(results.scale.data.name)
    except (DataError, MissingPackageError) as error:
        show(f"Nothing is trained: {error}.")
        return results
    deadline = None if seconds is None else time.monotonic() + seconds
    runs, described = list(chosen.values()), [results.scale.data.name]
    done = sweep_in_cell(runs, results.store, device, deadline, described)
    for name, reason in (done.unavailable | done.failed).items():
        show(f"{name} was not trained: {reason}.")
    if left := done.say_left(budget):
        show(f"{left[0].upper()}{left[1:]}; run the cell again to go on.")
    return results.reread()


def choose_conditions(results: Results, stages: Sequence[str] | None) -> dict[str, Condition]:
    """Run id → condition of some stages of any study, of all stages of this one where None."""
    known = [condition for _, condition in list_conditions(results)] if stages else results.known
    names = dict.fromkeys(condition.stage for condition in known)
    if unknown := [stage for stage in stages or () if stage not in names]:
        raise ConfigError(f"there is no stage {unknown[0]!r}; {suggest(unknown[0], names)}")
    chosen: dict[str, Condition] = {}
    for condition in known:
        if stages is None or condition.stage in stages:
            chosen.setdefault(condition.run_id, condition)
    return chosen


def _say_missing(
    missing: Sequence[Condition],
    total: int,
    records: Iterable[RunRecord],
    store: RecordStore,
    train: bool,
    device: str,
) -> str:
    """How many runs are missing, what they cost, and which of them another process trains."""
    running = list_running(store.state)
    elsewhere = [
        f"{c.name} (epoch {running[c.run_id]} of {c.config.epochs})"
        for c in missing
        if c.run_id in running
    ]
    said = f"{len(missing)} of the {say_count(total, 'run')} of this chapter "
    said += f"{'is' if len(missing) == 1 else 'are'} not recorded yet; to train them takes "
    said += f"{_estimate(missing, records, device)}."
    if elsewhere:
        said += f" In training in another process: {say_list(elsewhere)}."
    return said if train else f"{said} Set train = True to train them here."


def say_cost(
    conditions: Sequence[Condition], records: Iterable[RunRecord], device: str = "auto"
) -> str:
    """What it costs to train some conditions, and what that is estimated from."""
    images = sum(c.config.epochs * c.config.data.train_size for c in conditions)
    return (
        f"{say_count(len(conditions), 'run')} to train, {images:,} images over all epochs: "
        f"{_estimate(conditions, records, device)}."
    )


def _estimate(
    conditions: Sequence[Condition], records: Iterable[RunRecord], device: str = "auto"
) -> str:
    prices = Prices(records, device)
    seconds = sum(prices.seconds(c.config) for c in conditions)
    known = {(c.config.model.name, c.config.precision) for c in conditions} <= prices.rates.keys()
    source = "recorded runs" if known else "the usual speed of such a machine"
    return f"about {duration(seconds)}, estimated from {source}"


# ---------------------------------------------------------------------------------------------
# Training in a cell
# ---------------------------------------------------------------------------------------------


def train_or_raise(
    conditions: Sequence[Condition], store: RecordStore, device: str = "auto"
) -> None:
    """Train conditions as ``sweep_in_cell`` does; ``RunError`` where one was not trained."""
    done = sweep_in_cell(conditions, store, device)
    for name, reason in (done.failed | done.unavailable).items():
        raise RunError(f"{name} was not trained: {reason}")


def sweep_in_cell(
    conditions: Sequence[Condition],
    store: RecordStore,
    device: str = "auto",
    deadline: float | None = None,
    datasets: Sequence[str] = (),
) -> Outcome:
    """Train conditions as ``sweep`` does, with live progress; one alone has every core.

    Where nobody watches, as under papermill, progress is said in plain lines. Raises ``Stopped`` on
    *Interrupt*: checkpoints are kept.
    """
    live = is_watched()
    missing = [c for c in conditions if not store.run_path(c.run_id).exists()]
    alone = len(missing) == 1 and not uses_cuda(device)
    try:
        with contextlib.redirect_stderr(sys.stdout):
            return sweep(
                conditions,
                store,
                device=device,
                workers=1 if alone else None,
                threads=cores() if alone else None,
                deadline=deadline,
                datasets=datasets,
                display=CellProgress if live else ProgressLine,
            )
    except KeyboardInterrupt:
        epochs = (checkpoint_epoch(store.state / f"{c.run_id}.pt") for c in conditions)
        kept = ", ".join(str(epoch) for epoch in epochs if epoch)
        kept = f"The checkpoint of epoch {kept} is kept. " if kept else ""
        raise Stopped(f"Stopped. {kept}Run the cell again to go on.") from None


def is_watched() -> bool:
    """Whether a person sees this cell run, in JupyterLab and its like, and not papermill alone."""
    return _shell() is not None and bool({"JPY_SESSION_NAME", "VSCODE_PID"} & os.environ.keys())


def _shell() -> Any:
    """IPython's shell where this process is a notebook's kernel."""
    shell = find_shell()
    return shell if hasattr(shell, "kernel") else None


def show(text: str) -> None:
    """Say something in a cell of a notebook; a rendered report leaves it out."""
    if _shell() is None:
        print(text, flush=True)
        return
    from IPython.display import display

    bundle = {"text/plain": text, "text/html": f"<p>{html.escape(text)}</p>"}
    display(bundle, raw=True, metadata={TRAINING: {}})


@dataclass
class _Row:
    """A run in training: since when it is, and how far."""

    job: RunJob
    began: float = field(default_factory=time.monotonic)
    epoch: int = 0
    accuracy: float | None = None


class CellProgress(ProgressLine):
    """A bar over the runs, a line for each running one, and the last sentences, in a cell."""

    def __init__(self, *arguments: Any):
        from IPython.display import display

        self.rows: dict[str, _Row] = {}
        self.said: deque[str] = deque(maxlen=4)
        self.handle = display(
            {"text/plain": "starting"}, raw=True, display_id=True, metadata={TRAINING: {}}
        )
        super().__init__(*arguments)

    def _make_bar(self) -> None:
        return None

    def say(self, text: str) -> None:
        self.said.append(text)
        self._draw()

    def advance(self, job: Job, images: int) -> None:
        if isinstance(job, RunJob):
            self.rows.setdefault(job.run_id, _Row(job))
        super().advance(job, images)

    def epoch(self, job: Job, epoch: int, accuracy: float) -> None:
        if isinstance(job, RunJob):
            row = self.rows.setdefault(job.run_id, _Row(job))
            row.epoch, row.accuracy = epoch, accuracy
            self._draw()

    def finish(self, job: Job, record: AnyRecord | None) -> None:
        if isinstance(job, RunJob):
            self.rows.pop(job.run_id, None)
        super().finish(job, record)

    def drop(self, job: Job, why: str) -> None:
        if isinstance(job, RunJob):
            self.rows.pop(job.run_id, None)
        line = f"{job.name}: another process trains it; its record is waited for"
        if why == "busy" and line not in self.said:
            self.say(line)

    def close(self) -> None:
        self.rows.clear()
        self._draw()

    def _refresh(self) -> None:
        if time.monotonic() - self.shown > 0.5:
            self._draw()

    def _draw(self) -> None:
        self.shown = time.monotonic()
        lines = [self._describe(row) for row in self.rows.values()]
        part = self.finished + sum(map(self._share, self.left))
        left = self.seconds_left()
        head = f"{self.finished} of {say_count(self.total, 'run')}"
        head += f", about {duration(left)} left" if self.left else ""
        titles = ["run", "epoch", "validation, %", "images/s", "time left"]
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines]
        rows = "".join(f"<tr>{row}</tr>" for row in cells)
        table = f"<table><tr>{''.join(f'<th>{t}</th>' for t in titles)}</tr>{rows}</table>"
        said = "<br>".join(map(html.escape, self.said))
        page = (
            f'<div class="cifarlib-training"><progress style="width: 24em" value="{part:.3f}" '
            f'max="{max(1, self.total)}"></progress> {html.escape(head)}{table if lines else ""}'
            f"<div><small>{said}</small></div></div>"
        )
        plain = "\n".join([head, *map("  ".join, lines), *self.said])
        bundle = {"text/plain": plain, "text/html": page}
        self.handle.update(bundle, raw=True, metadata={TRAINING: {}})

    def _share(self, name: str) -> float:
        """How much of a run is trained, here and by earlier sweeps."""
        config = self.left[name]
        done = self.before.get(name, 0) + self.images[name]
        return min(1.0, done / (config.epochs * config.data.train_size))

    def _describe(self, row: _Row) -> list[str]:
        job = row.job
        images = self.images[job.run_id]
        seconds = max(1e-3, time.monotonic() - row.began)
        share = self._share(job.run_id)
        here = images / (job.config.epochs * job.config.data.train_size)
        left = duration(seconds * (1 - share) / here) if here else "–"
        accuracy = "–" if row.accuracy is None else f"{row.accuracy:.1f}"
        epoch = f"{row.epoch} of {job.config.epochs}"
        return [job.name, epoch, accuracy, f"{images / seconds:,.0f}", left]
