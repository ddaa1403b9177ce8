"""What a run is: everything that decides its result, validated, with a stable id.

``run_id`` names a run's record by its ``RunConfig`` and its data.
"""

import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import pydantic
from pydantic import Field

from cifarlib.checking import Strict

ENGINE = 3
"""Raised by hand when the arithmetic of training changes; part of every run id."""


IMAGE_SIZE = 224
"""Pixels after the crop in the paper's stage 3."""

Channels = tuple[float, float, float]
"""A value of each colour channel: red, green, blue."""

SplitName = Literal["train", "validation", "test"]
SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True)
class NetworkInfo:
    """What is known of a network without building it; tests measure it."""

    title: str
    gflop: float  # of one 32×32 image's forward pass
    memory: float  # MB that one 32×32 image of a bf16 batch keeps for the backward pass
    least_pixels: int  # side of the smallest image whose last feature map has more than one pixel


NETWORKS = {
    "residual": NetworkInfo("residual network", gflop=0.2729, memory=0.61, least_pixels=32),
    "resnet18": NetworkInfo("ResNet-18", gflop=0.0740, memory=0.25, least_pixels=33),
    "densenet121": NetworkInfo("DenseNet-121", gflop=0.1157, memory=1.38, least_pixels=61),
}


# ---------------------------------------------------------------------------------------------
# Data sets that a configuration may name
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetInfo:
    """A data set in the python-batches layout, known by the MD5 of each of its files."""

    title: str
    folder: str
    train_files: dict[str, str]
    test_files: dict[str, str]
    meta_files: dict[str, str]
    train_images: int
    test_images: int
    classes: tuple[str, ...]
    real: bool

    @property
    def files(self) -> dict[str, str]:
        """File name → MD5, training batches first."""
        return self.train_files | self.test_files | self.meta_files

    @property
    def sizes(self) -> dict[SplitName, int]:
        """Images of each set where all are used; validation has a tenth of the training images."""
        held_out = self.train_images // 10
        train = self.train_images - held_out
        return {"train": train, "validation": held_out, "test": self.test_images}

    @property
    def fingerprint(self) -> str:
        """What the data are, in 12 hexadecimal digits: a hash over every file's MD5."""
        return digest(self.files)[:12]


CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

SHAPES = (
    "disc", "ring", "square", "frame", "triangle", "plus", "saltire", "bars", "pillars", "dots",
)  # fmt: skip

