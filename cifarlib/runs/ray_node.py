"""A Ray node's part in a sweep: carry a job out as on any machine, and hand messages back.

A node shares no disk with the sweep. What its worker writes into a folder that nobody else sees,
checkpoints, records and kept weights, travels inside the messages.
"""

import os
import pickle
import queue
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cifarlib import data, paths
from cifarlib.errors import CifarlibError, DataError
from cifarlib.runs import provenance
from cifarlib.runs.store import RecordStore, write_atomically
from cifarlib.runs.worker import DataJob, Job, Message, RunJob, carry_out

FETCHING = 300.0  # s that a file of a data set may take to a node


def serve_task(
    packed: bytes,
    files: tuple[str, dict[str, Any]] | None,
    checkpoint: bytes | None,
    device: str,
    threads: int,
    checkpoint_every: int | None,
    end: float | None,
) -> Iterator[Message]:
    """A node's part in a job: the messages about it, until one that ends it.

    ``files`` are a data set's name and references to its files, ``end`` is the time of day of the
    last epoch border. The job is carried out as on any machine, in a folder of its own.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    provenance.commit()  # now, for it is the code of now that this process runs
    job: Job = pickle.loads(packed)
    try:
        if files is not None:
            _settle(*files)
    except CifarlibError as error:
        yield Message("fatal", text=f"{socket.gethostname()}: {error}")
        return
    with tempfile.TemporaryDirectory(prefix="cifarlib-", ignore_cleanup_errors=True) as folder:
        store = RecordStore(Path(folder))
        relay = Relay(job, store, every_checkpoint=checkpoint_every is not None)
        if checkpoint is not None and relay.checkpoint is not None:
            write_atomically(relay.checkpoint, checkpoint)
        deadline = None if end is None else time.monotonic() + end - time.time()
        arguments = (device, threads, checkpoint_every, deadline)
        threading.Thread(target=relay.serve, args=arguments, daemon=True).start()
        yield from relay


def _settle(name: str, references: dict[str, Any]) -> None:
    """Have a data set where this process looks for it, fetched from Ray once for the node."""
    import ray

    def fetch(file: str) -> bytes:
        try:
            return ray.get(references[file], timeout=FETCHING).tobytes()
        except ray.exceptions.GetTimeoutError as error:
            raise DataError(
                f"{file} of {name} did not come over within {FETCHING:.0f} s; see to the network "
                "between this node and the sweep's machine, and to its object store"
            ) from error

    folder = Path(tempfile.gettempdir()) / f"cifarlib-{os.getuid()}"
    data.install(name, folder, fetch)
    paths.DATA = folder
    os.environ.pop("CIFAR10_ROOT", None)


class Relay:
    """Passes a worker's messages on: fewer than it sends, and with the files that belong to them.

    Checkpoints come with their content: every one, or else those that are worth the way.
    """

    IMAGES, CHECKPOINT = 0.5, 30.0  # s between messages of a kind
    LAST = frozenset({"done", "stopped", "busy", "unavailable", "starved", "failed", "fatal"})

    def __init__(self, job: Job, store: RecordStore, *, every_checkpoint: bool):
        self.job, self.store, self.every_checkpoint = job, store, every_checkpoint
        self.checkpoint = store.state / f"{job.run_id}.pt" if isinstance(job, RunJob) else None
        self.messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()  # None: no more
        self.images = 0
        self.sent = dict.fromkeys(("images", "checkpoint"), time.monotonic())

    def serve(self, *arguments: Any) -> None:
        """Have the job carried out; whatever becomes of that, the messages have an end."""
        try:
            carry_out(self.job, self.store, self, *arguments)
        finally:
            self.messages.put(None)

    def send(self, message: Message) -> None:
        """Take a message of the worker's."""
        match message.kind:
            case "images":
                self.images += message.images
                if not self._is_due("images", self.IMAGES):
                    return
                message, self.images = Message("images", images=self.images), 0
            case "checkpoint":
                if not self._is_due("checkpoint", 0 if self.every_checkpoint else self.CHECKPOINT):
                    return
                message = self._with_content(message)
            case "stopped":
                self.messages.put(self._with_content(Message("checkpoint")))
            case "fatal":
                message = replace(message, text=f"{socket.gethostname()}: {message.text}")
            case "done":
                record = message.record or self._read_description()
                message = replace(message, record=record, content=self._read_weights())
        self.messages.put(message)

    def __iter__(self) -> Iterator[Message]:
        """The messages as they come, up to one that ends the job, or to the worker's own end."""
        while (message := self.messages.get()) is not None:
            yield message
            if message.kind in self.LAST:
                return

    def _is_due(self, kind: str, seconds: float) -> bool:
        now = time.monotonic()
        due = now - self.sent[kind] >= seconds
        if due:
            self.sent[kind] = now
        return due

    def _with_content(self, message: Message) -> Message:
        assert self.checkpoint is not None
        return replace(message, content=self.checkpoint.read_bytes())

    def _read_weights(self) -> bytes:
        """What a run was to keep; nothing where it was not."""
        if not isinstance(self.job, RunJob) or not self.job.keep_weights:
            return b""
        path = self.store.weights_path(self.job.run_id)
        return path.read_bytes() if path.is_file() else b""

    def _read_description(self) -> Any:
        if isinstance(self.job, DataJob):
            return self.store.read_data(self.job.dataset)
        return self.store.read_network()
