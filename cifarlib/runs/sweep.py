"""The sweep: makes the records that are missing, on local worker processes or elsewhere.

The sweep itself only hands out jobs and listens; it never imports torch. Runs are independent,
so killing it loses at most the epochs since each running run's last checkpoint, and the same
command goes on.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cifarlib import paths
from cifarlib.errors import RecordError
from cifarlib.runs import provenance
from cifarlib.runs.budget import Budget
from cifarlib.runs.executors import Executor, LocalExecutor, Outcome
from cifarlib.runs.progress import Prices
from cifarlib.runs.progress_line import ProgressLine
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import AnyRecord, RecordStore
from cifarlib.runs.worker import DataJob, Job, Message, NetworkJob, RunJob
from cifarlib.study import Condition


def sweep(
    conditions: Sequence[Condition],
    store: RecordStore,
    *,
    device: str = "auto",
    workers: int | None = None,
    threads: int | None = None,
    checkpoint_every: int | None = None,
    watch: Callable[[Message], None] | None = None,
    deadline: float | None = None,
    executor: Callable[..., Executor] | None = None,
    keep_weights: bool = False,
    datasets: Sequence[str] = (),
    display: type[ProgressLine] = ProgressLine,
) -> Outcome:
    """Make the missing records of conditions, and what describes their data set and network.

    Runs are taken in the conditions' order, every one of the first seed before the next seed's.
    ``checkpoint_every`` counts epochs, 0 is never, None every epoch that was worth it.
    By ``deadline``, a time of the monotonic clock, the sweep has ended: it begins no run that
    would not end by then while there is one that would, and stops long ones at an epoch border,
    with a checkpoint from which the next sweep goes on.
    ``watch`` is called with every message of a worker, as it comes.
    ``executor`` makes what carries the runs out, from the arguments of ``LocalExecutor``, which
    it is unless another is given.
    With ``keep_weights`` the weights of every run that is trained are kept
    (``RecordStore.weights_path``); they decide nothing, and a recorded run is not trained for them.
    ``datasets`` are described, too. ``display`` shows how far the sweep is.
    A damaged record is set aside and its run trained again. A run that another sweep is training
    is waited for. Raises ``CifarlibError`` where nothing can go on (no data, disk full) and
    ``KeyboardInterrupt`` on Ctrl-C, in both cases with every finished record in place.
    """
    provenance.commit()  # what it finds wrong is said here, not by every worker
    jobs, records = _take_stock(conditions, store, keep_weights, datasets)
    if not jobs:
        print("nothing is missing", file=sys.stderr, flush=True)
        return Outcome()
    _make_folders(store)
    crew = (executor or LocalExecutor)(store, device, workers, threads, checkpoint_every)
    crew.workers = min(crew.workers, len(jobs))
    prices = Prices(records, crew.device)
    shown = display(jobs, len(records), prices, crew.workers, crew.slowness, store)
    budget = Budget(deadline, store, prices, crew.share, checkpoint_every != 0, crew.lag)
    try:
        return crew.run(jobs, shown, budget, watch)
    finally:
        shown.close()


def _make_folders(store: RecordStore) -> None:
    try:
        for folder in (store.runs, store.state):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(
            f"{store.folder} cannot be written ({error.strerror}); name another place with --out"
        ) from error


def _take_stock(
    conditions: Sequence[Condition],
    store: RecordStore,
    keep_weights: bool = False,
    datasets: Sequence[str] = (),
) -> tuple[list[Job], list[RunRecord]]:
    """What is still to be made, the most valuable first, and the records that are there.

    The study's own order is that of value, and a first seed of every condition is worth more
    than a further one of any.
    """
    jobs: list[Job] = []
    for dataset in dict.fromkeys([*datasets, *(c.config.data.name for c in conditions)]):
        known = _read(store, partial(store.read_data, dataset), store.data_path(dataset))
        if not known and not _copy_description(store, dataset):
            jobs.append(DataJob(f"data set {dataset}", dataset))
    if not _read(store, store.read_network, store.network_path):
        jobs.append(NetworkJob("residual network"))
    seeds = list(dict.fromkeys(c.config.seed for c in conditions))
    runs: dict[str, Condition] = {}
    for condition in sorted(conditions, key=lambda c: seeds.index(c.config.seed)):
        runs.setdefault(condition.run_id, condition)
    records = []
    for name, condition in runs.items():
        if record := _read(store, partial(store.read_run, name), store.run_path(name)):
            records.append(record)
            store.clear_state(name)  # left where a worker died right behind its record
        else:
            seed = f" (seed {condition.config.seed})" if len(seeds) > 1 else ""
            jobs.append(RunJob(name, condition.name + seed, condition.config, keep_weights))
    return jobs, records


def _copy_description(store: RecordStore, dataset: str) -> bool:
    """Copy a data set's description from ``build/lite``; whether it is there.

    That folder is kept in git, and a data set looks the same at every scale: to describe it anew
    takes a processor half a minute or more.
    """
    try:
        record = RecordStore(paths.BUILD / "lite").read_data(dataset)
    except RecordError:
        return False
    if record is not None:
        store.write(record)
    return record is not None


def _read(store: RecordStore, read: Callable[[], AnyRecord | None], path: Path) -> AnyRecord | None:
    """A record, None where there is none; a damaged one is set aside, and said."""
    try:
        return read()
    except RecordError as error:
        aside = store.set_aside(path, str(error))
        print(f"{error}; set aside as {aside}, to be made again", file=sys.stderr)
        return None
