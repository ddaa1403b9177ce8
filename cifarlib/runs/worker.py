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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cifarlib.config import RunConfig, run_id
from cifarlib.errors import CifarlibError, UnavailableError
from cifarlib.runs import provenance
from cifarlib.runs.checkpoints import Aside, read_checkpoint, write_checkpoint
from cifarlib.runs.locks import lock
from cifarlib.runs.schema import DataRecord, NetworkRecord, Provenance, Record, RunRecord, to_record
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

    def path(self, store: RecordStore) -> Path:
        """Where the record belongs; the job's lock is named after it."""
        return store.run_path(self.run_id)

    def read(self, store: RecordStore) -> RunRecord | None:
        """The record, None where there is none."""
        return store.read_run(self.run_id)


@dataclass(frozen=True)
class DescribeJob:
    """Describe a data set, or the residual network; ``path`` and ``read`` as of a run."""

    name: str
    dataset: str | None = None  # the network where none is named

    def path(self, store: RecordStore) -> Path:
        return store.data_path(self.dataset) if self.dataset else store.network_path

    def read(self, store: RecordStore) -> DataRecord | NetworkRecord | None:
        return store.read_data(self.dataset) if self.dataset else store.read_network()


Job = RunJob | DescribeJob


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
    record: Record | None = None
    content: bytes = b""  # of a checkpoint or of kept weights, where the sweep cannot see the file


@dataclass(frozen=True)
class Settings:
    """How jobs are run."""

    device: str  # auto, cpu or cuda
    threads: int
    checkpoint_every: int | None  # epochs, see ``Checkpointer``
    deadline: float | None = None  # of the last epoch border, on the monotonic clock


class OutOfTimeError(Exception):
    """The next epoch would not end before the deadline; the run's checkpoint is written."""


def serve(connections: Sequence[Connection], folder: Path, settings: Settings) -> None:
    """A worker process: jobs come through a connection, messages go back, None ends it.

    Several connections are as many concurrent runs, which share a CUDA device: a thread for each.
    """
    # On a machine with other work, threads that spin while they wait take minutes for seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch.fx makes a bar, and tqdm for it a semaphore, which a worker that is ended leaves behind.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    provenance.commit()  # now, for it is the code of now that this process runs
    store = RecordStore(folder)

    def take_jobs(connection: Connection) -> None:
        with contextlib.suppress(EOFError, OSError):  # the sweep is gone, and so are we
            while (job := connection.recv()) is not None:
                run_job(job, store, connection, settings)

    if len(connections) == 1:
        take_jobs(connections[0])
        return
    with contextlib.suppress(Exception):  # what is wrong, each run says itself
        import cifarlib.gpu.lanes  # noqa: F401  (before threads that would all import torch)
    with ThreadPoolExecutor(len(connections)) as lanes:
        list(lanes.map(take_jobs, connections))


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def run_job(job: Job, store: RecordStore, connection: Any, settings: Settings) -> None:
    """Do a job, unless another sweep does or has done it.

    The messages go to a connection, or to anything else with its ``send``.
    """
    try:
        import torch

        from cifarlib import training

        torch.set_num_threads(settings.threads)
        training.resolve_device(settings.device)  # before a long description comes to nothing
        path, record = job.path(store), None
        with lock(store.state / f"{path.stem}.lock") as held:
            if held:
                remove_leftovers(path)
                record = job.read(store) or _make(job, store, settings, connection.send)
                store.clear_state(path.stem)  # of this run, or of one that died behind its record
        # After the lock's end, so that no lock file stays behind a run that is said to be done.
        connection.send(Message("done", record=record) if held else Message("busy"))
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
        if (card := _card(settings.device)) and not card.works():
            os._exit(1)  # for whatever else this process tried would fail


def _make(
    job: Job, store: RecordStore, settings: Settings, tell: Callable[[Message], Any]
) -> Record:
    if isinstance(job, RunJob):
        return train(job.config, store, settings, tell, keep_weights=job.keep_weights)
    from cifarlib.runs import describe

    card = _card(settings.device)  # torch's random numbers are the process's, not the thread's
    with card.turn if card else contextlib.nullcontext():
        record: DataRecord | NetworkRecord = (
            describe.describe_dataset(job.dataset) if job.dataset else describe.describe_network()
        )
    store.write(record)
    return record


def _lacks_memory(error: Exception) -> bool:
    """Whether memory ran out, of the processor or of a GPU: torch has its own ways to say so."""
    words = ("can't allocate memory", "not enough memory")  # of torch's allocator, RuntimeError
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(text in str(error) for text in words)
    )


