"""The sweep on a Ray cluster: a run is a task, done wherever there is room for it.

Only the sweep's own machine has the build folder and the data set. Nodes get the data set's files
through Ray's object store and hand checkpoints and messages to an actor on that machine, records
as what a task returns. Ray starts a lost task again elsewhere, and it goes on from the last
checkpoint that was handed back. Ray is optional: ``pip install '.[ray]'``.
"""

import contextlib
import logging
import os
import pickle
import socket
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from cifarlib import __version__, data, extras
from cifarlib.config import ENGINE, RunConfig, card_share
from cifarlib.errors import RunError
from cifarlib.runs.executors import LANES, Executor, Outcome
from cifarlib.runs.locks import lock
from cifarlib.runs.progress import cores
from cifarlib.runs.ray_node import Desk
from cifarlib.runs.store import remove_leftovers, write_atomically
from cifarlib.runs.worker import Job, Message, RunJob, Settings

SILENCE = 120.0  # s without a message of any task, after which that is said
RETRIES = 10  # of a task whose node or process is lost
GPU_MEMORY = 24e9  # bytes; Ray does not say how much a node's GPU has, so a small one is meant


class RayExecutor(Executor):
    """The nodes of a Ray cluster, the tasks they have, and what comes back.

    A task declares ``threads`` CPUs (one unless given), on GPUs also its share of one. Raises
    ``RunError`` where there is no Ray, no cluster, no node with room, or another cifarlib.
    """

    lag = 9.0  # a checkpoint has to come over, then the cluster to be left

    def __init__(self, *arguments: Any, address: str | None = None):
        self.ray = connect(address)
        self.tasks: dict[Any, tuple[Job, contextlib.ExitStack]] = {}  # by Ray's reference
        self.files: dict[str, Any] = {}  # data set → Ray's reference to its files
        self.last_word = time.monotonic()
        super().__init__(*arguments)
        self.share = LANES if self.device == "cuda" else max(1, cores() // self.threads)
        here = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self.ray.get_runtime_context().get_node_id(), soft=False
        )
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        desk = self.ray.remote(Desk).options(scheduling_strategy=here, **options)
        self.desk = desk.remote()
        self.do_on_node = self.ray.remote(_make_task())

    def choose_workers(self, workers: int | None, threads: int | None) -> tuple[int, int]:
        if self.device == "auto":
            self.device = "cuda" if self.ray.cluster_resources().get("GPU") else "cpu"
        self.threads, self.limit = threads or 1, workers
        if room := self._room():
            return room, self.threads
        self.stop()
        gpu = " and a GPU" if self.device == "cuda" else ""
        raise RunError(
            f"no node of the cluster has {self.threads} CPUs{gpu} for a run; ask for fewer with "
            "--threads, or for --device cpu"
        )

    def _room(self) -> int:
        """Runs for which the living nodes have CPUs, and GPUs where these train small ones."""
        room = 0
        for node in self.ray.nodes():
            own = node["Resources"]
            runs = own.get("CPU", 0) // self.threads
            if self.device == "cuda":
                runs = min(runs, own.get("GPU", 0) * LANES)
            room += int(runs) if node["Alive"] else 0
        return min(room, self.limit or room)

    def run(self, *arguments: Any, **settings: Any) -> Outcome:
        """As any executor; a cluster that is gone gets a sentence."""
        try:
            return super().run(*arguments, **settings)
        except self.ray.exceptions.RayError as error:
            raise RunError(
                f"the Ray cluster does not answer any more ({_first_sentence(error)}); see to it "
                "and run the same command again: nothing that was finished is lost"
            ) from error

    def hand_out(self) -> None:
        while len(self.tasks) < max(1, self._room()):
            if (job := self.budget.choose(self.waiting)) is None:
                break
            held = contextlib.ExitStack()
            if not held.enter_context(lock(self.store.state / f"{job.path(self.store).stem}.lock")):
                self.put_off(job)
            elif record := job.read(self.store):  # of another sweep
                held.close()
                self.hear(job, Message("done", record=record))
            else:
                self.tasks[self._submit(job)] = job, held

    def running(self) -> list[Job]:
        return [job for job, _ in self.tasks.values()]

    def listen(self) -> None:
        ended, _ = self.ray.wait(list(self.tasks), timeout=0.5)
        jobs = {job.name: job for job in self.running()}
        messages = self.ray.get(self.desk.take.remote())
        for name, message in messages:
            if job := jobs.get(name):
                if message.kind == "epoch" and isinstance(job, RunJob):
                    self.display.advance(job, job.config.data.train_size)
                self.hear(job, message)
        for reference in ended:
            job, held = self.tasks.pop(reference)
            with held:
                message = self._receive(job, reference)
            self.hear(job, message)
        if messages or ended:
            self.last_word = time.monotonic()
        elif time.monotonic() - self.last_word > SILENCE:
            self.last_word = time.monotonic()
            self.display.say("no word from the cluster; `ray status` says whether it has room")

    def stop(self) -> None:
        for reference, (_, held) in self.tasks.items():
            held.close()
            with contextlib.suppress(Exception):  # there may be nothing left to cancel
                self.ray.cancel(reference, force=True)
        self.tasks.clear()
        self.ray.shutdown()

    def _submit(self, job: Job) -> Any:
        """Ray's reference to what will come of a job."""
        gpus = 0.0  # descriptions are made on the processor
        if self.device == "cuda" and isinstance(job, RunJob):  # a second try may lack memory
            gpus = 1.0 if job.name in self.outcome.retried else gpu_share(job.config)
        border = self.budget.last_border
        end = None if border is None else time.time() + border - time.monotonic()
        settings = Settings("cuda" if gpus else "cpu", self.threads, self.checkpoint_every, end)
        checkpoint = self.store.checkpoint_path(job.path(self.store).stem).absolute()
        remove_leftovers(checkpoint)
        task = self.do_on_node.options(
            name=job.name, num_cpus=self.threads, num_gpus=gpus, max_retries=RETRIES,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        version = f"cifarlib {__version__} with engine {ENGINE}"
        packed = pickle.dumps((job, settings, checkpoint, time.time()))
        return task.remote(version, packed, self._put_files(job), self.desk)

    def _put_files(self, job: Job) -> Any:
        """Ray's reference to a job's data set, which is put there once."""
        name = job.config.data.name if isinstance(job, RunJob) else job.dataset
        if name is None:
            return None
        if name not in self.files:
            import numpy as np

            folder, files = data.find(name), data.DATASETS[name].files
            content = {file: np.fromfile(folder / file, dtype=np.uint8) for file in files}
            self.files[name] = self.ray.put((name, content))
        return self.files[name]

    def _receive(self, job: Job, reference: Any) -> Message:
        """The last message of a task; what it brings is kept."""
        try:
            message = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            return Message("failed", text=lines[-1], detail="\n".join(lines))
        if isinstance(message, str):
            raise RunError(message)
        if isinstance(job, RunJob) and message.content:
            write_atomically(self.store.weights_path(job.run_id), message.content)
        if message.record is not None:
            self.store.write(message.record)
        if message.kind == "done" and isinstance(job, RunJob):
            self.store.clear_state(job.run_id)
        return message


def gpu_share(config: RunConfig) -> float:
    """The part of a GPU that a run declares: at least so much that ``LANES`` runs fill one."""
    return round(max(1 / LANES, card_share(config, GPU_MEMORY)), 3)


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0]


