"""The sweep on a Ray cluster: a run is a task, carried out wherever there is room for it.

Only the sweep's own machine has the build folder and the data set. Nodes get the data set's files
through Ray and hand back messages, checkpoints and records, as the yields of a generator task;
what a lost node was training, others take up from its last checkpoint. Ray is optional:
``pip install '.[ray]'``.
"""

import contextlib
import os
import pickle
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cifarlib import __version__, data, extras
from cifarlib.config import ENGINE, RunConfig
from cifarlib.errors import RunError
from cifarlib.gpu.card_share import share
from cifarlib.runs.executors import LANES, Executor, Outcome
from cifarlib.runs.locks import lock
from cifarlib.runs.progress import cores
from cifarlib.runs.store import AnyRecord, RecordStore, remove_leftovers, write_atomically
from cifarlib.runs.worker import DataJob, Job, Message, NetworkJob, RunJob

PATIENCE = 60.0  # s without any node that could carry out a run, or for a message to come over
SILENCE = 120.0  # s without a message of any task, after which that is said
LOSSES = 3  # of a run, without an epoch gained in between, after which it is given up
CARD_MEMORY = 24e9  # bytes; Ray does not say how much a node's card has, so a small one is meant
RUNS_PER_CARD = 2  # of the paper's batch size, for estimates

# ---------------------------------------------------------------------------------------------
# On the sweep's machine
# ---------------------------------------------------------------------------------------------


@dataclass
class _Task:
    job: Job
    generator: Any  # ray.ObjectRefGenerator: the messages
    cpus: float
    gpus: float
    lock: contextlib.ExitStack


