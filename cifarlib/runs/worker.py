"""What happens inside a worker process: take a job, train it, write its record.

Only here does a sweep meet torch. A worker holds the run's lock while it trains, takes up the
run's checkpoint if there is one, and dies with the sweep that started it.
"""

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from cifarlib.config import RunConfig, run_id
from cifarlib.errors import CifarlibError, UnavailableError
from cifarlib.runs import provenance
from cifarlib.runs.checkpoints import Aside, read_checkpoint, write_checkpoint
from cifarlib.runs.locks import lock
from cifarlib.runs.schema import DataRecord, NetworkRecord, RunRecord, to_record
from cifarlib.runs.store import RecordStore, remove_leftovers

LEAST_WORK = 5.0  # s of training that are worth a checkpoint
SAFETY = 1.2  # how much longer than expected an epoch may take


@dataclass(frozen=True)
class RunJob:
    """Train one configuration."""

    run_id: str
    name: str
    config: RunConfig
    keep_weights: bool = False


@dataclass(frozen=True)
class DataJob:
    """Describe one data set."""

    name: str
    dataset: str


@dataclass(frozen=True)
class NetworkJob:
    """Describe the residual network."""

    name: str


Job = RunJob | DataJob | NetworkJob


@dataclass(frozen=True)
class Message:
    """What a worker tells the sweep about its job."""

    # images | epoch | checkpoint | note, and last: done | stopped | busy | unavailable | starved |
    # failed | fatal
    kind: str
    images: int = 0
    epoch: int = 0  # that has been trained and evaluated
    accuracy: float = 0.0  # validation top-1 after it, %
    text: str = ""
    detail: str = ""
    record: RunRecord | DataRecord | NetworkRecord | None = None
    content: bytes = b""  # of a checkpoint or of kept weights, where the sweep cannot see the file


class OutOfTimeError(Exception):
    """The next epoch would not end before the deadline; the run's checkpoint is written."""


def serve(
    connection: Connection,
    folder: Path,
    device: str,
    threads: int,
    checkpoint_every: int | None,
    deadline: float | None = None,
) -> None:
    """A worker's life: jobs come through the connection, messages go back, None ends it."""
    # On a machine with other work, threads that spin while they wait take minutes for seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    threading.Thread(target=_die_with_parent, daemon=True).start()
    provenance.commit()  # now, for it is the code of now that this process runs
    store = RecordStore(folder)
    with contextlib.suppress(EOFError, OSError):  # the sweep is gone, and so are we
        while (job := connection.recv()) is not None:
            carry_out(job, store, connection, device, threads, checkpoint_every, deadline)


def serve_lanes(connections: Sequence[Connection], *settings: Any) -> None:
    """Several workers in one process, which share its CUDA device: a thread for each.

    ``settings`` are the arguments of ``serve`` after its connection.
    """
    with contextlib.suppress(Exception):  # what is wrong with them, each worker says itself
        import cifarlib.gpu.lanes  # noqa: F401  (once, before threads that would all import torch)
    workers = [
        threading.Thread(target=serve, args=(connection, *settings)) for connection in connections
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def carry_out(
    job: Job,
    store: RecordStore,
    connection: Connection,
    device: str,
    threads: int,
    checkpoint_every: int | None,
    deadline: float | None,
) -> None:
    """Do a job; the messages go to a connection, or to anything else with its ``send``."""
    try:
        import torch

        from cifarlib import training

        torch.set_num_threads(threads)
        training.resolve_device(device)  # before a long description of the data comes to nothing
        if isinstance(job, DataJob | NetworkJob):
            _describe(job, store, connection)
        else:
            _train(job, store, connection, device, threads, checkpoint_every, deadline)
    except OutOfTimeError as error:
        connection.send(Message("stopped", text=str(error)))
    except UnavailableError as error:
        connection.send(Message("unavailable", text=str(error)))
    except CifarlibError as error:  # the same for every run: no data, disk full, no device
        connection.send(Message("fatal", text=str(error)))
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        kind = "starved" if _lacks_memory(error) else "failed"
        connection.send(Message(kind, text=text, detail=traceback.format_exc()))
        if not _device_works(device):
            os._exit(1)  # for whatever else this process tried would fail


def _lacks_memory(error: Exception) -> bool:
    """Whether memory ran out, of the processor or of a card: torch has its own ways to say so."""
    words = ("can't allocate memory", "not enough memory")  # of torch's allocator, RuntimeError
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(text in str(error) for text in words)
    )


def _device_works(name: str) -> bool:
    from cifarlib import training
    from cifarlib.gpu import lanes

    device = training.resolve_device(name)
    return device.type != "cuda" or lanes.card(device).works()


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


# ---------------------------------------------------------------------------------------------
# A run
# ---------------------------------------------------------------------------------------------


def _train(
    job: RunJob,
    store: RecordStore,
    connection: Connection,
    device_name: str,
    threads: int,
    checkpoint_every: int | None,
    deadline: float | None,
) -> None:
    record = None
    with lock(store.state / f"{job.run_id}.lock") as held:
        if held and (record := store.read_run(job.run_id)):  # of another sweep, or one that died
            store.clear_state(job.run_id)
        elif held:
            record = train(
                job.config,
                store,
                device_name,
                threads,
                checkpoint_every,
                connection.send,
                deadline=deadline,
                keep_weights=job.keep_weights,
            )
    # After the lock's end, so that no lock file stays behind a run that is said to be done.
    connection.send(Message("done", record=record) if held else Message("busy"))


