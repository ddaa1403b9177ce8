"""CIFAR-10.1: test images gathered anew for the same classes, and what recorded runs make of them.

Recht and others, "Do CIFAR-10 Classifiers Generalize to CIFAR-10?", 2018: version 6, 2,000 images.
Nothing is fetched: its two files are looked for in a folder that is named, else in
``$CIFAR10_1_ROOT``, else in ``data/cifar-10.1``.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from cifarlib import paths
from cifarlib.checking import Strict, named_folder, read_bytes
from cifarlib.data import Images
from cifarlib.errors import DataError, RecordError
from cifarlib.runs.results import Results
from cifarlib.runs.schema import (
    Confusion,
    Provenance,
    RunRecord,
    require,
    require_classes,
    unpack,
)
from cifarlib.runs.store import RecordStore

IMAGES = 2000
IMAGE_FILE, LABEL_FILE = "cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy"
SOURCE = "https://github.com/modestyachts/CIFAR-10.1"
VARIABLE = "CIFAR10_1_ROOT"


@dataclass(frozen=True)
class NewImages(Images):
    """The set, with labels in CIFAR-10's order of classes."""

    fingerprint: str  # SHA-256 of both files, images first


def find_folder(named: Path | None = None) -> Path:
    """Where the two files are looked for, whether they are there or not."""
    return named or named_folder(VARIABLE) or paths.DATA / "cifar-10.1"


def read_images(folder: Path) -> NewImages:
    """The set in a folder; raises ``DataError`` where its files are missing or not what they
    should be. No code comes from them."""
    digest = hashlib.sha256()
    images = _read_array(folder / IMAGE_FILE, (IMAGES, 32, 32, 3), np.uint8, digest)
    labels = _read_array(folder / LABEL_FILE, (IMAGES,), np.integer, digest).astype(np.int64)
    if labels.min() < 0 or labels.max() > 9:
        told = f"has labels from {labels.min()} to {labels.max()} instead of classes 0 to 9"
        raise _wrong(folder / LABEL_FILE, told)
    return NewImages(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels, digest.hexdigest())


def _read_array(
    path: Path, shape: tuple[int, ...], kind: Any, digest: "hashlib._Hash"
) -> np.ndarray:
    try:
        raw = read_bytes(path)
    except OSError as error:
        raise _wrong(path, f"cannot be read ({error.strerror})") from error
    digest.update(raw)
    try:
        found = np.load(io.BytesIO(raw), allow_pickle=False)
        right = found.shape == shape and np.issubdtype(found.dtype, kind)
    except Exception as error:  # whatever numpy makes of damaged bytes, or of several arrays
        raise _wrong(path, "is no array of numbers") from error
    if not right:
        told = f"has shape {found.shape} of {found.dtype} instead of {shape} of {kind.__name__}"
        raise _wrong(path, told)
    return found


def _wrong(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} {what}; put {IMAGE_FILE} ({IMAGES}, 32, 32, 3) and {LABEL_FILE} ({IMAGES},) of "
        f"{SOURCE} there, or name their folder with --folder or {VARIABLE}"
    )


class ShiftRecord(Strict):
    """A recorded run's predictions of CIFAR-10.1, from the weights of its own predictions."""

    format: Literal[1]
    run_id: str
    of_predictions: str  # SHA-256 of the run's own predictions: these were made with their weights
    data_fingerprint: str  # SHA-256 of CIFAR-10.1's two files
    confusion: Confusion  # rows are true classes
    classes: str  # packed: predicted class of each image, 4 bits
    confidence: str  # packed: probability of the predicted class, in 1/255
    right: str  # packed: whether each image is right, 1 bit
    provenance: Provenance

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(map(sum, self.confusion))

    @property
    def correct(self) -> int:
        """Images that are right."""
        return sum(row[label] for label, row in enumerate(self.confusion))

    @property
    def accuracy(self) -> float:
        """Top-1 in %."""
        return 100 * self.correct / self.images

    @property
    def correct_images(self) -> np.ndarray:
        """Which images are right, bool (n,)."""
        return np.unpackbits(unpack(self.right), count=self.images).astype(bool)

    @property
    def confidences(self) -> np.ndarray:
        """Probability of the predicted class of each image, (n,), to 1/255."""
        return unpack(self.confidence) / 255

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "ShiftRecord":
        require_classes(self.classes, self.confidence, self.confusion)
        packed = len(unpack(self.right)) == (self.images + 7) // 8
        right = packed and self.correct == self.correct_images.sum()
        require(right and self.images > 0, "as many right images as the confusion matrix")
        return self


def predictions_digest(record: RunRecord) -> str:
    """What ties a run's record and what was made with its weights together."""
    return hashlib.sha256(record.result.predictions.model_dump_json().encode()).hexdigest()


def shift_path(store: RecordStore, run_id: str) -> Path:
    """Where the record of a run's predictions of CIFAR-10.1 stands."""
    return store.runs / f"shift-{run_id}.json"


def read_shift(store: RecordStore, run_id: str) -> ShiftRecord | None:
    """Such a record, None where there is none; ``RecordError`` where it is damaged."""
    path = shift_path(store, run_id)
    shift = store.read(ShiftRecord, path)
    if shift and shift.run_id != run_id:
        raise RecordError(f"{path} holds the record of another run, {shift.run_id}")
    return shift


def read_shifts(results: Results) -> dict[str, ShiftRecord]:
    """By run id, what there is of recorded runs; what is damaged or of another training is not."""
    found = {}
    for run_id, record in results.records.items():
        try:
            shift = read_shift(results.store, run_id)
        except RecordError:
            continue  # as good as none: it is named, set aside and made again by ``generalise``
        if shift and shift.of_predictions == predictions_digest(record):
            found[run_id] = shift
    return found