class RayExecutor(Executor):
    """The nodes of a Ray cluster, the tasks they have, and what comes back.

    A task declares ``threads`` CPUs (one unless given), on GPUs also its share of a card. Raises
    ``RunError`` where there is no Ray, no cluster, no node with room, or another cifarlib.
    """

    second_try = "where there is room"
    lag = 9.0  # a checkpoint has to come over, then the cluster to be left

    def __init__(
        self,
        store: RecordStore,
        device: str,
        workers: int | None,
        threads: int | None,
        checkpoint_every: int | None,
        *,
        address: str | None = None,
    ):
        super().__init__(store)
        self.threads, self.limit = threads or 1, workers
        self.checkpoint_every = checkpoint_every
        self.ray, self.connected_here = connect(address)
        self.carry_out = self.ray.remote(_make_task())
        self.device = self._choose_device(device)
        cpus, gpus = self._room()
        runs = cpus / self.threads
        if self.device == "cuda":
            runs = min(runs, gpus * RUNS_PER_CARD)
        self.workers = min(int(runs), workers or int(runs))
        if not self.workers:
            self._disconnect()
            raise RunError(
                f"no node of the cluster has {self.threads} CPUs for a run; "
                "ask for fewer with --threads"
            )
        self.share = 1 if self.device == "cuda" else max(1, cores() // self.threads)
        self.tasks: list[_Task] = []
        self.files: dict[str, dict[str, Any]] = {}  # data set → file → Ray's reference to it
        self.losses: Counter[str] = Counter()
        self.last_room = self.last_word = time.monotonic()

    @property
    def slowness(self) -> float:
        """Prices are a whole machine's, which ``share`` workers have together."""
        return self.share / self.workers

    def run(self, *arguments: Any, **settings: Any) -> Outcome:
        """As any executor; a cluster that is gone gets a sentence."""
        try:
            return super().run(*arguments, **settings)
        except self.ray.exceptions.RayError as error:
            raise RunError(
                f"the Ray cluster does not answer any more ({_first_sentence(error)}); see to it "
                "and run the same command again: nothing that was finished is lost"
            ) from error

    def start(self) -> None:
        """Nothing: tasks find their processes themselves."""

    def hand_out(self) -> bool:
        cpus, gpus = self._room()
        if not cpus:
            self._wait_for_nodes()
            return False
        self.last_room = time.monotonic()
        while self.limit is None or len(self.tasks) < self.limit:
            job = self.budget.choose(self.waiting)
            if job is None:
                break
            needs = self._needs(job)
            used = sum(task.cpus for task in self.tasks), sum(task.gpus for task in self.tasks)
            if used[0] + needs[0] > cpus or used[1] + needs[1] > gpus:
                self.waiting.appendleft(job)
                break
            self._begin(job, *needs)
        return True

    def running(self) -> list[Job]:
        return [task.job for task in self.tasks]

    def listen(self) -> None:
        generators = [task.generator for task in self.tasks]
        ready, _ = self.ray.wait(generators, num_returns=1, timeout=0.5, fetch_local=False)
        if ready:
            self.last_word = time.monotonic()
        elif time.monotonic() - self.last_word > SILENCE:
            self.last_word = time.monotonic()
            self.display.say(
                f"no word from {len(generators)} tasks for {SILENCE:.0f} s: the cluster may be "
                "busy with other work (`ray status` says); still waiting"
            )
        for generator in ready:
            task = next(task for task in self.tasks if task.generator is generator)
            self.tasks.remove(task)
            self.tasks.append(task)  # so that the others are looked at first
            self._listen_to(task)

    def stop(self) -> None:
        for task in list(self.tasks):
            self._end(task, cancel=True)
        self._disconnect()

    # -- the cluster --------------------------------------------------------------------------

    def _choose_device(self, device: str) -> str:
        gpus = sum(node["Resources"].get("GPU", 0) for node in self.ray.nodes() if node["Alive"])
        if device == "cuda" and not gpus:
            self._disconnect()
            raise RunError(
                "device cuda was asked for, but no node of the cluster has a GPU; use --device cpu"
            )
        return "cuda" if gpus and device != "cpu" else "cpu"

    def _room(self) -> tuple[float, float]:
        """CPUs and GPUs of the living nodes on which a run has room, in whole runs' CPUs."""
        cpus = gpus = 0.0
        for node in self.ray.nodes():
            own = node["Resources"]
            runs = own.get("CPU", 0) // self.threads
            if node["Alive"] and runs and (self.device == "cpu" or own.get("GPU", 0)):
                cpus += runs * self.threads
                gpus += own.get("GPU", 0)
        return cpus, gpus

    def _wait_for_nodes(self) -> None:
        if time.monotonic() - self.last_room > PATIENCE:
            raise RunError(
                "no node of the cluster is left that could carry out a run; start one and run the "
                "same command again: nothing that was finished is lost"
            )
        if not self.tasks:
            time.sleep(0.5)

    def _disconnect(self) -> None:
        if self.connected_here:
            self.ray.shutdown()

    # -- tasks --------------------------------------------------------------------------------

    def _needs(self, job: Job) -> tuple[float, float]:
        """CPUs and GPUs that a task declares; descriptions are made on the processor."""
        if self.device == "cpu" or not isinstance(job, RunJob):
            return float(self.threads), 0.0
        alone = job.name in self.outcome.retried  # for the card's memory may have run out
        return float(self.threads), 1.0 if alone else gpu_share(job.config)

    def _begin(self, job: Job, cpus: float, gpus: float) -> None:
        """Have a task carried out, unless another sweep is at it or has been."""
        held = contextlib.ExitStack()
        if not held.enter_context(lock(self.store.state / f"{self._stem(job)}.lock")):
            self.busy.append(job)
            return
        if record := self._read(job):
            held.close()
            self.hear(job, Message("done", record=record))
            return
        checkpoint = None
        if isinstance(job, RunJob):
            path = self._checkpoint(job)
            remove_leftovers(path)
            checkpoint = path.read_bytes() if path.is_file() else None
        left = None if (end := self.budget.last_border) is None else end - time.monotonic()
        generator = self.carry_out.options(
            name=job.name,
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=0,  # it is taken up here, from a later checkpoint
            scheduling_strategy="SPREAD",
        ).remote(
            (__version__, ENGINE),
            pickle.dumps(job),  # opened once the node is known to have the same classes
            self._put_files(job),
            checkpoint,
            self.device if gpus else "cpu",
            self.threads,
            self.checkpoint_every,
            None if left is None else time.time() + left,
        )
        self.tasks.append(_Task(job, generator, cpus, gpus, held))

    def _stem(self, job: Job) -> str:
        """The name of a job's files, and of the lock that whoever makes them holds."""
        match job:
            case RunJob():
                return job.run_id
            case DataJob():
                return self.store.data_path(job.dataset).stem
        return self.store.network_path.stem

    def _read(self, job: Job) -> AnyRecord | None:
        match job:
            case RunJob():
                return self.store.read_run(job.run_id)
            case DataJob():
                return self.store.read_data(job.dataset)
        return self.store.read_network()

    def _checkpoint(self, job: RunJob) -> Path:
        return self.store.state / f"{job.run_id}.pt"

    def _put_files(self, job: Job) -> tuple[str, dict[str, Any]] | None:
        """A job's data set, and Ray's references to its files, which are put there once."""
        if isinstance(job, NetworkJob):
            return None
        import numpy as np

        name = job.dataset if isinstance(job, DataJob) else job.config.data.name
        if name not in self.files:
            folder = data.find(name)
            try:
                self.files[name] = {
                    file: self.ray.put(np.fromfile(folder / file, dtype=np.uint8))
                    for file in data.DATASETS[name].files
                }
            except self.ray.exceptions.RayError as error:
                raise RunError(
                    f"Ray's object store has no room for {name} ({_first_sentence(error)}); give "
                    "this machine's `ray start` more with --object-store-memory"
                ) from error
        return name, self.files[name]

    def _listen_to(self, task: _Task) -> None:
        errors = self.ray.exceptions
        try:
            said = self.ray.get(next(task.generator), timeout=self._patience())
        except StopIteration:
            self._lose(task, "it ended without a word")
        except errors.RayTaskError as error:
            self._end(task, cancel=True)
            self.fail(task.job, str(error).strip().splitlines()[-1], str(error))
        except errors.RayError as error:
            self._lose(task, str(error))
        else:
            if isinstance(said, str):
                raise RunError(said)
            self._take(task, said)

    def _patience(self) -> float:
        """Seconds that a message may take to come over, none of them past the sweep's deadline."""
        if self.budget.deadline is None:
            return PATIENCE
        return max(1.0, min(PATIENCE, self.budget.deadline - self.lag / 2 - time.monotonic()))

    def _take(self, task: _Task, message: Message) -> None:
        """Keep what a message brings, then hear it."""
        job = task.job
        if message.kind == "checkpoint" and isinstance(job, RunJob):
            write_atomically(self._checkpoint(job), message.content)
            self.losses.pop(job.name, None)
        elif message.kind == "done" and message.record is not None:
            if isinstance(job, RunJob) and message.content:
                write_atomically(self.store.weights_path(job.run_id), message.content)
            self.store.write(message.record)
            if isinstance(job, RunJob):
                self.store.clear_state(job.run_id)
        if self.hear(job, message):
            self._end(task)

    def _lose(self, task: _Task, reason: str) -> None:
        """Have a run taken up by others, or give it up where it is lost again and again."""
        job = task.job
        self._end(task, cancel=True)
        self.losses[job.name] += 1
        if self.losses[job.name] < LOSSES:
            self.waiting.appendleft(job)
            self.display.say(f"{job.name}: its node or its process is lost; to be taken up again")
        else:
            self.fail(job, f"its node or its process was lost {LOSSES} times", reason)

    def _end(self, task: _Task, *, cancel: bool = False) -> None:
        self.tasks.remove(task)
        task.lock.close()
        if cancel:
            with contextlib.suppress(Exception):  # there may be nothing left to cancel
                self.ray.cancel(task.generator, force=True)


def gpu_share(config: RunConfig) -> float:
    """The part of a card that a run declares: at least so much that ``LANES`` runs fill one."""
    return round(max(1 / LANES, share(config, CARD_MEMORY)), 3)


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0]


