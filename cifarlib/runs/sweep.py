"""The sweep: makes the records that are missing, on local worker processes or elsewhere.

The sweep itself only hands out jobs and listens; it never imports torch. Runs are independent,
so killing it loses at most the epochs since each running run's last checkpoint, and the same
command goes on.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from cifarlib.errors import RecordError
from cifarlib.runs import provenance
from cifarlib.runs.executors import Executor, LocalExecutor, Outcome
from cifarlib.runs.progress import check_device
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import RecordStore
from cifarlib.runs.worker import DescribeJob, Job, RunJob
from cifarlib.study import Condition

logger = logging.getLogger(__name__)


def sweep(
    conditions: Sequence[Condition],
    store: RecordStore,
    *,
    device: str = "auto",
    workers: int | None = None,
    threads: int | None = None,
    checkpoint_every: int | None = None,
    deadline: float | None = None,
    executor: Callable[..., Executor] | None = None,
    keep_weights: bool = False,
    datasets: Sequence[str] = (),
) -> Outcome:
    """Make the missing records of conditions, and what describes their data set and network.

    Runs are taken in the conditions' order, every one of the first seed before the next seed's.
    ``checkpoint_every`` counts epochs, 0 is never, None every epoch that was worth it.
    By ``deadline``, a time of the monotonic clock, the sweep has ended: it begins no run that
    would not end by then while there is one that would, and stops long ones at an epoch border,
    with a checkpoint from which the next sweep goes on.
    ``executor`` makes what has the runs done, from the arguments of ``Executor``. With
    ``keep_weights`` the weights of every run that is trained are kept
    (``RecordStore.weights_path``). ``datasets`` are described, too.
    A damaged record is set aside and its run trained again; one that cannot be read at this moment
    ends the sweep. A run that another sweep is training is waited for. Raises ``CifarlibError``
    where nothing can go on (no data, disk full) and ``KeyboardInterrupt`` on Ctrl-C, in both cases
    with every finished record in place.
    """
    check_device(device)
    provenance.commit()  # what it finds wrong is said here, not by every worker
    jobs, records = _take_stock(conditions, store, keep_weights, datasets)
    if not jobs:
        print("nothing is missing", file=sys.stderr, flush=True)
        return Outcome()
    try:
        for folder in (store.runs, store.state):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(
            f"{store.folder} cannot be written ({error.strerror}); name another place with --out"
        ) from error
    chosen = (executor or LocalExecutor)(store, device, workers, threads, checkpoint_every)
    return chosen.run(jobs, records, deadline)


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
    named = dict.fromkeys([*datasets, *(c.config.data.name for c in conditions)])
    described = [*(DescribeJob(f"data set {n}", n) for n in named), DescribeJob("residual network")]
    jobs: list[Job] = [job for job in described if not _read(job, store)]
    seeds = list(dict.fromkeys(c.config.seed for c in conditions))
    runs: dict[str, RunJob] = {}
    for condition in sorted(conditions, key=lambda c: seeds.index(c.config.seed)):
        name = condition.seeded_name if len(seeds) > 1 else condition.name
        run = RunJob(condition.run_id, name, condition.config, keep_weights)
        runs.setdefault(run.run_id, run)
    records = []
    for run in runs.values():
        if record := _read(run, store):
            records.append(record)
            store.clear_state(run.run_id)  # left where a worker died right behind its record
        else:
            jobs.append(run)
    return jobs, records


def _read(job: Job, store: RecordStore) -> Any:
    """A job's record, None where there is none; a damaged one is set aside, and said."""
    try:
        return job.read(store)
    except RecordError as error:
        aside = store.set_aside(job.path(store), error)
        logger.warning("%s; set aside as %s, to be made again", error, aside)
        return None