@dataclass
class Checkpointer:
    """Says after each epoch how far a run is, and writes its checkpoint when one is due.

    That is every ``every`` epochs (0: never). None is every epoch, unless less than
    ``LEAST_WORK`` would be saved: writing takes half a second. Raises ``OutOfTimeError`` at the
    last epoch border before ``deadline``, on the monotonic clock.
    """

    path: Path
    config: RunConfig
    tell: Callable[[Message], Any]
    every: int | None
    deadline: float | None

    def __post_init__(self) -> None:
        self.aside: Aside = contextlib.nullcontext
        self.saved = self.began = time.monotonic()
        self.took: list[float] = []  # s of each epoch; the first holds the loading of the data

    def __call__(self, state: dict[str, Any]) -> None:
        now = time.monotonic()
        self.took.append(now - self.began)
        self.began = now
        epoch = len(state["history"]["learning_rate"]) - 1
        correct = state["history"]["validation"]["top1"][epoch]
        accuracy = 100 * correct / self.config.data.validation_size
        self.tell(Message("epoch", epoch=epoch, accuracy=accuracy))
        late = self._is_late(epoch)
        if late or self._is_due(epoch):
            write_checkpoint(self.path, state, self.aside)
            self.tell(Message("checkpoint", epoch=epoch))
            self.saved = time.monotonic()
        if late:
            raise OutOfTimeError(f"stopped after epoch {epoch} of {self.config.epochs}")

    def _is_due(self, epoch: int) -> bool:
        if self.every is None:
            return time.monotonic() - self.saved >= LEAST_WORK
        return self.every > 0 and epoch % self.every == 0

    def _is_late(self, epoch: int) -> bool:
        last = epoch + 1 == self.config.epochs  # after which the chosen epochs are evaluated
        expected = SAFETY * max(self.took[1:] or self.took) * (1 + last)
        late = self.deadline is not None and time.monotonic() + expected > self.deadline
        return late and self.every != 0


def train(
    config: RunConfig,
    store: RecordStore,
    device_name: str,
    threads: int,
    checkpoint_every: int | None,
    tell: Callable[[Message], Any],
    *,
    deadline: float | None = None,
    keep_weights: bool = False,
) -> RunRecord:
    """Train a configuration, on from its checkpoint if there is one, and write its record.

    With ``keep_weights`` those that its predictions come from are written first, so that no
    record that was made with it lacks them. Checkpoints are written as ``Checkpointer`` says.
    """
    from cifarlib import training
    from cifarlib.runs.inputs import load_inputs
    from cifarlib.runs.weights import KeptWeights, write_weights

    device = training.resolve_device(device_name)
    name = run_id(config)
    checkpoint = store.state / f"{name}.pt"
    for path in (checkpoint, store.run_path(name), store.weights_path(name)):
        remove_leftovers(path)
    state = read_checkpoint(checkpoint, store, lambda text: tell(Message("note", text=text)))
    on_epoch = Checkpointer(checkpoint, config, tell, checkpoint_every, deadline)
    with _lane(config, device) as lane:
        if lane is not None:
            on_epoch.aside = lane.aside
        with lane.working() if lane else contextlib.nullcontext():
            inputs = load_inputs(config, device)
            fitted = training.fit(
                config,
                inputs,
                device,
                state=state,
                on_epoch=on_epoch,
                on_batch=lambda images: tell(Message("images", images=images)),
                begin=lane.begin if lane else None,
            )
    made_by = provenance.of_this_process(
        device.type,
        threads,
        _card(device),
        resumed=fitted.resumed,
        execution=lane.execution(config) if lane else "eager",
        lanes=lane.together if lane else 1,
    )
    record = to_record(config, fitted, made_by)
    if keep_weights:
        kept = KeptWeights(fitted.weights, inputs.mean, inputs.std)
        write_weights(store.weights_path(name), kept)
    store.write(record)
    store.clear_state(name)
    return record


def _card(device: Any) -> str | None:
    """The name of a CUDA device's card."""
    if device.type != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name(device)


def _lane(config: RunConfig, device: Any) -> contextlib.AbstractContextManager[Any]:
    """Where a run is carried out on a CUDA device, once there is room; elsewhere None."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    from cifarlib.gpu import lanes

    return lanes.card(device).lane(config)


# ---------------------------------------------------------------------------------------------
# A data set
# ---------------------------------------------------------------------------------------------


def _describe(job: DataJob | NetworkJob, store: RecordStore, connection: Connection) -> None:
    """Make a description, unless another sweep makes it or has made it in the meantime."""
    from cifarlib.runs.describe import describe_dataset, describe_network

    read: Callable[[], DataRecord | NetworkRecord | None]
    describe: Callable[[], DataRecord | NetworkRecord]
    if isinstance(job, DataJob):
        path = store.data_path(job.dataset)
        read = partial(store.read_data, job.dataset)
        describe = partial(describe_dataset, job.dataset)
    else:
        path = store.network_path
        read, describe = store.read_network, describe_network
    with lock(store.state / f"{path.stem}.lock") as held:
        if held:
            remove_leftovers(path)
            if not read():
                store.write(describe())
    connection.send(Message("done") if held else Message("busy"))
