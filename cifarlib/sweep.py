"""The sweep: makes the records that are missing, on local worker processes.

The sweep itself only hands out jobs and listens; it never imports torch. Runs are independent,
so killing it loses at most the epochs since each running run's last checkpoint, and the same
command goes on.
"""

import abc
import contextlib
import multiprocessing
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tqdm import tqdm

from cifarlib.config import Condition, RunConfig
from cifarlib.errors import CifarlibError, RecordError
from cifarlib.progress import Prices, cores, duration
from cifarlib.records import AnyRecord, RecordStore, RunRecord, write_atomically
from cifarlib.worker import (
    SAFETY,
    DataJob,
    Job,
    Message,
    NetworkJob,
    RunJob,
    checkpoint_epoch,
    serve,
    serve_lanes,
)

# ---------------------------------------------------------------------------------------------
# Making the records
# ---------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a sweep did."""

    done: int = 0
    stopped: list[str] = field(default_factory=list)  # begun and out of time: checkpoint kept
    left: list[str] = field(default_factory=list)  # not begun, since they would not have ended
    seconds_left: float = 0.0  # of this machine, for what was stopped and left
    unavailable: dict[str, str] = field(default_factory=dict)  # condition → what it waits for
    failed: dict[str, str] = field(default_factory=dict)  # condition → error
    retried: dict[str, str] = field(default_factory=dict)  # condition → what its worker died of


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    connection: Connection
    job: Job | None = None
    shares_process: bool = False


LANES = 8
"""Runs that one process may train at once on a CUDA device; fewer where they fill it."""


def uses_cuda(device: str) -> bool:
    """Whether workers would train on a CUDA device, as far as can be told without torch."""
    return device == "cuda" or (device == "auto" and Path("/dev/nvidiactl").exists())


