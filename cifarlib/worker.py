"""What happens inside a worker process: take a job, train it, write its record.

Only here does a sweep meet torch. A worker holds the run's lock while it trains, takes up the
run's checkpoint if there is one, and dies with the sweep that started it.
"""

import contextlib
import hashlib
import io
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

from cifarlib import provenance
from cifarlib.config import DATASETS, ENGINE, RunConfig
from cifarlib.energy import Meter
from cifarlib.errors import CifarlibError, UnavailableError
from cifarlib.locks import lock
from cifarlib.records import (
    FORMAT,
    DataRecord,
    NetworkRecord,
    Provenance,
    RecordStore,
    RunRecord,
    Statistics,
    pack_classes,
    remove_leftovers,
    write_atomically,
)

LEAST_WORK = 5.0  # s of training that are worth a checkpoint
PROGRAM = "cifarlib"  # what a run is made by: its parameters stand in its record
DIGEST_BYTES, EPOCH_BYTES = 32, 4  # what a checkpoint begins with
SAFETY = 1.2  # how much longer than expected an epoch may take


@dataclass(frozen=True)
class RunJob:
    """Train one configuration."""

    run_id: str
    name: str
    config: RunConfig


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
    content: bytes = b""  # of a checkpoint, where the sweep cannot see its file


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
    provenance.commit(PROGRAM)  # now, for it is the code of now that this process runs
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
    with lock(store.state / f"{job.run_id}.lock") as held:
        if not held:
            connection.send(Message("busy"))
            return
        if record := store.read_run(job.run_id):  # made by another sweep in the meantime
            connection.send(Message("done", record=record))
            return
        record = train(
            job.config,
            store,
            device_name,
            threads,
            checkpoint_every,
            connection.send,
            deadline=deadline,
        )
        connection.send(Message("done", record=record))


def train(
    config: RunConfig,
    store: RecordStore,
    device_name: str,
    threads: int,
    checkpoint_every: int | None,
    tell: Any,
    *,
    deadline: float | None = None,
) -> RunRecord:
    """Train a configuration, on from its checkpoint if there is one, and write its record.

    A checkpoint is written every ``checkpoint_every`` epochs (0: never). None is every epoch,
    unless less than ``LEAST_WORK`` would be saved: writing takes half a second. Raises
    ``OutOfTimeError`` at the last epoch border before ``deadline``, on the monotonic clock.
    """
    from cifarlib import training
    from cifarlib.config import run_id

    device = training.resolve_device(device_name)
    name = run_id(config)
    checkpoint = store.state / f"{name}.pt"
    remove_leftovers(checkpoint)
    remove_leftovers(store.run_path(name))
    state = _read_checkpoint(checkpoint, store, tell)

    saved = began = time.monotonic()
    aside: Aside = contextlib.nullcontext
    took: list[float] = []  # s of each epoch; the first one's holds the loading of the data, too

    def on_epoch(state: dict[str, Any]) -> None:
        nonlocal saved, began
        now = time.monotonic()
        took.append(now - began)
        began = now
        meter.read()
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
            _write_checkpoint(checkpoint, state, aside)
            tell(Message("checkpoint", epoch=epoch))
            saved = time.monotonic()
        if late:
            raise OutOfTimeError(f"stopped after epoch {epoch} of {config.epochs}")

    with _lane(config, device) as lane:
        if lane is not None:
            aside = lane.aside
        meter = _meter(device)
        with lane.working() if lane else contextlib.nullcontext():
            fitted = training.fit(
                config,
                training.load_inputs(config, device),
                device,
                state=state,
                on_epoch=on_epoch,
                on_batch=lambda images: tell(Message("images", images=images)),
                begin=lane.begin if lane else None,
            )
    energy = None if fitted.resumed else meter.read()  # what it took before, nobody wrote down
    record = RunRecord(
        format=FORMAT,
        run_id=name,
        engine=ENGINE,
        data_fingerprint=DATASETS[config.data.name].fingerprint,
        config=config,
        result=fitted.result,
        timing=fitted.timing.model_copy(update={"energy_j": energy}),
        provenance=_provenance(
            device.type,
            threads,
            resumed=fitted.resumed,
            execution=lane.execution(config) if lane else "eager",
            lanes=lane.together if lane else 1,
        ),
    )
    store.write(record)
    with contextlib.suppress(OSError):  # beside a record they say nothing any more
        checkpoint.unlink(missing_ok=True)
        (store.state / f"{name}.error.txt").unlink(missing_ok=True)  # of an earlier attempt
    return record


