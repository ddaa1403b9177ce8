"""Recorded runs on CIFAR-10.1, from their kept weights.

A run's own test images are evaluated first: where machine, versions and threads are those of its
record, the recorded predictions must come out; elsewhere it is said how many do not. Either set is
evaluated as the run evaluates its test images, in normalisation, size, precision and protocol.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cifarlib import data, metrics
from cifarlib.errors import ConfigError, DataError, RecordError
from cifarlib.runs import provenance
from cifarlib.runs.results import Results
from cifarlib.runs.schema import FORMAT, RunRecord, pack_classes
from cifarlib.runs.shift import (
    NewImages,
    ShiftRecord,
    pack,
    predictions_digest,
    read_images,
    read_shift,
    shift_path,
    write_shift,
)
from cifarlib.runs.store import RecordStore
from cifarlib.runs.verify import differing_origins
from cifarlib.runs.weights import build_network
from cifarlib.training import Feed, ImageSet, Inputs, compute_logits, lay_out, resolve_device

DATASET = "cifar10"  # whose classes the new images have


@dataclass
class Generalised:
    """What came of a study's recorded runs, by name."""

    made: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)  # made before, from the same files
    lacking: list[str] = field(default_factory=list)  # no weights, or damaged ones
    wrong: list[str] = field(default_factory=list)  # weights that do not give the predictions


def generalise(
    results: Results, folder: Path, *, device: str = "auto", say: Callable[[str], None] = print
) -> Generalised:
    """Evaluate every recorded run with kept weights on CIFAR-10.1, and record what comes out.

    What is there is not made again. Damaged weights are set aside. Raises ``DataError`` where
    ``folder`` does not hold the set, and ``ConfigError`` where no run could be evaluated.
    """
    new, where = read_images(folder), resolve_device(device)
    store = results.store
    if results.scale.data.name != DATASET:
        raise ConfigError(
            "these runs are of a generated stand-in set, whose classes are not CIFAR-10.1's; "
            "add --set data.name=cifar10, or name a scale on CIFAR-10"
        )
    names = {c.run_id: f"{c.name} (seed {c.config.seed})" for c in reversed(results.known)}
    done = Generalised()
    own = _find_test_images(say)
    for run_id, record in results.records.items():
        name = names[run_id]
        if _is_present(store, record, new, say):
            done.present.append(name)
            continue
        path = store.weights_path(run_id)
        if not path.exists():
            done.lacking.append(name)
            continue
        try:
            network = KeptNetwork(record, path, where)
        except RecordError as error:
            say(f"{error}; set aside as {store.set_aside(path, str(error))}")
            done.lacking.append(name)
            continue
        differing = network.count_differing() if own else None
        apart = differing_origins(record.provenance, network.provenance)
        if differing and not apart:
            say(
                f"{name}: left out, its weights give {differing} other predictions of CIFAR-10's "
                "test images than are recorded, on the same machine with the same versions"
            )
            done.wrong.append(name)
            continue
        shift = network.look_at(new, differing)
        write_shift(store, shift)
        done.made.append(name)
        say(f"{name}: {_tell(record, shift, apart)}")
    if len(done.lacking) == len(results.records):
        raise ConfigError(f"no recorded run in {store.runs} has kept weights; {KEEP}")
    return done


KEEP = (
    "cifarlib sweep --keep-weights keeps those of the runs it trains, cifarlib verify "
    "--keep-weights --run NAME trains a recorded one again and keeps them if it comes out the same"
)


def _find_test_images(say: Callable[[str], None]) -> bool:
    """Whether CIFAR-10 is here, so that its test images can be evaluated again."""
    try:
        data.find(DATASET)
    except DataError as error:
        say(f"recorded predictions are not checked: {error}")
        return False
    return True


