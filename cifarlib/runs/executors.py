"""Who runs the jobs of a sweep: what every executor does, and worker processes of this machine."""

import abc
import contextlib
import multiprocessing
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from cifarlib import extras
from cifarlib.errors import CifarlibError
from cifarlib.runs.budget import Budget
from cifarlib.runs.display import Display
from cifarlib.runs.progress import cores, duration, learn_prices, uses_cuda
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import RecordStore, write_atomically
from cifarlib.runs.worker import DescribeJob, Job, Message, RunJob, Settings, serve


@dataclass
class Outcome:
    """What a sweep did."""

    done: int = 0  # runs; what describes data or network is counted where nothing else is left
    epochs: int = field(default=0, compare=False)  # that ended, of whichever runs
    stopped: list[str] = field(default_factory=list)  # begun and out of time: checkpoint kept
    left: list[str] = field(default_factory=list)  # not begun, since they would not have ended
    seconds_left: float = 0.0  # of this machine, for what was stopped and left
    unavailable: dict[str, str] = field(default_factory=dict)  # condition → what it waits for
    failed: dict[str, str] = field(default_factory=dict)  # condition → error
    retried: dict[str, str] = field(default_factory=dict)  # condition → what its worker died of

    def say_left(self, budget: str, cure: str) -> str:
        """What a budget of time left undone, and how to go on; nothing where all was done."""
        if not (self.stopped or self.left):
            return ""
        lost = ""
        if self.stopped and not (self.done or self.epochs):
            lost, cure = " before an epoch ended, so nothing is kept", "name a longer one"
        return (
            f"the budget of {budget} is used{lost}: {self.done} done, {len(self.stopped)} stopped "
            f"on the way, {len(self.left)} not begun, about {duration(self.seconds_left)} left; "
            f"{cure}"
        )


