"""A sweep from a notebook's cell: its cost beforehand, live progress, a budget, and *Interrupt*."""

import contextlib
import html
import sys
import time
from collections.abc import Mapping, Sequence

from cifarlib import data, extras
from cifarlib.checking import cut, suggest
from cifarlib.errors import ConfigError, DataError, MissingPackageError, RunError
from cifarlib.formatting import say_count, say_list
from cifarlib.runs.display import is_kernel
from cifarlib.runs.executors import Outcome
from cifarlib.runs.locks import held
from cifarlib.runs.other_studies import list_conditions
from cifarlib.runs.parameters import TRAINING, check_injected
from cifarlib.runs.progress import cores, duration, learn_prices, parse_budget, uses_cuda
from cifarlib.runs.results import Results
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import RecordStore
from cifarlib.runs.sweep import sweep
from cifarlib.study import Condition


class Stopped(KeyboardInterrupt):
    """Training was interrupted; a notebook shows the sentence instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def complete(
    results: Results, stages: Sequence[str] | None, *, train: bool, budget: str, device: str
) -> Results:
    """What ``Results.complete`` does."""
    check_injected()
    if not isinstance(budget, str):
        raise ConfigError(f"budget is {cut(repr(budget))}; write a text, such as '20m'")
    if not isinstance(train, bool):
        raise ConfigError(f"train is {cut(repr(train))}; write True or False")
    if budget and not train:
        raise ConfigError(f"the budget of {cut(budget)} is for training; set train = True, too")
    stages = [stages] if isinstance(stages, str) else stages
    seconds = parse_budget(budget, "budget") if budget else None
    chosen = choose_conditions(results, stages)
    records, _ = results.store.read_runs(chosen)
    missing = [condition for name, condition in chosen.items() if name not in records]
    if missing:
        verb, what = ("is", "it") if len(missing) == 1 else ("are", "them")
        cost = _estimate(missing, records, results.store, device)
        said = f"{len(missing)} of the {say_count(len(chosen), 'run')} of this chapter {verb} not "
        said += f"recorded yet; to train {what} takes {cost}."
        if not results.store.runs.is_dir():
            said += f" There are no records in {results.store.folder.absolute()}."
        running = held(results.store.state)
        if elsewhere := [
            f"{c.name} (epoch {results.store.checkpoint_epoch(c.run_id)} of {c.config.epochs})"
            for c in missing
            if c.run_id in running
        ]:
            said += f" In training in another process: {say_list(elsewhere)}."
        show(said if train else f"{said} Set train = True to train them here.")
    elif train and chosen:
        verb = "is" if len(chosen) == 1 else "are"
        show(f"All {say_count(len(chosen), 'run')} of this chapter {verb} recorded.")
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
    if left := done.say_left(budget, "run it again to go on"):
        show(f"{left[0].upper()}{left[1:]}.")
    return results.reread()


def choose_conditions(results: Results, stages: Sequence[str] | None) -> dict[str, Condition]:
    """Run id → condition of some stages of any study, of all stages of this one where None.

    A condition's name stands for its runs alone.
    """
    known = [condition for _, condition in list_conditions(results)] if stages else results.known
    titled, named = {c.stage for c in known}, {c.name for c in known}
    if unknown := next((name for name in stages or () if name not in titled | named), None):
        what, names = ("condition", named) if "/" in unknown else ("stage", titled)
        raise ConfigError(f"there is no {what} {unknown!r}; {suggest(unknown, names)}")
    chosen: dict[str, Condition] = {}
    for condition in known:
        if stages is None or {condition.stage, condition.name} & set(stages):
            chosen.setdefault(condition.run_id, condition)
    return chosen


def _estimate(
    conditions: Sequence[Condition],
    records: Mapping[str, RunRecord],
    store: RecordStore,
    device: str,
) -> str:
    prices = learn_prices(records.values(), store, device)
    seconds = prices.left({c.run_id: c.config for c in conditions}, store)
    known = {(c.config.model.name, c.config.precision) for c in conditions} <= prices.rates.keys()
    source = "recorded runs" if known else "the usual speed of such a machine"
    return f"about {duration(seconds)}, estimated from {source}"


def train_missing(
    conditions: Sequence[Condition], results: Results, records: Mapping[str, RunRecord], device: str
) -> None:
    """Say what it costs to train the conditions without a record, then do it as ``sweep`` does.

    Raises ``RunError`` where one was not trained, and ``Stopped`` on *Interrupt*.
    """
    missing = list({c.run_id: c for c in conditions if c.run_id not in records}.values())
    if not missing:
        return
    images = sum(c.config.epochs * c.config.data.train_size for c in missing)
    cost = _estimate(missing, records, results.store, device)
    runs = say_count(len(missing), "run")
    print(f"{runs} to train, {images:,} images over all epochs: {cost}.", flush=True)
    done = sweep_in_cell(missing, results.store, device)
    for name, reason in (done.failed | done.unavailable).items():
        raise RunError(f"{name} was not trained: {reason}")


def sweep_in_cell(
    conditions: Sequence[Condition],
    store: RecordStore,
    device: str = "auto",
    deadline: float | None = None,
    datasets: Sequence[str] = (),
) -> Outcome:
    """``sweep``, where one run alone has every core; ``Stopped`` on *Interrupt*."""
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
            )
    except KeyboardInterrupt:
        epochs = [store.checkpoint_epoch(c.run_id) for c in conditions]
        kept = [f"epoch {epoch}" for epoch in epochs if epoch]
        what, verb = ("checkpoint", "is") if len(kept) == 1 else ("checkpoints", "are")
        said = f"The {what} of {say_list(kept)} {verb} kept. " if kept else ""
        raise Stopped(f"Stopped. {said}Run the cell again to go on.") from None


def show(text: str) -> None:
    """Say something in a cell of a notebook; a rendered report leaves it out."""
    if not is_kernel():
        print(text, flush=True)
        return
    from IPython.display import display

    bundle = {"text/plain": text, "text/html": f"<p>{html.escape(text)}</p>"}
    display(bundle, raw=True, metadata={TRAINING: {}})
