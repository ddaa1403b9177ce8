"""Records: what came out of a run, a data set's description, a network's; checked on reading.

A record is one JSON file, ``runs/<run id>.json`` in a build folder. Everything that a table, a
figure or a test in the report needs is in it. ``result`` is what the configuration decides, to the
last bits on one kind of device, with the same versions and threads; ``timing`` and ``provenance``
are what it does not.
"""

import base64
import dataclasses
import typing
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, Literal

import numpy as np
import pydantic
from pydantic import Field

from cifarlib.checking import Strict
from cifarlib.config import DATASETS, ENGINE, SPLITS, Channels, RunConfig, SplitName, run_id

if typing.TYPE_CHECKING:
    from cifarlib import training

FORMAT: Final = 1
AGREEING = 3  # the engine from which on counts, matrices and predictions follow one ranking
CLASSES = 10

Count = Annotated[int, Field(ge=0)]
Counts = Annotated[tuple[Count, ...], Field(min_length=CLASSES, max_length=CLASSES)]  # by class
Confusion = Annotated[tuple[Counts, ...], Field(min_length=CLASSES, max_length=CLASSES)]
"""Images by true class (rows) and predicted class."""


def pack(values: np.ndarray) -> str:
    """An array's bytes as base64; ``unpack`` gives them back."""
    return base64.b64encode(values.tobytes()).decode()


def unpack(packed: str, kind: str = "u1") -> np.ndarray:
    """A flat array of a numpy type; ``ValueError`` for what is no base64."""
    return np.frombuffer(base64.b64decode(packed, validate=True), dtype=kind)


def pack_classes(classes: Sequence[int]) -> str:
    """Classes 0–9 of n images as base64, 4 bits an image; ``unpack_classes`` gives them back."""
    even = np.asarray([*classes, *[0] * (len(classes) % 2)], dtype=np.uint8)
    return pack(even[0::2] << 4 | even[1::2])


def unpack_classes(packed: str, images: int) -> np.ndarray:
    """Classes uint8 (n,) of n images."""
    raw = unpack(packed)
    return np.stack([raw >> 4, raw & 15], axis=1).ravel()[:images]


def pack_confidence(confidence: Sequence[float] | np.ndarray) -> str:
    """Probabilities as base64, in 1/255; what is no number is 0."""
    return pack(np.rint(np.nan_to_num(confidence).clip(0, 1) * 255).astype(np.uint8))


def require(holds: bool, what: str) -> None:
    """Refuse a record that has a right digest and wrong content, as a program may write one."""
    if not holds:
        raise ValueError(f"it must have {what}")