class Executor(abc.ABC):
    """Has the jobs of one sweep done somewhere, and notes what comes of them."""

    share: int  # workers that have one machine, or GPU, of those that prices are for
    lag = 0.0  # s that runs must end earlier than on this machine, to end in time
    display: Display
    budget: Budget

    def __init__(
        self,
        store: RecordStore,
        device: str = "auto",
        workers: int | None = None,
        threads: int | None = None,
        checkpoint_every: int | None = None,
    ):
        self.store, self.device, self.checkpoint_every = store, device, checkpoint_every
        self.outcome = Outcome()
        self.waiting, self.busy = deque[Job](), deque[Job]()  # busy: with another sweep
        self.told_busy = set[str]()
        self.workers, self.threads = self.choose_workers(workers, threads)

    @abc.abstractmethod
    def choose_workers(self, workers: int | None, threads: int | None) -> tuple[int, int]:
        """Runs at once and threads of each, from what is asked for."""

    @abc.abstractmethod
    def hand_out(self) -> None:
        """Begin waiting jobs, as ``budget`` chooses them, while there is room."""

    @abc.abstractmethod
    def running(self) -> list[Job]:
        """The jobs that are being done."""

    @abc.abstractmethod
    def listen(self) -> None:
        """Wait a moment for messages about running jobs, and ``hear`` them."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End everything at once; a run that is cut off goes on from its checkpoint."""

    def run(
        self, jobs: Sequence[Job], records: Sequence[RunRecord], deadline: float | None = None
    ) -> Outcome:
        """Do jobs, most valuable first, beside the records that are there; what came of them."""
        self.workers = min(self.workers, len(jobs))
        self.waiting.extend(jobs)
        prices = learn_prices(records, self.store, self.device)
        checkpoints = self.checkpoint_every != 0
        self.budget = Budget(deadline, self.store, prices, self.share, checkpoints, self.lag)
        slowness = self.share / self.workers
        self.display = Display(jobs, len(records), prices, self.workers, slowness, self.store)
        try:
            while True:
                self.hand_out()
                if self.budget.is_spent():
                    return self._out_of_time([*self.waiting, *self.busy])
                if self.running():
                    self.listen()
                elif self.busy:
                    time.sleep(1.0)  # all that is left is being trained by another sweep
                    self.waiting.extend(self.busy)
                    self.busy.clear()
                else:
                    return self._out_of_time(self.waiting)
        finally:
            self.stop()
            self.display.close()

    def hear(self, job: Job, message: Message) -> bool:
        """Take down a message about a running job; whether the job has ended with it."""
        match message.kind:
            case "epoch":
                self.outcome.epochs += 1
                self.display.epoch(job, message.epoch, message.accuracy)
            case "images":
                self.display.advance(job, message.images)
            case "note":
                self.display.say(f"{job.name}: {message.text}")
            case "done":
                self.outcome.done += isinstance(job, RunJob)
                self.display.finish(job, message.record)
            case "busy":
                self.put_off(job)
            case "stopped":
                self.outcome.stopped.append(job.name)
                self.display.say(f"{job.name}: {message.text}, its checkpoint is kept")
            case "unavailable":
                self.outcome.unavailable[job.name] = message.text
                self.display.say(f"{job.name}: pending, {message.text}")
            case "starved":
                self.try_again(job, message.text, message.detail)
            case "failed":
                self._fail(job, message.text, message.detail)
            case "fatal":
                raise CifarlibError(message.text)
        has_ended = message.kind not in ("epoch", "images", "note", "checkpoint")
        if has_ended:
            self.display.drop(job)
        return has_ended

    def put_off(self, job: Job) -> None:
        """Leave a job for later that another sweep does, which is said once."""
        self.busy.append(job)
        if job.name not in self.told_busy:
            self.told_busy.add(job.name)
            doing = "training" if isinstance(job, RunJob) else "describing"
            self.display.say(f"{job.name}: another sweep is {doing} it; waiting")

    def try_again(self, job: Job, reason: str, detail: str) -> None:
        """Have a job that its worker did not survive done once more, in more room."""
        if job.name in self.outcome.retried:
            self._fail(job, f"{reason}, at the second try, too", detail)
            return
        self.outcome.retried[job.name] = reason
        self.waiting.appendleft(job)
        self.display.say(f"{job.name}: {reason}; to be tried once more")

    def _fail(self, job: Job, reason: str, detail: str) -> None:
        self.outcome.failed[job.name] = reason
        self.display.say(f"{job.name}: failed, {reason}")
        log = self.store.state / f"{job.path(self.store).stem}.error.txt"
        write_atomically(log, f"{job.name}\n{detail}\n".encode(errors="backslashreplace"))

    def _out_of_time(self, waiting: Iterable[Job]) -> Outcome:
        """The outcome, with what is left; nothing where there was time for everything."""
        stopped, left = [*self.running()], [*waiting]
        only_described = not any(isinstance(job, RunJob) for job in [*stopped, *left])
        counted = RunJob | DescribeJob if only_described else RunJob
        self.outcome.stopped += [job.name for job in stopped if isinstance(job, counted)]
        self.outcome.left = [job.name for job in left if isinstance(job, counted)]
        for job in stopped:
            within = " within an epoch" if isinstance(job, RunJob) else ""
            self.display.say(f"{job.name}: stopped{within}")
        if self.outcome.stopped or self.outcome.left:
            self.outcome.seconds_left = self.display.seconds_left()
        return self.outcome


# ---------------------------------------------------------------------------------------------
# On this machine
# ---------------------------------------------------------------------------------------------