def _make_task() -> Callable[..., Any]:
    """The function that Ray takes to the nodes, whole: it must not need cifarlib to be unpacked."""

    def do_on_node(wanted: str, *order: Any) -> Any:
        try:
            import cifarlib
            from cifarlib.config import ENGINE

            found = f"cifarlib {cifarlib.__version__} with engine {ENGINE}"
        except ImportError as error:
            found = f"no cifarlib ({error})"
        if found != wanted:
            import socket

            host = socket.gethostname()
            return f"{host} has {found}, the sweep {wanted}; install the same everywhere"
        from cifarlib.runs.ray_node import serve_task

        return serve_task(*order)

    return do_on_node


def connect(address: str | None) -> ModuleType:
    """Ray, connected to a cluster: that of ``RAY_ADDRESS`` or of this machine where none is named.

    Raises ``RunError`` where there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # of 20, which take a minute each
    os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "5")
    extras.require("ray")
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if address != "auto":  # Ray takes long to find out that nobody listens
            host, _, port = address.rpartition(":")
            if not port.isdecimal():
                raise ValueError("its port is missing")
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(
            f"there is no Ray cluster to join at {address} ({_first_sentence(error)}); write "
            "HOST:PORT as `ray start --head` says it, which begins one; this machine must be a "
            "node of it"
        ) from error
    return ray