QUICK = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # a minute for each of 20, where something else listens
    "RAY_py_gcs_connect_timeout_s": "5",
}
"""What Ray is told through the environment, unless it has been told already."""


def connect(address: str | None) -> tuple[ModuleType, bool]:
    """Ray, connected to a cluster, and whether it was this call that connected it.

    Without an address it is ``RAY_ADDRESS``, or the cluster that this machine is a node of.
    Raises ``RunError`` where there is no Ray or no cluster.
    """
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)
    extras.require("ray")
    import ray

    if ray.is_initialized():
        return ray, False
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    if address != "auto":
        _knock(address, ray)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(
            f"there is no Ray cluster to join at {address} ({_first_sentence(error)}); "
            "`ray start --head` on one machine begins one, and this machine must be a node of it"
        ) from error
    return ray, True


def _knock(address: str, ray: ModuleType) -> None:
    """See that somebody listens at HOST:PORT, which takes Ray itself long to find out."""
    host, _, port = address.rpartition(":")
    try:
        if not host or "/" in host:
            raise ValueError("it is not HOST:PORT")
        if host in ("localhost", "127.0.0.1"):
            host = ray.util.get_node_ip_address()  # as Ray does
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise RunError(
            f"--address {address}: no Ray cluster answers there ({error}); write HOST:PORT as "
            "`ray start --head` says it"
        ) from error


# ---------------------------------------------------------------------------------------------
# On a node
# ---------------------------------------------------------------------------------------------


def _make_task() -> Callable[..., Iterator[Any]]:
    """The function that Ray takes to the nodes, whole: it must not need cifarlib to be unpacked."""

    def carry_out_on_node(wanted: tuple[str, int], *order: Any) -> Iterator[Any]:
        import socket

        try:
            import cifarlib
            from cifarlib.config import ENGINE

            found = cifarlib.__version__, ENGINE
        except ImportError as error:
            yield f"{socket.gethostname()} has no cifarlib ({error}); install the same everywhere"
            return
        if found != wanted:
            yield (
                f"{socket.gethostname()} has cifarlib {found[0]} with engine {found[1]}, the sweep "
                f"{wanted[0]} with engine {wanted[1]}; install the same everywhere"
            )
            return
        from cifarlib.runs.ray_node import serve_task

        yield from serve_task(*order)

    return carry_out_on_node
