"""What happens inside a worker process: take a job, train it, write its record.

Only here does a sweep meet torch. A worker holds the run's lock while it trains, takes up the
run's checkpoint if there is one, and dies with the sweep that started it.
"""

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from cifarlib import provenance
from cifarlib.config import DATASETS, ENGINE, RunConfig
from cifarlib.errors import CifarlibError, UnavailableError
from cifarlib.locks import lock
from cifarlib.records import (
    FORMAT,
    DataRecord,
    NetworkRecord,
    RecordStore,
    RunRecord,
    remove_leftovers,
)
from cifarlib.sweep.checkpoints import Aside, read_checkpoint, write_checkpoint

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


def serve_lanes(
    connections: Sequence[Connection],
    folder: Path,
    device: str,
    threads: int,
    checkpoint_every: int | None,
    deadline: float | None = None,
) -> None:
    """Several workers in one process, which share its CUDA device: a thread for each."""
    with contextlib.suppress(Exception):  # what is wrong with them, each worker says itself
        import cifarlib.lanes  # noqa: F401  (once, before threads that would all import torch)
    workers = [
        threading.Thread(
            target=serve, args=(connection, folder, device, threads, checkpoint_every, deadline)
        )
        for connection in connections
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
    from cifarlib import lanes, training

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


def train(
    config: RunConfig,
    store: RecordStore,
    device_name: str,
    threads: int,
    checkpoint_every: int | None,
    tell: Any,
    *,
    deadline: float | None = None,
    keep_weights: bool = False,
) -> RunRecord:
    """Train a configuration, on from its checkpoint if there is one, and write its record.

    With ``keep_weights`` those that its predictions come from are written first, so that no
    record that was made with it lacks them.

    A checkpoint is written every ``checkpoint_every`` epochs (0: never). None is every epoch,
    unless less than ``LEAST_WORK`` would be saved: writing takes half a second. Raises
    ``OutOfTimeError`` at the last epoch border before ``deadline``, on the monotonic clock.
    """
    from cifarlib import training
    from cifarlib.config import run_id
    from cifarlib.weights import KeptWeights, write_weights

    device = training.resolve_device(device_name)
    name = run_id(config)
    checkpoint = store.state / f"{name}.pt"
    remove_leftovers(checkpoint)
    remove_leftovers(store.run_path(name))
    remove_leftovers(store.weights_path(name))
    state = read_checkpoint(checkpoint, store, lambda text: tell(Message("note", text=text)))

    saved = began = time.monotonic()
    aside: Aside = contextlib.nullcontext
    took: list[float] = []  # s of each epoch; the first one's holds the loading of the data, too

    def on_epoch(state: dict[str, Any]) -> None:
        nonlocal saved, began
        now = time.monotonic()
        took.append(now - began)
        began = now
        epoch = len(state["history"]["learning_rate"]) - 1
        correct = state["history"]["validation"]["top1"][epoch]
        accuracy = 100 * correct / config.data.validation_size
        tell(Message("epoch", epoch=epoch, accuracy=accuracy))
        if checkpoint_every is None:
            due = time.monotonic() - saved >= LEAST_WORK
        else:
            due = checkpoint_every > 0 and epoch % checkpoint_every == 0
        last = epoch + 1 == config.epochs  # after which the chosen epochs are evaluated
        expected = SAFETY * max(took[1:] or took) * (1 + last)
        late = deadline is not None and now + expected > deadline and checkpoint_every != 0
        if due or late:
            write_checkpoint(checkpoint, state, aside)
            tell(Message("checkpoint", epoch=epoch))
            saved = time.monotonic()
        if late:
            raise OutOfTimeError(f"stopped after epoch {epoch} of {config.epochs}")

    with _lane(config, device) as lane:
        if lane is not None:
            aside = lane.aside
        with lane.working() if lane else contextlib.nullcontext():
            inputs = training.load_inputs(config, device)
            fitted = training.fit(
                config,
                inputs,
                device,
                state=state,
                on_epoch=on_epoch,
                on_batch=lambda images: tell(Message("images", images=images)),
                begin=lane.begin if lane else None,
            )
    record = RunRecord(
        format=FORMAT,
        run_id=name,
        engine=ENGINE,
        data_fingerprint=DATASETS[config.data.name].fingerprint,
        config=config,
        result=fitted.result,
        timing=fitted.timing,
        provenance=provenance.of_this_process(
            device.type,
            threads,
            _card(device),
            resumed=fitted.resumed,
            execution=lane.execution(config) if lane else "eager",
            lanes=lane.together if lane else 1,
        ),
    )
    if keep_weights:
        write_weights(
            store.weights_path(name), KeptWeights(fitted.weights, inputs.mean, inputs.std)
        )
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
    from cifarlib import lanes

    return lanes.card(device).lane(config)


# ---------------------------------------------------------------------------------------------
# A data set
# ---------------------------------------------------------------------------------------------


def _describe(job: DataJob | NetworkJob, store: RecordStore, connection: Connection) -> None:
    """Make a description, unless another sweep makes it or has made it in the meantime."""
    from cifarlib.sweep.describe import describe_dataset, describe_network

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