def _meter(device: Any) -> Meter:
    """What counts the energy of a device from now on."""
    if device.type != "cuda":
        return Meter("cpu")
    import torch

    return Meter("cuda", str(torch.cuda.get_device_properties(device).uuid))


def _lane(config: RunConfig, device: Any) -> contextlib.AbstractContextManager[Any]:
    """Where a run is carried out on a CUDA device, once there is room; elsewhere None."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    from cifarlib import lanes

    return lanes.card(device).lane(config)


def _provenance(device_class: str, threads: int, **more: Any) -> Provenance:
    commit, dirty = provenance.commit(PROGRAM)
    name = provenance.processor()
    if device_class == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    return Provenance(
        commit=commit,
        dirty=dirty,
        versions=provenance.versions(),
        device=name,
        device_class=device_class,  # type: ignore[arg-type]
        threads=threads,
        finished=provenance.now(),
        **more,
    )


Aside = Callable[[], contextlib.AbstractContextManager[None]]
"""Within it, other runs of this process have the device."""


def _write_checkpoint(
    path: Path, state: dict[str, Any], aside: Aside = contextlib.nullcontext
) -> None:
    """A state behind the number of its epoch and a SHA-256 of both."""
    import torch

    buffer = io.BytesIO()
    epoch = len(state["history"]["learning_rate"]) - 1
    buffer.write(epoch.to_bytes(EPOCH_BYTES, "big"))
    torch.save(state | {"run_id": path.stem}, buffer)
    with aside():
        content = buffer.getvalue()
        write_atomically(path, _checkpoint_digest(content) + content)


def _checkpoint_digest(content: bytes) -> bytes:
    return hashlib.sha256(b"checkpoint 2" + content).digest()


def unpack_checkpoint(raw: bytes) -> tuple[int, bytes] | None:
    """Epoch and torch's bytes of a checkpoint; None where its content is not what was written."""
    digest, content = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
    if _checkpoint_digest(content) != digest:
        return None
    return int.from_bytes(content[:EPOCH_BYTES], "big"), content[EPOCH_BYTES:]


def checkpoint_epoch(path: Path) -> int:
    """The epoch that a checkpoint claims to stand at, unchecked; 0 where there is none."""
    try:
        with path.open("rb") as file:
            head = file.read(DIGEST_BYTES + EPOCH_BYTES)
    except OSError:
        return 0
    return int.from_bytes(head[DIGEST_BYTES:], "big")


def _read_checkpoint(path: Path, store: RecordStore, tell: Any) -> dict[str, Any] | None:
    """A run's state, None where there is none; a damaged one is set aside and said."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:  # such as a folder of this name
        state, reason = None, f"it cannot be read ({error.strerror})"
    else:
        state, reason = _unpack_state(raw, path.stem)
    if state is None:
        aside = store.set_aside(path, reason)
        text = f"the checkpoint is damaged and was set aside as {aside}; training from the start"
        tell(Message("note", text=text))
    return state


def _unpack_state(raw: bytes, name: str) -> tuple[dict[str, Any] | None, str]:
    """A checkpoint's state, or None and the reason why a run cannot go on from it."""
    import torch

    unpacked = unpack_checkpoint(raw)
    if unpacked is None:
        return None, "its content does not match its digest"
    try:  # weights_only: no code comes from a file
        state = torch.load(io.BytesIO(unpacked[1]), map_location="cpu", weights_only=True)
        owner = state.pop("run_id", name)  # checkpoints of earlier versions do not say
    except MemoryError:
        raise
    except Exception as error:  # whoever wrote this gave it a digest, and torch may raise anything
        return None, f"it holds no state of a run ({type(error).__name__})"
    if owner != name:
        return None, f"it is of another run, {owner}"
    return state, ""


# ---------------------------------------------------------------------------------------------
# A data set
# ---------------------------------------------------------------------------------------------


def _describe(job: DataJob | NetworkJob, store: RecordStore, connection: Connection) -> None:
    """Make a description, unless another sweep makes it or has made it in the meantime."""
    if isinstance(job, DataJob):
        path = store.data_path(job.dataset)
        read = partial(store.read_data, job.dataset)
        describe = partial(describe_dataset, job.dataset)
    else:
        path = store.network_path
        read, describe = store.read_network, describe_network
    with lock(store.state / f"{path.stem}.lock") as held:
        if not held:
            connection.send(Message("busy"))
            return
        remove_leftovers(path)
        if not read():
            store.write(describe())
        connection.send(Message("done"))


