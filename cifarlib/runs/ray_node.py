"""A Ray node's part in a sweep: do a job as on any machine, and hand back what comes of it.

A node shares no disk with the sweep. What its worker writes into a folder that nobody else sees,
checkpoints, records and kept weights, travels inside the messages.
"""

import os
import pickle
import socket
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cifarlib import data, paths
from cifarlib.errors import CifarlibError
from cifarlib.runs import provenance, worker
from cifarlib.runs.store import RecordStore, write_atomically
from cifarlib.runs.worker import Message, RunJob

LEAST_WORK = 30.0  # s of training that are worth sending a checkpoint


class Desk:
    """An actor on the sweep's machine: takes nodes' messages, keeps checkpoints and gives them out.

    A job is known by its name, ``path`` is its checkpoint's.
    """

    def __init__(self) -> None:
        self.begun: set[tuple[str, float]] = set()
        self.messages: list[tuple[str, Message]] = []

    def begin(self, name: str, path: Path, made: float) -> bytes | None:
        """The checkpoint from which a task goes on, None where there is none."""
        if (name, made) in self.begun:  # Ray has started it again
            text = "its node or its process is lost; to be taken up again"
            self.messages.append((name, Message("note", text=text)))
        self.begun.add((name, made))
        return path.read_bytes() if path.is_file() else None

    def put(self, name: str, path: Path, message: Message) -> None:
        """Take a message, and keep the checkpoint that it brings."""
        if message.content:
            write_atomically(path, message.content)
        self.messages.append((name, replace(message, content=b"")))

    def take(self) -> list[tuple[str, Message]]:
        """The messages since the last time."""
        taken, self.messages = self.messages, []
        return taken


def serve_task(packed: bytes, files: tuple[str, dict[str, Any]] | None, desk: Any) -> Message:
    """Do a job as on any machine, in a folder of its own; the message that ends it.

    ``packed`` are the job, its settings, whose deadline is a time of day, where the desk keeps its
    checkpoint, and when the task was made; ``files`` a data set's name and files, as arrays.
    """
    import ray

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    provenance.commit()  # now, for it is the code of now that this process runs
    worker.LEAST_WORK = LEAST_WORK
    job, settings, path, made = pickle.loads(packed)
    if settings.deadline is not None:
        settings = replace(settings, deadline=time.monotonic() + settings.deadline - time.time())
    ends = [Message("failed", text="it ended without a word")]
    with tempfile.TemporaryDirectory(prefix="cifarlib-", ignore_cleanup_errors=True) as folder:
        store = RecordStore(Path(folder))
        checkpoint = store.state / path.name

        def send(message: Message) -> None:
            match message.kind:
                case "epoch" | "note":
                    ray.get(desk.put.remote(job.name, path, message))
                case "checkpoint":
                    message = replace(message, content=checkpoint.read_bytes())
                    ray.get(desk.put.remote(job.name, path, message))
                case "done" if isinstance(job, RunJob) and job.keep_weights:
                    weights = store.weights_path(job.run_id).read_bytes()
                    ends.append(replace(message, content=weights))
                case "fatal":
                    text = f"{socket.gethostname()}: {message.text}"
                    ends.append(replace(message, text=text))
                case kind if kind != "images":  # one comes with every batch
                    ends.append(message)

        if content := ray.get(desk.begin.remote(job.name, path, made)):
            write_atomically(checkpoint, content)
        try:
            if files is not None:
                _install(*files)
        except CifarlibError as error:
            send(Message("fatal", text=str(error)))
        else:
            worker.run_job(job, store, SimpleNamespace(send=send), settings)
    return ends[-1]


def _install(name: str, files: dict[str, Any]) -> None:
    """Have a data set where this process looks for it."""
    folder = Path(tempfile.gettempdir()) / f"cifarlib-{os.getuid()}"
    data.install(name, folder, lambda file: files[file].tobytes())
    paths.DATA = folder
    os.environ.pop("CIFAR10_ROOT", None)