def _card(name: str) -> Any:
    """What the runs of this process share on a CUDA device (``lanes.Card``); elsewhere None."""
    from cifarlib import training

    device = training.resolve_device(name)
    if device.type != "cuda":
        return None
    from cifarlib.gpu import lanes

    return lanes.card(device)


class Checkpointer:
    """Says after each epoch how far a run is, and writes its checkpoint when one is due.

    That is every ``checkpoint_every`` epochs (0: never). None is every epoch, unless less than
    ``LEAST_WORK`` would be saved: writing takes half a second. Raises ``OutOfTimeError`` at the
    last epoch border before the deadline.
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        settings: Settings,
        tell: Callable[[Message], Any],
        made_by: Provenance,
    ):
        self.path, self.config, self.tell, self.made_by = path, config, tell, made_by
        self.every, self.deadline = settings.checkpoint_every, settings.deadline
        self.aside: Aside = contextlib.nullcontext
        self.saved = self.began = time.monotonic()
        self.took = 0.0  # s of the longest epoch

    def __call__(self, state: dict[str, Any]) -> None:
        now = time.monotonic()
        epoch = len(state["history"]["learning_rate"]) - 1
        took, self.began = now - self.began, now
        if not self.took:  # not what came before: the loading of the data, epoch 0
            seconds = state["seconds"]
            took = min(took, seconds["train"] / epoch + seconds["evaluation"] / (epoch + 1))
        self.took = max(self.took, took)
        correct = state["history"]["validation"]["top1"][epoch]
        accuracy = 100 * correct / self.config.data.validation_size
        self.tell(Message("epoch", epoch=epoch, accuracy=accuracy))
        late = self._is_late(epoch)
        if self.every is None:
            due = time.monotonic() - self.saved >= LEAST_WORK
        else:
            due = self.every > 0 and epoch % self.every == 0
        if late or due:
            state = state | {"provenance": self.made_by.model_dump()}
            write_checkpoint(self.path, state, self.aside)
            self.tell(Message("checkpoint", epoch=epoch))
            self.saved = time.monotonic()
        if late:
            raise OutOfTimeError(f"stopped after epoch {epoch} of {self.config.epochs}")

    def _is_late(self, epoch: int) -> bool:
        if self.deadline is None or self.every == 0:
            return False
        last = epoch + 1 == self.config.epochs  # after which the chosen epochs are evaluated
        expected = SAFETY * self.took * (1 + last)
        return time.monotonic() + expected > self.deadline


def train(
    config: RunConfig,
    store: RecordStore,
    settings: Settings,
    tell: Callable[[Message], Any],
    *,
    keep_weights: bool = False,
) -> RunRecord:
    """Train a configuration, on from its checkpoint if there is one, and write its record.

    With ``keep_weights`` those that its predictions come from are written first, so that no
    record that was made with it lacks them. Checkpoints are written as ``Checkpointer`` says.
    """
    import torch

    from cifarlib import training
    from cifarlib.runs.inputs import load_inputs
    from cifarlib.runs.weights import KeptWeights, write_weights

    device = training.resolve_device(settings.device)
    name = run_id(config)
    checkpoint = store.checkpoint_path(name)
    for path in (checkpoint, store.weights_path(name)):
        remove_leftovers(path)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    made_by = provenance.of_this_process(settings.threads, gpu)
    state = read_checkpoint(checkpoint, store, lambda text: tell(Message("note", text=text)))
    if state is not None:
        made_by = _take_over(state, made_by)
    on_epoch = Checkpointer(checkpoint, config, settings, tell, made_by)
    card = _card(settings.device)
    with card.lane(config) if card else contextlib.nullcontext() as lane:
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
    execution = lane.execution(config) if lane else "eager"
    last = {
        "finished": provenance.now(),
        "resumed": fitted.resumed,
        "execution": execution,
        "lanes": lane.together if lane and execution == "graph" else 1,  # else one epoch at a time
    }
    record = to_record(config, fitted, made_by.model_copy(update=last))
    if keep_weights:
        kept = KeptWeights(fitted.weights, inputs.mean, inputs.std)
        write_weights(store.weights_path(name), kept)
    store.write(record)
    return record


def _take_over(state: dict[str, Any], made_by: Provenance) -> Provenance:
    """An origin with what changed on the way to it, by a checkpoint's state.

    Code that was changed at any time is not that of the commit.
    """
    before: Provenance = state.pop("provenance")
    epoch = len(state["history"]["learning_rate"])  # the next one
    dirty = max(made_by.dirty, before.dirty, key=[False, None, True].index)
    apart = provenance.differences(before, made_by)
    changes = before.changes + ((f"from epoch {epoch}: {', '.join(apart)}",) if apart else ())
    return made_by.model_copy(update={"changes": changes, "dirty": dirty})