LANES = 8
"""Runs that one process may train at once on a CUDA device; fewer where they fill it."""


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """A new process imports the caller's script again, which would train once more; hide it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    shares_process: bool
    job: Job | None = None


class LocalExecutor(Executor):
    """Worker processes of this machine; for CUDA one process, until that dies.

    A pool of ``concurrent.futures`` would not do: one process that is killed breaks all of it, and
    nothing ends a job that runs.
    """

    def __init__(self, *arguments: Any):
        extras.require("torch", "torchvision")  # once, before every worker process fails for it
        super().__init__(*arguments)
        self.pool: list[_Worker] = []
        self.one_process = self.device == "cuda"

    def choose_workers(self, workers: int | None, threads: int | None) -> tuple[int, int]:
        # By name: runs of one process that fell back to the CPU would share torch's generator.
        self.device = "cuda" if uses_cuda(self.device) else "cpu"
        if self.device == "cuda":
            return workers or LANES, threads or cores()
        threads = threads or 1
        return workers or max(1, cores() // threads), threads

    @property
    def share(self) -> int:  # type: ignore[override]
        """On the processor, what its cores could carry, even if there are fewer workers."""
        if self.device == "cuda":
            return self.workers
        return max(self.workers, cores() // self.threads)

    def hand_out(self) -> None:
        self._fit_pool()
        for worker in self.pool:
            if len(self.running()) >= self._room():
                break
            if worker.job is None:
                if not (job := self.budget.choose(self.waiting)):
                    break
                worker.job = job
                with contextlib.suppress(OSError):  # where it died, we shall hear it
                    worker.connection.send(job)

    def running(self) -> list[Job]:
        return [worker.job for worker in self.pool if worker.job is not None]

    def listen(self) -> None:
        for connection in wait([worker.connection for worker in self.pool], timeout=0.5):
            worker = next(w for w in self.pool if w.connection is connection)
            try:
                message: Message = worker.connection.recv()
            except (EOFError, OSError):
                self._handle_death(worker)
                continue
            assert worker.job is not None
            if self.hear(worker.job, message):
                worker.job = None

    def stop(self) -> None:
        for worker in self.pool:
            with contextlib.suppress(OSError):
                worker.process.terminate() if worker.job else worker.connection.send(None)
        for worker in self.pool:
            self._end(worker)

    def _room(self) -> int:
        """Jobs that may run at once: half as many while one that lost its worker is to end."""
        delicate = {job.name for job in (*self.waiting, *self.running())} & {*self.outcome.retried}
        return max(1, self.workers // 2) if delicate else self.workers

    def _fit_pool(self) -> None:
        """End idle processes that there is no room for, and start what is missing."""
        room = self._room()
        for worker in [worker for worker in self.pool if worker.job is None]:
            if len(self.pool) > room and not worker.shares_process:
                self.pool.remove(worker)
                self._end(worker)
        while len(self.pool) < min(room, len(self.waiting) + len(self.running())):
            self.pool += self._start(self.workers if self.one_process else 1)

    def _start(self, number: int) -> list[_Worker]:
        """Workers of one new process."""
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(number)]
        border = self.budget.last_border
        settings = Settings(self.device, self.threads, self.checkpoint_every, border)
        arguments = ([theirs for _, theirs in pipes], self.store.folder, settings)
        process = context.Process(target=serve, args=arguments, daemon=True)
        with _without_interrupts(), _without_main():
            process.start()
        for _, theirs in pipes:
            theirs.close()
        return [_Worker(process, ours, shares_process=number > 1) for ours, _ in pipes]

    def _handle_death(self, worker: _Worker) -> None:
        """Take a worker whose process is gone out of the pool, and see to its job."""
        self.pool.remove(worker)
        if worker.shares_process:
            self.one_process = False
            worker.process.kill()  # if one thread is gone, the others will not do well
        worker.process.join()
        if (job := worker.job) is None:
            return
        self.display.drop(job)
        if worker.shares_process:
            self.waiting.appendleft(job)  # whose fault it was shows with a process for each
            return
        code = worker.process.exitcode or 0
        reason = f"its worker died ({code})"
        if code < 0:
            memory = ", as happens where memory runs out" if code == -signal.SIGKILL else ""
            reason = f"its worker was killed (signal {-code}){memory}"
        self.try_again(job, reason, reason)

    def _end(self, worker: _Worker) -> None:
        with contextlib.suppress(OSError):
            worker.connection.send(None)
        worker.process.join(timeout=5 if self.budget.last_border is None else 1)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


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
