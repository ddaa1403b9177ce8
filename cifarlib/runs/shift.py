"""CIFAR-10.1: test images gathered anew for the same classes, and what recorded runs make of them.

Recht and others, "Do CIFAR-10 Classifiers Generalize to CIFAR-10?", 2018: version 6, 2,000 images.
Nothing is fetched: its two files are looked for in a folder that is named, else in
``$CIFAR10_1_ROOT``, else in ``data/cifar-10.1``.
"""

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic

from cifarlib import paths
from cifarlib.checking import Strict, named_folder, read_bytes
from cifarlib.errors import DataError, RecordError
from cifarlib.runs.results import Results
from cifarlib.runs.schema import (
    Confusion,
    Provenance,
    RunRecord,
    unpack_classes,
)
from cifarlib.runs.store import RecordStore, encode, write_atomically

IMAGES = 2000
IMAGE_FILE, LABEL_FILE = "cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy"
SOURCE = "https://github.com/modestyachts/CIFAR-10.1"
VARIABLE = "CIFAR10_1_ROOT"


# ---------------------------------------------------------------------------------------------
# The images
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NewImages:
    """The set: uint8 (n, 3, 32, 32), int64 labels (n,) in CIFAR-10's order of classes."""

    images: np.ndarray
    labels: np.ndarray
    fingerprint: str  # SHA-256 of both files, images first


def find_folder(named: Path | None = None) -> Path:
    """Where the two files are looked for, whether they are there or not."""
    return named or named_folder(VARIABLE) or paths.DATA / "cifar-10.1"


def read_images(folder: Path) -> NewImages:
    """The set in a folder; raises ``DataError`` where its files are missing or not what they
    should be. No code comes from them."""
    digest = hashlib.sha256()
    shapes = {IMAGE_FILE: (IMAGES, 32, 32, 3), LABEL_FILE: (IMAGES,)}
    images, labels = (_read_array(folder / file, shape, digest) for file, shape in shapes.items())
    if labels.min() < 0 or labels.max() > 9:
        told = f"has labels from {labels.min()} to {labels.max()} instead of classes 0 to 9"
        raise _wrong(folder / LABEL_FILE, told)
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return NewImages(images, labels.astype(np.int64), digest.hexdigest())


def _read_array(path: Path, shape: tuple[int, ...], digest: "hashlib._Hash") -> np.ndarray:
    """A file's array: uint8 images, labels of any whole numbers."""
    try:
        raw = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _wrong(path, "is missing") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    digest.update(raw)
    try:
        found = np.load(io.BytesIO(raw), allow_pickle=False)
    except Exception as error:  # whatever numpy makes of damaged bytes
        raise _wrong(path, "is no array of numbers") from error
    if not isinstance(found, np.ndarray):
        raise _wrong(path, "is no single array")
    right = found.dtype == np.uint8 if len(shape) > 1 else np.issubdtype(found.dtype, np.integer)
    if found.shape != shape or not right:
        kind = "uint8" if len(shape) > 1 else "whole numbers"
        told = f"has shape {found.shape} of {found.dtype} instead of {shape} of {kind}"
        raise _wrong(path, told)
    return found


def _wrong(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} {what}; put {IMAGE_FILE} ({IMAGES}, 32, 32, 3) and {LABEL_FILE} ({IMAGES},) of "
        f"{SOURCE} there, or name their folder with --folder or {VARIABLE}"
    )


# ---------------------------------------------------------------------------------------------
# What a run makes of them
# ---------------------------------------------------------------------------------------------


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
        return np.unpackbits(_unpack(self.right), count=self.images).astype(bool)

    @property
    def confidences(self) -> np.ndarray:
        """Probability of the predicted class of each image, (n,), to 1/255."""
        return _unpack(self.confidence) / 255

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "ShiftRecord":
        if len(self.confusion) != 10 or any(
            len(row) != 10 or min(row) < 0 for row in self.confusion
        ):
            raise ValueError("the confusion matrix is not 10 × 10 counts")
        images = self.images
        lengths = [len(_unpack(text)) for text in (self.classes, self.confidence, self.right)]
        if not images or lengths != [(images + 1) // 2, images, (images + 7) // 8]:
            raise ValueError("the predictions are not as many as the images")
        if self.correct != self.correct_images.sum():
            raise ValueError("the predictions do not give the confusion matrix")
        predicted = np.bincount(unpack_classes(self.classes, images), minlength=10)
        if predicted.tolist() != np.sum(self.confusion, axis=0).tolist():
            raise ValueError("the predictions do not give the confusion matrix")
        return self


def pack(values: np.ndarray) -> str:
    """An array's bytes as base64."""
    return base64.b64encode(values.tobytes()).decode()


def _unpack(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8)


def predictions_digest(record: RunRecord) -> str:
    """What ties a run's record and what was made with its weights together."""
    return hashlib.sha256(record.result.predictions.model_dump_json().encode()).hexdigest()


# ---------------------------------------------------------------------------------------------
# Written and read
# ---------------------------------------------------------------------------------------------


def shift_path(store: RecordStore, run_id: str) -> Path:
    """Where the record of a run's predictions of CIFAR-10.1 stands."""
    return store.runs / f"shift-{run_id}.json"


def write_shift(store: RecordStore, shift: ShiftRecord) -> Path:
    """Put such a record in place; raises ``RecordError`` where that is impossible."""
    path = shift_path(store, shift.run_id)
    write_atomically(path, encode(shift))
    return path


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