DATASETS = {
    "cifar10": DatasetInfo(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        train_files={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test_files={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta_files={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        train_images=50_000,
        test_images=10_000,
        classes=CLASSES,
        real=True,
    ),
    "synthetic": DatasetInfo(
        title="a generated stand-in set",
        folder="synthetic-batches-py",
        train_files={
            "data_batch_1": "bb044f8c2c2aa198b5ed327d2be53e0d",
            "data_batch_2": "a626e1ef44652995147c2ecd3b0b390a",
            "data_batch_3": "31f274d56ab53e96d42255aa4d2f00e4",
            "data_batch_4": "ceec65dd75bf8b3b262649bd13bae366",
            "data_batch_5": "19c6c3421cc466356458ffa28a9bc4ac",
        },
        test_files={"test_batch": "e0a56f1256834793f1575215ecc252eb"},
        meta_files={"batches.meta": "78e78d7f7304e1c53001b2a9f239fa40"},
        train_images=10_000,
        test_images=2_000,
        classes=SHAPES,
        real=False,
    ),
}


# ---------------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------------


def later(default: Any, **bounds: Any) -> Any:
    """A field that runs had before it was one, with the value that they had.

    It is left out of a run's id where it has that value, so that the ids of earlier runs stay.
    """
    return Field(default=default, json_schema_extra={"later": True}, **bounds)


class DataConfig(Strict):
    """Which images: stratified, nested subsets of the 90 %/10 % split."""

    name: Literal["cifar10", "synthetic"]
    train_size: int = Field(ge=10)  # images
    validation_size: int = Field(ge=10)  # images
    test_size: int = Field(ge=10)  # images
    split_seed: int = Field(default=42, ge=0, lt=2**32)  # Listing 2, dataset_split

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "DataConfig":
        for split, largest in DATASETS[self.name].sizes.items():
            if getattr(self, f"{split}_size") > largest:
                raise ValueError(f"{split}_size of {self.name} is at most {largest}")
        return self


class ResizeConfig(Strict):
    """Enlarge to ``size`` × ``size`` pixels, then crop: at random in training, else the centre."""

    size: int = Field(ge=32, le=512)
    crop: int = Field(ge=32, le=512)
    method: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]

    @pydantic.model_validator(mode="after")
    def _fits(self) -> "ResizeConfig":
        if self.crop > self.size:
            raise ValueError(f"crop ({self.crop}) must not be larger than size ({self.size})")
        return self


class AugmentationConfig(Strict):
    """Random changes of a training image, applied in this order (Section IV.A)."""

    rotation_degrees: float = Field(default=0.0, ge=0, le=180)  # uniform within ± this
    rotation_probability: float = Field(default=0.0, ge=0, le=1)
    padding: int = Field(default=0, ge=0, le=16)  # pixels on each side, then a random crop
    padding_mode: Literal["black", "reflect"] = later("black")
    flip_probability: float = Field(default=0.0, ge=0, le=1)
    alternating_flip: bool = later(False)  # drawn once, then turned over in every epoch (Jordan)
    cutout: int = later(0, ge=0, le=32)  # side of a square that is set to the mean colour, pixels

    @pydantic.model_validator(mode="after")
    def _flips(self) -> "AugmentationConfig":
        if self.alternating_flip and not self.flip_probability:
            raise ValueError("alternating_flip needs a flip_probability above 0, best 0.5")
        return self


class WhiteningConfig(Strict):
    """First filters that whiten 3×3 patches of the training images (Page; Jordan, 2024)."""

    frozen: bool  # whether they stay so; their biases are trained


class ModelConfig(Strict):
    """The network and where its first weights come from."""

    name: Literal["residual", "resnet18", "densenet121"]
    initialization: Literal["kaiming", "imagenet"]  # Section IV, Weight Initialization
    last_layer_scale: float = later(1.0, gt=0, le=1)  # of its first weights; the paper's σ: 0.447
    # Of the first weights of each residual branch's last batch norm. Not 0: there is a ReLU
    # behind it, which would pass no gradient, ever.
    branch_scale: float = later(1.0, gt=0, le=1)
    whitening: WhiteningConfig | None = later(None)
    batch_norm_momentum: float = later(0.1, gt=0, le=1)  # share of the newest batch
    # Convolutions behind the first begin as the identity, as far as there are inputs (Jordan, 2024)
    partial_identity: bool = later(False)

    @pydantic.model_validator(mode="after")
    def _known(self) -> "ModelConfig":
        if self.name == "residual" and self.initialization == "imagenet":
            raise ValueError("the residual network has no ImageNet weights; use kaiming")
        if self.name != "residual":
            for field in ("last_layer_scale", "branch_scale", "whitening", "partial_identity"):
                if getattr(self, field) != type(self).model_fields[field].default:
                    raise ValueError(f"{field} is for the residual network only; leave it out")
        return self


class SGDConfig(Strict):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    momentum: float = Field(ge=0, lt=1)
    nesterov: bool = later(False)

    @pydantic.model_validator(mode="after")
    def _has_momentum(self) -> "SGDConfig":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class AdamConfig(Strict):
    """Adam (L2 regularisation in the gradient) or AdamW (decoupled weight decay)."""

    name: Literal["adam", "adamw"]
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    epsilon: float = Field(gt=0)


class MuonConfig(Strict):
    """Muon for the weights of convolutions, another optimiser for all the rest (Jordan, 2024)."""

    name: Literal["muon"]
    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    steps: int = Field(default=5, ge=1, le=20)  # Newton–Schulz iterations
    normalized: bool = False  # the norm of a convolution's weights is held at √filters
    rest: Annotated[SGDConfig | AdamConfig, Field(discriminator="name")]
    rest_factor: float = Field(default=1.0, gt=0, le=1000)  # the rest's rate, in the run's rate


class ConstantSchedule(Strict):
    """The learning rate stays as it is."""

    name: Literal["constant"]


class ValidationStepSchedule(Strict):
    """Another rate from the epoch after validation top-1 first exceeds a threshold (V.B.1)."""

    name: Literal["validation_step"]
    threshold: float = Field(gt=0, lt=100)  # % top-1
    learning_rate: float = Field(gt=0)


class PlateauSchedule(Strict):
    """Reduce the rate when validation top-1 has not improved (ReduceLROnPlateau, Listing 2)."""

    name: Literal["plateau"]
    factor: float = Field(gt=0, lt=1)
    patience: int = Field(ge=0)  # epochs without improvement that are tolerated
    cooldown: int = Field(ge=0)  # epochs after a reduction that are not counted
    threshold: float = Field(ge=0, lt=1)  # relative improvement that counts


class MultiStepSchedule(Strict):
    """Multiply the rate by ``factor`` at each milestone (He et al.: 0.5 and 0.75)."""

    name: Literal["multi_step"]
    milestones: tuple[float, ...]  # shares of all steps, rising
    factor: float = Field(gt=0, lt=1)

    @pydantic.model_validator(mode="after")
    def _rising(self) -> "MultiStepSchedule":
        marks = (0.0, *self.milestones, 1.0)
        if not all(low < high for low, high in itertools.pairwise(marks)):
            raise ValueError("milestones must rise and lie between 0 and 1, as shares of all steps")
        return self


class CosineSchedule(Strict):
    """Linear warm-up, then half a cosine down to ``final`` times the rate."""

    name: Literal["cosine"]
    warmup: float = Field(ge=0, lt=1)  # share of all steps
    final: float = Field(ge=0, le=1)  # share of the learning rate


class TriangularSchedule(Strict):
    """A straight line up to the rate, and another one down."""

    name: Literal["triangular"]
    start: float = Field(ge=0, le=1)  # share of the learning rate at the first step
    peak: float = Field(gt=0, lt=1)  # where the rate is reached, as a share of all steps
    final: float = Field(ge=0, le=1)  # share of the learning rate after the last step


class AverageConfig(Strict):
    """An exponential moving average of weights and batch statistics, evaluated in their place."""

    decay: float = Field(ge=0, lt=1)  # share of the average that is kept at each update
    every: int = Field(default=1, ge=1)  # steps between updates
    # Lookahead (Zhang and others, 2019; Jordan, 2024): training goes on from the average. The share
    # that is kept rises to ``decay`` with the cube of the steps taken.
    lookahead: bool = later(False)


class ProtocolConfig(Strict):
    """How a run is trained, measured and reported, where the paper's listings leave custom."""

    shuffle: bool  # new order in every epoch; the listing never shuffles
    augmented_evaluation: bool  # validation and test images augmented, too (Listing 2, __main__)
    normalization: Literal["computed", "published"]  # true statistics, or Listing 4's constants
    loss: Literal["per_sample", "batch_means"]  # Listing 3: sum of batch means over all samples
    checkpoint: Literal["best", "last"]  # which weights the predictions come from (Listing 3)
    selection: Literal["validation", "test"]  # whose top-1 chooses the reported epoch (Listing 2)


class EvaluationConfig(Strict):
    """After how many epochs a set is evaluated; 0: at the chosen epochs only."""

    train_every: int = Field(ge=0)
    test_every: int = Field(ge=0)
    flip_averaged: bool = later(False)  # report what images and their mirror images give together
    crop_averaged: bool = later(False)  # ... and what they give with two shifts by a pixel (Jordan)


class RunConfig(Strict):
    """Everything that decides a result; nothing is defaulted further down."""

    data: DataConfig
    resize: ResizeConfig | None  # None: 32×32 as they are
    augmentation: AugmentationConfig
    model: ModelConfig
    dropout: float = Field(ge=0, lt=1)  # probability of dropping, before the last layer
    label_smoothing: float = later(0.0, ge=0, lt=1)  # in training; evaluation knows none
    optimizer: Annotated[SGDConfig | AdamConfig | MuonConfig, Field(discriminator="name")]
    learning_rate: float = Field(gt=0, le=100)
    weight_decay: float = Field(ge=0, le=10)  # L2 for SGD and Adam, decoupled for AdamW and Muon
    decayed: Literal["all", "weights"] = later("all")  # weights: no bias and no batch norm
    batch_norm_bias_factor: float = later(1.0, gt=0, le=1000)  # their rate, in the run's rate
    schedule: Annotated[
        ConstantSchedule
        | ValidationStepSchedule
        | PlateauSchedule
        | MultiStepSchedule
        | CosineSchedule
        | TriangularSchedule,
        Field(discriminator="name"),
    ]
    average: AverageConfig | None = later(None)
    # Share of the training images, those with the smallest loss, that the last epoch leaves out; it
    # grows in a straight line from none in the first.
    progressive_dropping: float = later(0.0, ge=0, lt=1)
    batch_size: int = Field(ge=1, le=50_000)  # images
    epochs: int = Field(ge=1, le=10_000)
    early_stopping: int | None = Field(ge=1)  # epochs without better validation top-1
    protocol: ProtocolConfig
    evaluation: EvaluationConfig
    precision: Literal["fp32", "bf16"]  # bf16: autocast
    seed: int = Field(ge=0, lt=2**32)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.evaluation.test_every == 0 and self.protocol.selection == "test":
            raise ValueError("protocol.selection: test needs evaluation.test_every of at least 1")
        if self.dropout and self.model.name != "residual":
            raise ValueError(f"{self.model.name} has no dropout; set dropout to 0.0")
        if self.resize and self.augmentation.padding_mode != "black":
            raise ValueError("resized images are padded in black only; leave padding_mode out")
        pixels = self.resize.crop if self.resize else 32
        few = pixels < NETWORKS[self.model.name].least_pixels
        for epoch in range(1, 1 + self.epochs) if few else ():
            images = images_in_epoch(self, self.data.train_size, epoch)
            if self.batch_size > 1 and images % self.batch_size != 1:
                continue
            raise ValueError(
                f"{images} training images in batches of {self.batch_size} leave a batch of one "
                f"image, of which {self.model.name} makes one value per channel at {pixels} "
                "pixels, too few for batch norm; change data.train_size or batch_size"
            )
        return self


def images_in_epoch(config: RunConfig, images: int, epoch: int) -> int:
    """How many of the training images an epoch, counted from 1, sees: all but the easiest."""
    share = config.progressive_dropping * (epoch - 1) / max(1, config.epochs - 1)
    return max(1, round(images * (1 - share)))


def steps_by_epoch(config: RunConfig, images: int) -> list[int]:
    """The steps of each epoch of a run."""
    counts = (images_in_epoch(config, images, epoch + 1) for epoch in range(config.epochs))
    return [math.ceil(count / config.batch_size) for count in counts]


FULL_CARD = 420.0
"""GFLOP of a step with which a run fills a card by itself. An estimate for H100-class cards:
``cifarlib bench --device cuda`` says how many runs at once are worth it."""


def card_share(config: RunConfig, memory: float) -> float:
    """The part of a CUDA card, up to 1, that a run takes: of its memory (bytes) or arithmetic."""
    pixels = (config.resize.crop / 32) ** 2 if config.resize else 1.0
    images, network = config.batch_size * pixels, NETWORKS[config.model.name]
    kept = network.memory * 1e6 * (2 if config.precision == "fp32" else 1)
    state = 1e9  # weights, moments, best weights, an epoch's plan, of each program that is kept
    arithmetic = 3 * images * network.gflop
    return min(1.0, max((2 * kept * images + state) / memory, arithmetic / FULL_CARD))


def run_id(config: RunConfig, engine: int = ENGINE, data: str | None = None) -> str:
    """The name of a run's record: 16 hexadecimal digits.

    A hash of the canonical configuration, the fingerprint of its data, or of other ``data``, and
    ``ENGINE``; never of commits, paths, hosts or times.
    """
    key = {
        "config": canonical(config),
        "data": data or DATASETS[config.data.name].fingerprint,
        "engine": engine,
    }
    return digest(key)[:16]


def canonical(config: Strict) -> dict[str, Any]:
    """What a configuration says, without the ``later`` fields that have their default."""
    content = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("later") and value == field.default:
            del content[name]
        elif isinstance(value, Strict):
            content[name] = canonical(value)
    return content


def digest(content: Any) -> str:
    """SHA-256 of plain values, whatever the order of their keys."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping → flat one with dotted keys, ``{"data.train_size": 9000}``."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