def describe_dataset(dataset: str) -> DataRecord:
    """Everything that the report shows of a data set: counts, statistics, a few images."""
    import numpy as np
    import torch

    from cifarlib import augment, data

    info = DATASETS[dataset]
    train, test = data.load(dataset)
    training, validation = data.split(train.labels)
    images = torch.from_numpy(train.images)
    firsts = [int(np.flatnonzero(train.labels == c)[0]) for c in range(len(info.classes))]
    mean, std = data.channel_statistics(train.images)
    methods = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
    resized = {m: augment.resized_statistics(images, 256, 224, m) for m in methods}
    return DataRecord(
        format=FORMAT,
        dataset=dataset,
        data_fingerprint=info.fingerprint,
        class_counts={
            "train": tuple(data.class_counts(train.labels[training]).tolist()),
            "validation": tuple(data.class_counts(train.labels[validation]).tolist()),
            "test": tuple(data.class_counts(test.labels).tolist()),
        },
        statistics=_statistics(mean, std),
        resized={method: _statistics(*values) for method, values in resized.items()},
        test_labels=pack_classes(test.labels.tolist()),
        pixel_sums=_pack_pixel_sums(train.images),
        first_loss=_measure_first_loss(
            images[training[:32]], torch.from_numpy(train.labels[training[:32]])
        ),
        examples=tuple(_png(train.images[index]) for index in firsts),
        transforms=_show_transforms(images[firsts[7] : firsts[7] + 1]),
        provenance=_provenance("cpu", torch.get_num_threads()),
    )


def _statistics(mean: Any, std: Any) -> Statistics:
    return Statistics(mean=tuple(map(float, mean)), std=tuple(map(float, std)))  # type: ignore[arg-type]


def _pack_pixel_sums(images: Any) -> str:
    """Sums over uint8 images (n, 3, 32, 32), which fit 32 bits up to 16 million of them."""
    import base64

    return base64.b64encode(images.sum(axis=0, dtype="<u4").tobytes()).decode()


def _measure_first_loss(images: Any, labels: Any) -> dict[str, float]:
    """Cross-entropy of the paper's first batch before any step, in training mode, seed 42.

    Images and constants are the paper's, without augmentation. ``fan_out`` has the last layer
    initialised as in Listing 1; for ``fan_in`` its weights shrink to the spread √(2/512).
    """
    import torch

    from cifarlib import augment, models, published
    from cifarlib.config import ModelConfig

    config = ModelConfig(name="residual", initialization="kaiming")
    model = models.build_model(config, dropout=0.0, seed=42).train()
    inputs = augment.normalize(images, *published.read_normalization()["32"])
    head = models.last_layer(model)
    losses = {}
    with torch.no_grad():
        for name, factor in (("fan_out", 1.0), ("fan_in", head.out_features / head.in_features)):
            head.weight *= factor**0.5
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            losses[name] = float(f"{loss.item():.5g}")  # digits that do not hang on the processor
    return losses


def _show_transforms(image: Any) -> dict[str, str]:
    """One image (1, 3, 32, 32) as it is, and after each transform of the paper by itself."""
    import torch

    from cifarlib import augment

    def one(angle: float = 0.0, top: int = 4, left: int = 4, flip: bool = False) -> augment.Draws:
        return augment.Draws(
            torch.tensor([angle]), torch.tensor([top]), torch.tensor([left]), torch.tensor([flip])
        )

    variants = {
        "original": one(),
        "crop": one(top=0, left=7),
        "flip": one(flip=True),
        "crop and flip (DAA-1)": one(top=0, left=7, flip=True),
        "rotation by 15°": one(angle=15.0),
        "all three (DAA-2)": one(angle=15.0, top=0, left=7, flip=True),
    }
    return {
        name: _png(augment.augment(image, draws, padding=4, resize=None)[0].numpy())
        for name, draws in variants.items()
    }


def _png(image: Any) -> str:
    """A uint8 (3, h, w) image as PNG, base64."""
    import base64

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# ---------------------------------------------------------------------------------------------
# The network
# ---------------------------------------------------------------------------------------------


def describe_network() -> NetworkRecord:
    """The residual network's layers, as it executes them on one image of 32×32 pixels."""
    import torch

    from cifarlib import models, tracing

    image = (3, 32, 32)
    return NetworkRecord(
        format=FORMAT,
        engine=ENGINE,
        model="residual",
        image=image,
        layers=tracing.trace(models.ResidualNetwork(), image),
        provenance=_provenance("cpu", torch.get_num_threads()),
    )