def require_classes(packed: str, confidence: str, confusion: Confusion) -> None:
    """Refuse packed predictions that are not those of a confusion matrix."""
    images = sum(map(sum, confusion))
    lengths = len(unpack(packed)), len(unpack(confidence))
    require(lengths == ((images + 1) // 2, images), "as many packed predictions as test images")
    predicted = np.bincount(unpack_classes(packed, images), minlength=CLASSES).tolist()
    columns = [sum(column) for column in zip(*confusion, strict=True)]
    require(predicted == columns, "packed predictions as in the confusion matrix")


class SplitHistory(Strict):
    """One value an epoch, from epoch 0 (before training); None where it was not evaluated."""

    images: int = Field(ge=1)
    loss: tuple[float | None, ...]  # None beside a count: not a finite number
    top1: tuple[Count | None, ...]  # correct images
    top2: tuple[Count | None, ...]
    top3: tuple[Count | None, ...]

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "SplitHistory":
        columns = self.top1, self.top2, self.top3
        require(all(len(column) == len(self.loss) for column in columns), "columns of one length")
        counts = (count or 0 for column in columns for count in column)
        require(max(counts, default=0) <= self.images, "counts of its images")
        return self

    def accuracy(self, epoch: int, k: int = 1) -> float | None:
        """Top-k accuracy in % after an epoch."""
        correct: int | None = getattr(self, f"top{k}")[epoch]
        return None if correct is None else 100 * correct / self.images


class History(Strict):
    """The course of a run, epoch by epoch."""

    learning_rate: tuple[float | None, ...] = Field(min_length=2)  # at the last step; None before
    training_loss: tuple[float | None, ...]  # mean over the epoch's steps, in training mode
    train: SplitHistory
    validation: SplitHistory
    test: SplitHistory

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "History":
        rows = len(self.learning_rate)
        lengths = [len(self.training_loss), *(len(self.split(name).top1) for name in SPLITS)]
        require(set(lengths) == {rows}, "histories of one length")
        return self

    @property
    def epochs(self) -> int:
        """Epochs trained."""
        return len(self.learning_rate) - 1

    def split(self, name: SplitName) -> SplitHistory:
        """The history of one of the three sets."""
        return typing.cast(SplitHistory, getattr(self, name))


class Predictions(Strict):
    """From the reported weights: confusion matrices, each test image's prediction, last layer."""

    epoch: int  # of the weights: the chosen epoch, or the last (protocol.checkpoint)
    confusion: dict[SplitName, Confusion] = Field(min_length=len(SPLITS))
    test_classes: str  # packed: 4 bits an image
    test_confidence: str  # packed: probability of the predicted class, in 1/255
    last_layer: str  # packed: weights (10, features) in last_layer_scale/127
    last_layer_scale: float = Field(gt=0)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "Predictions":
        require_classes(self.test_classes, self.test_confidence, self.confusion["test"])
        weights = len(unpack(self.last_layer))
        require(weights > 0 and weights % CLASSES == 0, "a last layer of 10 rows")
        return self

    @property
    def classes(self) -> np.ndarray:
        """Predicted class of each test image, uint8 (n,)."""
        return unpack_classes(self.test_classes, self.images)

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class of each test image, (n,), to 1/255."""
        return unpack(self.test_confidence) / 255

    @property
    def weights(self) -> np.ndarray:
        """Weights of the last linear layer, (10, features), to 1/127 of the largest."""
        return unpack(self.last_layer, "i1").reshape(CLASSES, -1) * (self.last_layer_scale / 127)

    @property
    def images(self) -> int:
        """Number of test images."""
        return sum(map(sum, self.confusion["test"]))


def pack_predictions(
    epoch: int,
    confusion: dict[SplitName, Confusion],
    classes: list[int],
    confidence: list[float],
    last_layer: typing.Any,
) -> Predictions:
    """Predictions of n test images, their probabilities and (10, features) weights, packed."""
    weights = np.asarray(last_layer, dtype=np.float32)
    scale = float(np.abs(weights).max()) or 1.0
    if not np.isfinite(scale):
        weights, scale = np.zeros_like(weights), 1.0
    return Predictions(
        epoch=epoch,
        confusion=confusion,
        test_classes=pack_classes(classes),
        test_confidence=pack_confidence(confidence),
        last_layer=pack(np.rint(weights / scale * 127).astype(np.int8)),
        last_layer_scale=scale,
    )


class FlipAveraged(Strict):
    """Correct images by the mean logits of each image and its mirror image; selects nothing."""

    validation: int = Field(ge=0)
    test: int = Field(ge=0)


class Result(Strict):
    """What the configuration decides: equal for equal run ids, versions, devices and threads."""

    history: History
    chosen: dict[Literal["validation", "test", "last"], int]  # epoch, by each selection rule
    predictions: Predictions
    flip_averaged: FlipAveraged | None = None  # from the weights of the predictions; if asked for
    crop_averaged: FlipAveraged | None = None  # the same with both shifted by a pixel, too
    diverged: bool = False  # did the last epoch's training or validation loss cease to be finite?


class Timing(Strict):
    """What it cost, in seconds of the clock and of the processor."""

    train_s: float = Field(ge=0)
    evaluation_s: float = Field(ge=0)
    images_per_s: float = Field(ge=0)  # in training
    cpu_s: float | None = Field(default=None, ge=0)  # of all threads, training and evaluation
    energy_j: float | None = None  # J, of the whole device; only in old records


class Provenance(Strict):
    """Where a record comes from."""

    commit: str | None  # of cifarlib; None outside a checkout
    dirty: bool | None  # were tracked files changed?
    versions: dict[str, str]
    device: str  # its name
    device_class: Literal["cpu", "cuda"]
    threads: int = Field(ge=1)
    finished: str  # UTC
    resumed: int = 0  # times taken up again from a checkpoint
    changes: tuple[str, ...] = ()  # of processor, threads or versions, from one part to the next
    execution: Literal["eager", "graph"] = "eager"  # step by step, or replayed CUDA graphs
    lanes: int = Field(default=1, ge=1)  # runs that shared the device when this one began

    @pydantic.field_validator("finished")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        time = datetime.fromisoformat(text)
        require(time.utcoffset() is not None, "a time with its time zone")
        require(2000 <= time.year < 2100, "a time of this century")  # of others none is shown
        return text


class RunRecord(Strict):
    """One run: its configuration and what came out."""

    format: Literal[1]
    run_id: str
    engine: int
    data_fingerprint: str
    config: RunConfig
    result: Result
    timing: Timing
    provenance: Provenance

    def __repr__(self) -> str:
        end = "diverged" if self.result.diverged else f"test {self.accuracy('test'):.2f} %"
        return f"<RunRecord {self.run_id}: {self.config.epochs} epochs, {end}>"

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "RunRecord":
        result, history, protocol = self.result, self.result.history, self.config.protocol
        shown = result.predictions
        require(history.epochs <= self.config.epochs, "no more epochs than were configured")
        needed = {"validation", "last", protocol.selection}
        require(needed <= set(result.chosen), "a chosen epoch for each rule")
        epochs = [*result.chosen.values(), shown.epoch]
        require(all(1 <= e <= history.epochs for e in epochs), "chosen epochs that were trained")
        for name in SPLITS:
            images, split = getattr(self.config.data, f"{name}_size"), history.split(name)
            counted = sum(map(sum, shown.confusion[name]))
            require(split.images == counted == images, f"as many {name} images as configured")
            reported = (c[self.reported_epoch] for c in (split.top1, split.top2, split.top3))
            require(None not in reported, f"{name} accuracies at the reported epoch")
            if self.engine >= AGREEING:
                right = int(np.trace(shown.confusion[name]))
                equal = right == split.top1[shown.epoch]
                require(equal, f"as many right {name} images in counts and confusion")
            for averaged in (result.flip_averaged, result.crop_averaged):
                right = getattr(averaged, name, 0)  # none of the training images
                require(right <= images, f"no more correct {name} images than there are")
        require(None not in history.validation.top1, "a validation accuracy after every epoch")
        lost = None in (history.training_loss[-1], history.validation.loss[-1])
        fits = self.engine < AGREEING or result.diverged == lost
        require(fits, "diverged where the last losses are not finite")
        return self

    @property
    def seconds(self) -> float:
        """Time of training and evaluation, s: of a run on processors, as if its threads had had
        their cores to themselves; by the clock, if its parts had other threads or processors."""
        origin = self.provenance
        if self.timing.cpu_s is not None and origin.device_class == "cpu" and not origin.changes:
            return self.timing.cpu_s / origin.threads
        return self.timing.train_s + self.timing.evaluation_s

    @property
    def training_seconds(self) -> float:
        """The part of ``seconds`` that was training, by its share of the clock, s."""
        clock = self.timing.train_s + self.timing.evaluation_s
        return self.seconds * self.timing.train_s / clock if clock else 0.0

    @property
    def images_per_s(self) -> float:
        """Images trained a second: of a run on processors, of the time that its threads had."""
        spent = self.training_seconds
        return self.timing.images_per_s * self.timing.train_s / spent if spent else 0.0

    @property
    def reported_epoch(self) -> int:
        """The epoch that the record's own protocol reports."""
        return self.result.chosen[self.config.protocol.selection]

    def accuracy(self, split: SplitName, k: int = 1, epoch: int | None = None) -> float | None:
        """Top-k accuracy in % of a set, at the reported epoch unless another is named.

        None where the set was not evaluated then, and for the reported epoch of a diverged run.
        """
        if epoch is None and self.result.diverged:
            return None
        epoch = self.reported_epoch if epoch is None else epoch
        return self.result.history.split(split).accuracy(epoch, k)


def to_result(result: "training.Result") -> Result:
    """What ``fit`` says came out, as a record holds it."""
    predictions = pack_predictions(**vars(result.predictions))
    return Result.model_validate(dataclasses.asdict(result) | {"predictions": predictions})


def to_record(config: RunConfig, fitted: "training.Fitted", provenance: Provenance) -> RunRecord:
    """The record of a run that ``fit`` has trained."""
    return RunRecord(
        format=FORMAT,
        run_id=run_id(config),
        engine=ENGINE,
        data_fingerprint=DATASETS[config.data.name].fingerprint,
        config=config,
        result=to_result(fitted.result),
        timing=Timing(**dataclasses.asdict(fitted.timing)),
        provenance=provenance,
    )


class Statistics(Strict):
    """Mean and standard deviation of each colour channel, of pixels scaled to 0–1."""

    mean: Channels
    std: Channels


class DataRecord(Strict):
    """What the report shows of a data set, so that it needs no data set itself."""

    format: Literal[1]
    dataset: str
    data_fingerprint: str
    class_counts: dict[SplitName, Counts] = Field(min_length=len(SPLITS))
    statistics: Statistics  # of all training images
    resized: dict[str, Statistics]  # by method, after Resize(256) and CenterCrop(224)
    test_labels: str  # packed: true class of every test image, 4 bits each
    pixel_sums: str  # packed: each pixel summed over the training images, uint32
    first_loss: dict[Literal["fan_out", "fan_in"], float] = Field(min_length=2)  # by last layer
    examples: tuple[str, ...] = Field(min_length=CLASSES, max_length=CLASSES)  # PNG, one a class
    transforms: dict[str, str]  # PNG, base64: one image after each transform
    provenance: Provenance

    def __repr__(self) -> str:
        return f"<DataRecord of {self.dataset}, fingerprint {self.data_fingerprint}>"

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "DataRecord":
        require(self.dataset in DATASETS, "a known data set")
        images = sum(self.class_counts["test"])
        require(len(unpack(self.test_labels)) == (images + 1) // 2, "every test image's label")
        require(len(unpack(self.pixel_sums)) == 4 * 3 * 32 * 32, "a sum of every pixel")
        for picture in (*self.examples, *self.transforms.values()):
            require(len(unpack(picture)) > 0, "no empty picture")
        return self

    @property
    def labels(self) -> np.ndarray:
        """True class of every test image in the set's order, uint8 (n,)."""
        return unpack_classes(self.test_labels, sum(self.class_counts["test"]))

    @property
    def mean_image(self) -> np.ndarray:
        """Mean of all training images, (3, 32, 32) of 0–1."""
        sums = unpack(self.pixel_sums, "<u4").reshape(3, 32, 32)
        return sums / (255 * DATASETS[self.dataset].train_images)


class Layer(Strict):
    """One layer of a network, or one operation between layers."""

    name: str  # path of the module, "stage1.block1.conv"
    kind: str  # class of the module, or name of the operation
    inputs: tuple[str, ...]  # names of the layers whose outputs it takes; "input" is the image
    output: tuple[int, ...]  # shape for one image, (channels, height, width) or (features,)
    parameters: int  # trainable
    flops: int  # a multiply-add counts as two; 0 where there are no products
    kernel: int | None = None  # of convolutions, with stride and padding in pixels
    stride: int | None = None
    padding: int | None = None


class NetworkRecord(Strict):
    """What the report shows of the residual network, so that it needs no torch itself."""

    format: Literal[1]
    engine: int
    model: Literal["residual"]
    image: tuple[int, int, int]  # channels, height, width
    layers: tuple[Layer, ...] = Field(min_length=1)  # in the order in which an image meets them
    provenance: Provenance

    @property
    def parameters(self) -> int:
        """Trainable parameters of the whole network."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating-point operations of one image's forward pass."""
        return sum(layer.flops for layer in self.layers)


Record = RunRecord | DataRecord | NetworkRecord
"""What a sweep makes."""
