"""Who carries the jobs of a sweep out: what every executor does, and processes of this machine."""

import abc
import contextlib
import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from cifarlib import extras
from cifarlib.errors import CifarlibError
from cifarlib.runs.budget import Budget
from cifarlib.runs.progress import cores, duration, uses_cuda
from cifarlib.runs.progress_line import ProgressLine
from cifarlib.runs.store import RecordStore, write_atomically
from cifarlib.runs.worker import Job, Message, RunJob, serve, serve_lanes


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

    def say_left(self, budget: str) -> str:
        """What a budget of time left undone; nothing where all was done."""
        if not (self.stopped or self.left):
            return ""
        return (
            f"the budget of {budget} is used: {self.done} done, {len(self.stopped)} stopped on the "
            f"way, {len(self.left)} not begun, about {duration(self.seconds_left)} left"
        )


class Executor(abc.ABC):
    """Has the jobs of one sweep carried out somewhere, and notes what comes of them."""

    device: str  # auto, cpu or cuda: where runs train
    workers: int  # runs at once
    share: int  # workers that have one machine, or card, of those that prices are for
    second_try = "with half the workers"  # of a job that its worker did not survive
    lag = 0.0  # s that runs must end earlier than on this machine, to end in time

    display: ProgressLine
    budget: Budget
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
        display: ProgressLine,
        budget: Budget,
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
            case "checkpoint":
                return False
            case "epoch":
                self.display.epoch(job, message.epoch, message.accuracy)
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
        self.display.drop(job, message.kind)
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


# ---------------------------------------------------------------------------------------------
# On this machine
# ---------------------------------------------------------------------------------------------

LANES = 8
"""Runs that one process may train at once on a CUDA device; fewer where they fill it."""


def default_workers(device: str, threads: int | None = None) -> tuple[int, int]:
    """Workers and threads of each: one thread a core, or lanes of one process for CUDA."""
    if uses_cuda(device):
        return LANES, threads or cores()
    threads = threads or 1
    return max(1, cores() // threads), threads


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    connection: Connection
    job: Job | None = None
    shares_process: bool = False


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
        extras.require("torch", "torchvision")  # once, before every worker process fails for it
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