def default_workers(device: str, threads: int | None = None) -> tuple[int, int]:
    """Workers and threads of each: one thread a core, or lanes of one process for CUDA."""
    if uses_cuda(device):
        return LANES, threads or cores()
    threads = threads or 1
    return max(1, cores() // threads), threads


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
    executor: "Callable[..., Executor] | None" = None,
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
    A damaged record is set aside and its run trained again. A run that another sweep is training
    is waited for. Raises ``CifarlibError`` where nothing can go on (no data, disk full) and
    ``KeyboardInterrupt`` on Ctrl-C, in both cases with every finished record in place.
    """
    jobs, records = _take_stock(conditions, store)
    if not jobs:
        print("nothing is missing", file=sys.stderr, flush=True)
        return Outcome()
    _make_folders(store)
    crew = (executor or LocalExecutor)(store, device, workers, threads, checkpoint_every)
    crew.workers = min(crew.workers, len(jobs))
    display = _Display(jobs, records, crew, store)
    budget = _Budget(deadline, store, display.prices, crew.share, checkpoint_every != 0)
    try:
        return crew.run(jobs, display, budget, watch)
    finally:
        display.close()


def _make_folders(store: RecordStore) -> None:
    try:
        for folder in (store.runs, store.state):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(
            f"{store.folder} cannot be written ({error.strerror}); name another place with --out"
        ) from error


def _take_stock(
    conditions: Sequence[Condition], store: RecordStore
) -> tuple[list[Job], list[RunRecord]]:
    """What is still to be made, the most valuable first, and the records that are there.

    The study's own order is that of value, and a first seed of every condition is worth more
    than a further one of any.
    """
    jobs: list[Job] = []
    for dataset in dict.fromkeys(c.config.data.name for c in conditions):
        if not _read(store, partial(store.read_data, dataset), store.data_path(dataset)):
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
        else:
            seed = f" (seed {condition.config.seed})" if len(seeds) > 1 else ""
            jobs.append(RunJob(name, condition.name + seed, condition.config))
    return jobs, records


def _read(store: RecordStore, read: Callable[[], AnyRecord | None], path: Path) -> AnyRecord | None:
    """A record, None where there is none; a damaged one is set aside, and said."""
    try:
        return read()
    except RecordError as error:
        aside = store.set_aside(path, str(error))
        print(f"{error}; set aside as {aside}, to be made again", file=sys.stderr)
        return None


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block; processes that are started in it never see one."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    noticed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: noticed.append(number))
    resource_tracker.ensure_running()  # else it comes with the first process, and lifts the block
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which is inherited
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if noticed:
            raise KeyboardInterrupt


class Executor(abc.ABC):
    """Has the jobs of one sweep carried out somewhere, and notes what comes of them."""

    workers: int  # runs at once
    share: int  # workers that have one machine, or card, of those that prices are for
    second_try = "with half the workers"  # of a job that its worker did not survive

    display: "_Display"
    budget: "_Budget"
    watch: Callable[[Message], None] | None

    def __init__(self, store: RecordStore):
        self.store = store
        self.outcome = Outcome()
        self.waiting, self.busy = deque[Job](), deque[Job]()  # busy: with another sweep

    @property
    @abc.abstractmethod
    def slowness(self) -> float:
        """Seconds that this sweep takes for a second's work of this whole machine."""

    @abc.abstractmethod
    def start(self) -> None:
        """Make ready for jobs."""

    @abc.abstractmethod
    def hand_out(self) -> bool:
        """Begin waiting jobs, as ``budget`` chooses them; whether there is room for any."""

    @abc.abstractmethod
    def running(self) -> list[Job]:
        """The jobs that are being carried out."""

    @abc.abstractmethod
    def listen(self) -> None:
        """Wait a moment for messages about running jobs, and ``hear`` them."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End everything at once; a run that is cut off goes on from its checkpoint."""

    def run(
        self,
        jobs: Sequence[Job],
        display: "_Display",
        budget: "_Budget",
        watch: Callable[[Message], None] | None = None,
    ) -> Outcome:
        """Carry out jobs, most valuable first; what came of them."""
        self.display, self.budget, self.watch = display, budget, watch
        self.waiting.extend(jobs)
        try:
            self.start()
            while True:
                has_room = self.hand_out()
                if budget.is_spent():
                    return self._out_of_time([*self.waiting, *self.busy])
                if self.running():
                    self.listen()
                elif self.busy:
                    time.sleep(1.0)  # all that is left is being trained by another sweep
                    self.waiting.extend(self.busy)
                    self.busy.clear()
                elif has_room:
                    return self._out_of_time(self.waiting)
        finally:
            self.stop()

    def hear(self, job: Job, message: Message) -> bool:
        """Take down a message about a running job; whether the job has ended with it."""
        if self.watch is not None:
            self.watch(message)
        match message.kind:
            case "epoch" | "checkpoint":
                return False
            case "images":
                self.display.advance(job, message.images)
                return False
            case "note":
                self.display.say(f"{job.name}: {message.text}")
                return False
            case "done":
                self.outcome.done += 1
                self.display.finish(job, message.record)
            case "busy":
                self.busy.append(job)
            case "stopped":
                self.outcome.stopped.append(job.name)
                self.display.say(f"{job.name}: {message.text}, its checkpoint is kept")
            case "unavailable":
                self.outcome.unavailable[job.name] = message.text
                self.display.say(f"{job.name}: pending, {message.text}")
            case "starved":
                self.try_again(job, message.text, message.detail)
            case "failed":
                self.fail(job, message.text, message.detail)
            case "fatal":
                raise CifarlibError(message.text)
        return True

    def try_again(self, job: Job, reason: str, detail: str) -> None:
        """Have a job that its worker did not survive carried out once more, in more room."""
        if job.name in self.outcome.retried:
            self.fail(job, f"{reason}, at the second try, too", detail)
            return
        self.outcome.retried[job.name] = reason
        self.waiting.appendleft(job)
        self.display.say(f"{job.name}: {reason}; to be tried once more, {self.second_try}")

    def fail(self, job: Job, reason: str, detail: str) -> None:
        """Note that a job cannot be carried out."""
        self.outcome.failed[job.name] = reason
        self.display.say(f"{job.name}: failed, {reason}")
        if isinstance(job, RunJob):
            log = self.store.state / f"{job.run_id}.error.txt"
            write_atomically(log, f"{job.name}\n{detail}\n".encode())

    def _out_of_time(self, waiting: Iterable[Job]) -> Outcome:
        """The outcome, with what is left; nothing where there was time for everything."""
        for job in self.running():
            self.outcome.stopped.append(job.name)
            self.display.say(f"{job.name}: stopped within an epoch")
        self.outcome.left = [job.name for job in waiting]
        if self.outcome.stopped or self.outcome.left:
            self.outcome.seconds_left = self.display.seconds_left()
        return self.outcome


class LocalExecutor(Executor):
    """Worker processes of this machine, the jobs they have, and what comes back."""

    def __init__(
        self,
        store: RecordStore,
        device: str,
        workers: int | None,
        threads: int | None,
        checkpoint_every: int | None,
    ):
        super().__init__(store)
        many, each = default_workers(device, threads)
        self.workers, self.threads = workers or many, threads or each
        self.device, self.checkpoint_every = device, checkpoint_every
        self.crew: list[_Worker] = []

    @property
    def share(self) -> int:
        """On the processor, what its cores could carry, even if there are fewer workers."""
        return self.workers if uses_cuda(self.device) else max(1, cores() // self.threads)

    @property
    def slowness(self) -> float:
        """A part of the machine takes longer."""
        return max(1.0, cores() / (self.workers * self.threads))

    @property
    def arguments(self) -> tuple[object, ...]:
        """What a worker process is told."""
        border = self.budget.last_border
        return (self.store.folder, self.device, self.threads, self.checkpoint_every, border)

    def start(self) -> None:
        if uses_cuda(self.device) and self.workers > 1:
            self.crew = self._start_lanes()
        else:
            self.crew = [self._start_worker() for _ in range(self.workers)]

    def hand_out(self) -> bool:
        self._fit_crew()
        for worker in self.crew:
            if len(self.running()) >= self._room():
                break
            if worker.job is None and (job := self.budget.choose(self.waiting)):
                worker.job = job
                with contextlib.suppress(OSError):  # where it died, we shall hear it
                    worker.connection.send(job)
        return True

    def running(self) -> list[Job]:
        return [worker.job for worker in self.crew if worker.job is not None]

    def listen(self) -> None:
        for connection in wait([worker.connection for worker in self.crew], timeout=0.5):
            worker = next(w for w in self.crew if w.connection is connection)
            try:
                message: Message = worker.connection.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            assert worker.job is not None
            if self.hear(worker.job, message):
                worker.job = None

    def _start_worker(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, *self.arguments), daemon=True)
        with _without_interrupts():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _start_lanes(self) -> list[_Worker]:
        """One process with a lane for each worker."""
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(self.workers)]
        connections = [theirs for _, theirs in pipes]
        process = context.Process(
            target=serve_lanes, args=(connections, *self.arguments), daemon=True
        )
        with _without_interrupts():
            process.start()
        for connection in connections:
            connection.close()
        return [_Worker(process, ours, shares_process=True) for ours, _ in pipes]

    def _room(self) -> int:
        """Jobs that may run at once: half as many while one that lost its worker is to end."""
        delicate = {job.name for job in (*self.waiting, *self.running())} & {*self.outcome.retried}
        return max(1, self.workers // 2) if delicate else self.workers

    def _fit_crew(self) -> None:
        """End idle processes that there is no room for, and start what is missing."""
        room = self._room()
        for worker in [worker for worker in self.crew if worker.job is None]:
            if len(self.crew) > room and not worker.shares_process:
                self.crew.remove(worker)
                self._end(worker)
        while len(self.crew) < min(room, len(self.waiting) + len(self.running())):
            self.crew.append(self._start_worker())

    def _bury(self, worker: _Worker) -> None:
        """Take a worker whose process is gone out of the crew, and see to its job."""
        job = worker.job
        self.crew.remove(worker)
        if worker.shares_process:
            worker.process.kill()  # if one thread is gone, the others will not do well
        worker.process.join()
        if job is not None and worker.shares_process:
            self.waiting.appendleft(job)  # whose fault it was shows with a process for each
        elif job is not None:
            reason = _cause_of_death(worker.process.exitcode or 0)
            self.try_again(job, reason, reason)

    def stop(self) -> None:
        for worker in self.crew:
            if worker.job is None:
                with contextlib.suppress(OSError):
                    worker.connection.send(None)
            else:
                worker.process.terminate()
        for worker in self.crew:
            self._end(worker)

    def _end(self, worker: _Worker) -> None:
        """See a worker that has nothing to do off."""
        with contextlib.suppress(OSError):
            worker.connection.send(None)
        worker.process.join(timeout=1 if self.budget.is_limited else 5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _cause_of_death(code: int) -> str:
    """What is to be said of a process with this exit code."""
    if code == -signal.SIGKILL:
        return "its worker was killed (signal 9), as happens where memory runs out"
    return f"its worker was killed (signal {-code})" if code < 0 else f"its worker died ({code})"


# ---------------------------------------------------------------------------------------------
# In slices of time
# ---------------------------------------------------------------------------------------------

STOPPING = 1.5  # s before the deadline at which workers are ended, wherever they are
BORDER = 3.0  # s before the deadline by which a run's last epoch must have ended


class _Budget:
    """Which job to take next, so that a sweep ends by its deadline with little lost."""

    def __init__(
        self,
        deadline: float | None,
        store: RecordStore,
        prices: Prices,
        share: int,
        checkpoints: bool,
    ):
        self.deadline = deadline
        self.store = store
        self.prices = prices
        self.share = share  # workers that have the machine together
        self.checkpoints = checkpoints

    @property
    def is_limited(self) -> bool:
        return self.deadline is not None

    @property
    def last_border(self) -> float | None:
        """By when a worker should have left its run, on the monotonic clock."""
        return None if self.deadline is None else self.deadline - BORDER

    def is_spent(self) -> bool:
        """Whether it is time to stop whatever still runs."""
        return self.deadline is not None and time.monotonic() >= self.deadline - STOPPING

    def choose(self, waiting: deque[Job]) -> Job | None:
        """Take the first job that can end in time out of those waiting, None where none can.

        Where no run can end, one that can get an epoch further: one that is begun already, else
        the first.
        """
        if not waiting:
            return None
        if self.deadline is None:
            return waiting.popleft()
        seconds = self.deadline - BORDER - time.monotonic()
        chosen = next((job for job in waiting if self._whole(job) <= seconds), None)
        if chosen is None and self.checkpoints:
            begun_first = sorted(waiting, key=lambda job: self._epochs_done(job) == 0)
            chosen = next((job for job in begun_first if self._epoch(job) <= seconds), None)
        if chosen is not None:
            waiting.remove(chosen)
        return chosen

    def _whole(self, job: Job) -> float:
        """Seconds that a worker needs for the rest of a job; descriptions are always tried."""
        if not isinstance(job, RunJob):
            return 0.0
        return self._epoch(job) * (job.config.epochs - self._epochs_done(job))

    def _epoch(self, job: Job) -> float:
        if not isinstance(job, RunJob):
            return 0.0
        return SAFETY * self.prices.seconds(job.config) * self.share / job.config.epochs

    def _epochs_done(self, job: Job) -> int:
        if not isinstance(job, RunJob):
            return 0
        return checkpoint_epoch(self.store.state / f"{job.run_id}.pt")


# ---------------------------------------------------------------------------------------------
# Showing how far it is
# ---------------------------------------------------------------------------------------------


class _Display:
    """One line for the whole sweep on a terminal; a plain line for each run elsewhere."""

    def __init__(
        self,
        jobs: Sequence[Job],
        records: Sequence[RunRecord],
        crew: Executor,
        store: RecordStore,
    ):
        runs = [job for job in jobs if isinstance(job, RunJob)]
        self.finished, self.total = len(records), len(records) + len(runs)
        self.slowness = crew.slowness
        self.prices = Prices(records)
        self.left = {job.run_id: job.config for job in runs}
        self.images: Counter[str] = Counter()  # trained here, by run id
        self.before = {  # trained by earlier sweeps
            job.run_id: checkpoint_epoch(store.state / f"{job.run_id}.pt")
            * job.config.data.train_size
            for job in runs
        }
        self.started, self.shown = time.monotonic(), 0.0
        self.bar = None
        if sys.stderr.isatty():
            layout = "{percentage:3.0f}%|{bar}| {desc}"
            self.bar = tqdm(total=self.total, initial=self.finished, bar_format=layout)
            self._refresh()
        else:
            self.say(
                f"{self.finished} of {self.total} runs are recorded; {len(runs)} to go, workers: "
                f"{crew.workers}, about {duration(self.seconds_left())}"
            )

    def advance(self, job: Job, images: int) -> None:
        if isinstance(job, RunJob):
            self.images[job.run_id] += images
        self._refresh()

    def finish(self, job: Job, record: AnyRecord | None) -> None:
        if not isinstance(record, RunRecord):
            self.say(f"{job.name}: described")
            return
        self.finished += 1
        self.left.pop(record.run_id, None)
        self.prices.add(record)
        if self.bar is not None:
            self.bar.update()
            self._refresh()
        else:
            seconds = record.timing.train_s + record.timing.evaluation_s
            self.say(
                f"[{self.finished}/{self.total}] {job.name}: test {record.accuracy('test'):.2f} % "
                f"after epoch {record.reported_epoch}, {seconds:.1f} s, "
                f"{record.timing.images_per_s:.0f} images/s, {duration(self.seconds_left())} left"
            )

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def seconds_left(self) -> float:
        """Seconds of this sweep for all that is not recorded yet."""
        return self.slowness * sum(
            self.prices.seconds(config)
            * (1 - min(1.0, (self.before[name] + self.images[name]) / _images(config)))
            for name, config in self.left.items()
        )

    def _refresh(self) -> None:
        if self.bar is None or time.monotonic() - self.shown < 0.2:
            return
        self.shown = time.monotonic()
        rate = self.images.total() / max(1e-9, self.shown - self.started)
        self.bar.set_description_str(
            f"{self.finished}/{self.total} runs, {rate:.0f} images/s, "
            f"{duration(self.seconds_left())} left"
        )


def _images(config: RunConfig) -> int:
    return config.epochs * config.data.train_size