def _is_present(
    store: RecordStore, record: RunRecord, new: NewImages, say: Callable[[str], None]
) -> bool:
    try:
        shift = read_shift(store, record.run_id)
    except RecordError as error:
        path = shift_path(store, record.run_id)
        say(f"{error}; set aside as {store.set_aside(path, str(error))}")
        return False
    return (
        shift is not None
        and shift.of_predictions == predictions_digest(record)
        and shift.data_fingerprint == new.fingerprint
    )


def _tell(record: RunRecord, shift: ShiftRecord, apart: list[str]) -> str:
    """One run's two accuracies, and what became of its recorded predictions."""
    confusion = np.array(record.result.predictions.confusion["test"])
    told = (
        f"{100 * confusion.trace() / confusion.sum():.2f} % on CIFAR-10, {shift.accuracy:.2f} % on "
        "CIFAR-10.1"
    )
    if shift.flip_averaged is not None:
        told += f" ({100 * shift.flip_averaged / shift.images:.2f} % averaged over flips)"
    if shift.differing is None:
        return told
    if not shift.differing:
        return f"{told}; its recorded predictions came out again"
    count = f"{shift.differing} of {confusion.sum():,} recorded predictions"
    return f"{told}; {count} came out otherwise ({', '.join(apart)})"


class KeptNetwork:
    """A recorded run's network with its kept weights, evaluating as the run did.

    On a processor it has as many threads as the run had. Raises ``RecordError`` where the weights
    are damaged or not the record's.
    """

    def __init__(self, record: RunRecord, path: Path, device: torch.device):
        self.record, self.device = record, device
        model, self.kept = build_network(record, path)
        self.model, self.channels_last = lay_out(model, record.config, device)
        threads = torch.get_num_threads()
        if device.type == "cpu":
            threads = record.provenance.threads
            torch.set_num_threads(threads)
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        self.provenance = provenance.of_this_process(device.type, threads, card)

    def compute(self, images: np.ndarray, *, mirrored: bool = False) -> Tensor:
        """Logits (n, 10), on the CPU, of uint8 images (n, 3, 32, 32) or of their mirror images."""
        config, pixels = self.record.config, torch.from_numpy(images).to(self.device)
        here = ImageSet(pixels, torch.zeros(len(images), dtype=torch.int64, device=self.device))
        feed = Feed(
            config, Inputs(here, here, here, self.kept.mean, self.kept.std), self.channels_last
        )
        batches = feed.evaluation(here, "evaluation/test", self.record.result.predictions.epoch)
        if mirrored:
            batches = (batch.flip(3) for batch in batches)
        return compute_logits(self.model, batches, config, self.device).cpu()

    def count_differing(self) -> int:
        """How many of the run's own test images are predicted unlike recorded."""
        images = data.load_splits(self.record.config.data).test.images
        classes, _ = metrics.predictions(self.compute(images))
        return int((np.array(classes) != self.record.result.predictions.classes).sum())

    def look_at(self, new: NewImages, differing: int | None) -> ShiftRecord:
        """What the network makes of CIFAR-10.1, as a record."""
        logits = self.compute(new.images)
        classes, confidence = metrics.predictions(logits)
        confusion = np.zeros((10, 10), dtype=int)
        np.add.at(confusion, (new.labels, classes), 1)
        flip_averaged = None
        if self.record.config.evaluation.flip_averaged:
            both = logits + self.compute(new.images, mirrored=True)
            flip_averaged = metrics.top_k_correct(both, torch.from_numpy(new.labels))[0]
        shares = np.nan_to_num(confidence).clip(0, 1)
        return ShiftRecord(
            format=FORMAT,
            run_id=self.record.run_id,
            of_predictions=predictions_digest(self.record),
            data_fingerprint=new.fingerprint,
            confusion=tuple(map(tuple, confusion.tolist())),
            classes=pack_classes(classes),
            confidence=pack(np.rint(shares * 255).astype(np.uint8)),
            right=pack(np.packbits(np.array(classes) == new.labels)),
            flip_averaged=flip_averaged,
            differing=differing,
            provenance=self.provenance,
        )
