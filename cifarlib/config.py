"""What a run is: the study as data, expanded into validated run configurations with stable ids.

A ``Study`` (``params/study.yaml``) says which conditions there are, a ``Scale``
(``params/<scale>.yaml``) how much of them to run. ``expand`` makes one ``RunConfig`` of each
condition and seed, and ``run_id`` names its record by everything that decides the result.
"""

import copy
import difflib
import hashlib
import itertools
import json
import operator
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from cifarlib import paths
from cifarlib.errors import ConfigError

ENGINE = 2
"""Raised by hand when the arithmetic of training changes; part of every run id."""


IMAGE_SIZE = 224
"""Pixels after the crop in the paper's stage 3."""


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
    def fingerprint(self) -> str:
        """What the data are, in 12 hexadecimal digits: a hash over every file's MD5."""
        return _digest(self.files)[:12]


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


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and converts nothing."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


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
        info = DATASETS[self.name]
        validation = info.train_images // 10
        for field, largest in (
            ("train_size", info.train_images - validation),
            ("validation_size", validation),
            ("test_size", info.test_images),
        ):
            if getattr(self, field) > largest:
                raise ValueError(f"{field} of {self.name} is at most {largest}")
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

    @pydantic.model_validator(mode="after")
    def _known(self) -> "ModelConfig":
        if self.name == "residual" and self.initialization == "imagenet":
            raise ValueError("the residual network has no ImageNet weights; use kaiming")
        if self.name != "residual":
            for field in ("last_layer_scale", "branch_scale", "whitening"):
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
        return self


def run_id(config: RunConfig, engine: int = ENGINE) -> str:
    """The name of a run's record: 16 hexadecimal digits.

    A hash of the canonical configuration, the data's fingerprint and ``ENGINE``; never of
    commits, paths, hosts or times.
    """
    key = {
        "config": canonical(config),
        "data": DATASETS[config.data.name].fingerprint,
        "engine": engine,
    }
    return _digest(key)[:16]


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


def _digest(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
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


# ---------------------------------------------------------------------------------------------
# The study and its scale
# ---------------------------------------------------------------------------------------------


Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]


class Reference(Strict):
    """Conditions taken from another stage, by the paper's run numbers."""

    stage: str
    runs: tuple[int, ...] = Field(min_length=1)


class Stage(Strict):
    """Conditions that belong together: a grid, a list, or runs of another stage, changed."""

    title: str
    from_: Reference | None = Field(default=None, alias="from")
    seeds: Seeds | None = None  # in place of the scale's
    fixed: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    list_: list[dict[str, Any]] = Field(default=[], alias="list")
    cumulated: bool = False  # each item of the list adds to the ones before
    at: dict[str, dict[str, Any]] = {}  # by scale of params/: settings in place of its own


class Study(Strict):
    """Which conditions there are (``params/study.yaml``).

    A setting's key may be dotted, ``protocol.shuffle``: it changes one field of a group, after
    the group's preset. ``label`` is a setting that only names a condition for people.
    """

    presets: dict[str, dict[str, dict[str, Any]]]
    defaults: dict[str, Any]
    stages: dict[str, Stage]
    epochs: dict[str, dict[int, int]] = {}  # by scale: what the study adds to the scale's own


Kind = Literal["engine", "data", "device_class", "dirty"]
"""In what the records of one report may differ only where its scale says so."""


class Scale(Strict):
    """How much of a study to run (``params/<scale>.yaml``)."""

    data: DataConfig
    epochs: dict[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]  # the paper's: ours
    seeds: Seeds
    precision: Literal["fp32", "bf16"]
    image_size: int = Field(ge=32, le=448)  # stage 3, pixels after the crop
    evaluation: EvaluationConfig
    protocol: ProtocolConfig
    name: str = ""  # in params/; empty for a file of one's own and where --set changes it
    mixed: tuple[Kind, ...] = ()  # what may differ between records of one report (mixture.py)

    @property
    def reduced(self) -> bool:
        """Whether this is less than the paper's budget: fewer images or epochs, smaller images."""
        info = DATASETS[self.data.name]
        held_out = info.train_images // 10
        sizes = (self.data.train_size, self.data.validation_size, self.data.test_size)
        return (
            sizes != (info.train_images - held_out, held_out, info.test_images)
            or any(published != ours for published, ours in self.epochs.items())
            or self.image_size != IMAGE_SIZE
        )


@dataclass(frozen=True)
class Condition:
    """One condition of the study at one scale and seed."""

    stage: str
    run: int  # the paper's number within its stage
    settings: dict[str, Any]  # as the study says them, preset names unresolved
    changed: dict[str, Any]  # what sets it apart from the run it was taken from
    config: RunConfig
    run_id: str

    @property
    def name(self) -> str:
        """``stage1-daa1/13``; with what was changed where the run number is not enough."""
        parts = [f"{self.stage}/{self.run}"]
        if "label" in self.changed:
            parts.append(self.changed["label"])
        else:
            parts += [f"{key}={value}" for key, value in self.changed.items()]
        return ",".join(parts)


STUDIES = {"study": paths.STUDY, "beyond": paths.BEYOND}
"""The studies that ``params/`` holds: the paper's conditions, and those that go past them."""


def load_study(path: Path | None = None) -> Study:
    """Read and check a study; ``params/study.yaml`` unless another is named."""
    path = path or paths.STUDY
    return validate(Study, read_yaml(path), _shown(path))


def scale_names() -> list[str]:
    """The scales that ``params/`` offers."""
    known = {"smoke", "lite", "full"}
    return sorted(known | {p.stem for p in paths.PARAMS.glob("*.yaml")} - STUDIES.keys())


def load_scale(
    name: str, overrides: typing.Sequence[str] = (), study: Study | None = None
) -> Scale:
    """Read and check a scale by name, or by the path of a YAML file.

    ``overrides`` are ``key=value`` strings with dotted keys, ``data.train_size=2000``; values
    are YAML. ``protocol`` may be the name of a preset of ``study``.
    """
    study = study or load_study()
    path = Path(name) if name.endswith((".yaml", ".yml")) else paths.PARAMS / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"there is no scale {name!r}; {suggest(name, scale_names())}")
    content = read_yaml(path)
    content["protocol"] = _preset(study, "protocol", content.get("protocol"))
    if isinstance(content.get("epochs"), dict):
        content["epochs"] = study.epochs.get(path.stem, {}) | content["epochs"]
    content["name"] = path.stem if path.parent == paths.PARAMS and not overrides else ""
    source = _shown(path)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: write key=value, such as data.train_size=2000")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: {value!r} is not a YAML value") from error
        _assign(content, key.strip().split("."), parsed, f"--set {text}")
        source = f"{_shown(path)} with --set"
        if isinstance(content.get("protocol"), str):
            content["protocol"] = _preset(study, "protocol", content["protocol"])
    return validate(Scale, content, source)


def expand(study: Study, scale: Scale, stage: str | None = None) -> list[Condition]:
    """Every condition of a study (or of one stage) at a scale, in the paper's order.

    Several conditions may have the same ``run_id``: such a run is trained once.
    """
    if stage is not None and stage not in study.stages:
        raise ConfigError(f"there is no stage {stage!r}; {suggest(stage, study.stages)}")
    names = study.stages if stage is None else [stage]
    conditions = []
    for name in names:
        for run, settings, changed in _stage_settings(study, name, ()):
            settings = settings | study.stages[name].at.get(scale.name, {})
            for seed in study.stages[name].seeds or scale.seeds:
                config = _run_config(study, scale, name, run, settings, seed)
                conditions.append(Condition(name, run, settings, changed, config, run_id(config)))
    return conditions


def _stage_settings(
    study: Study, name: str, visited: tuple[str, ...]
) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
    """(run number, settings, what was changed) of each condition of a stage."""
    stage = study.stages[name]
    where = f"stage {name}"
    both = (stage.fixed.keys() & stage.grid.keys()) | {
        key
        for item in stage.list_
        for key in item.keys() & (stage.fixed.keys() | stage.grid.keys())
    }
    if both:
        raise ConfigError(f"{where}: {', '.join(sorted(both))} is both fixed and varied; keep one")
    if empty := [key for key, values in stage.grid.items() if not values]:
        raise ConfigError(f"{where}: the grid gives no value for {empty[0]}")
    points = [
        dict(zip(stage.grid, values, strict=True))
        for values in itertools.product(*stage.grid.values())
    ]
    items = stage.list_ or [{}]
    if stage.cumulated:
        items = list(itertools.accumulate(items, operator.or_))
    points = [item | point for item in items for point in points]
    if stage.from_ is None:
        return [
            (number, study.defaults | stage.fixed | point, {})
            for number, point in enumerate(points, start=1)
        ]
    source = stage.from_.stage
    if source not in study.stages or source == name or source in visited:
        raise ConfigError(f"{where} is taken from {source!r}, which is no other stage before it")
    bases = {run: settings for run, settings, _ in _stage_settings(study, source, (*visited, name))}
    if missing := [run for run in stage.from_.runs if run not in bases]:
        raise ConfigError(
            f"{where} is taken from run {missing[0]} of {source}, which has no such run"
        )
    return [
        (run, bases[run] | stage.fixed | point, point)
        for run in stage.from_.runs
        for point in points
    ]


def _run_config(
    study: Study, scale: Scale, stage: str, run: int, settings: dict[str, Any], seed: int
) -> RunConfig:
    where = f"the study, {stage} run {run}"
    content: dict[str, Any] = {"protocol": scale.protocol.model_dump()}
    dotted = {key: value for key, value in settings.items() if "." in key}
    content |= {k: _preset(study, k, v) for k, v in settings.items() if k not in dotted}
    content.pop("label", None)
    content |= {
        "data": scale.data.model_dump(),
        "precision": scale.precision,
        "evaluation": scale.evaluation.model_dump(),
        "seed": seed,
    }
    for key, value in dotted.items():
        _assign(content, key.split("."), copy.deepcopy(value), where)
    published = content.get("epochs")
    if isinstance(published, int):
        if published not in scale.epochs:
            raise ConfigError(
                f"{where} has {published} epochs, but the scale does not say what they become; "
                f"add {published} to its `epochs`"
            )
        content["epochs"] = scale.epochs[published]
        patience = content.get("early_stopping")
        if isinstance(patience, int):  # in proportion, so that it can still take effect
            content["early_stopping"] = max(
                1, round(patience * scale.epochs[published] / published)
            )
    if isinstance(content.get("resize"), dict):
        resize = content["resize"]
        ratio = resize.get("size", 256) / resize.get("crop", 224)
        content["resize"] = resize | {
            "size": round(scale.image_size * ratio),
            "crop": scale.image_size,
        }
    return validate(RunConfig, content, where)


def _preset(study: Study, key: str, value: Any) -> Any:
    """The settings that a preset's name stands for; any other value as it is."""
    presets = study.presets.get(key)
    if presets is None or not isinstance(value, str):
        return copy.deepcopy(value)
    if value not in presets:
        raise ConfigError(f"there is no {key} {value!r}; {suggest(value, presets)}")
    return copy.deepcopy(presets[value])


def _assign(content: dict[Any, Any], keys: list[str], value: Any, source: str) -> None:
    """Set a dotted key; whether it exists is for the model's validation to say."""
    for depth, key in enumerate(keys):
        known: Any = int(key) if key.isdigit() else key
        if depth == len(keys) - 1:
            content[known] = value
            return
        inner = content.setdefault(known, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{source}: {key} has no settings of its own")
        content = inner


# ---------------------------------------------------------------------------------------------
# Reading and checking, with errors that name the place
# ---------------------------------------------------------------------------------------------


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys; a study must not lose a line that way."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands there twice", key_node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that is a mapping; ``ConfigError`` for any other, and for a key twice."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"{_shown(path)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_shown(path)} is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{_shown(path)}{line}: {error.problem or 'not valid YAML'}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())  # PyYAML takes several lines
        raise ConfigError(f"{_shown(path)} is not valid YAML: {reason}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{_shown(path)} must be a mapping of keys to values")
    return content


def _shown(path: Path) -> str:
    """A path as a user wrote or knows it: relative to the checkout where it lies inside."""
    path = path.absolute()
    return str(path.relative_to(paths.ROOT)) if path.is_relative_to(paths.ROOT) else str(path)


Model = typing.TypeVar("Model", bound=Strict)

MOST_VALUES = 100_000


def _count(content: Any, known: dict[int, int]) -> int:
    """Values in plain data, written out: a few lines of YAML aliases may stand for billions.

    What holds itself counts once; JSON refuses it.
    """
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        known[id(content)] = 1
        inner = content.values() if isinstance(content, dict) else content
        try:
            known[id(content)] = 1 + sum(_count(value, known) for value in inner)
        except RecursionError:  # too deep: JSON refuses that, too
            return 1
    return known[id(content)]


def validate(model: type[Model], content: Any, source: str) -> Model:
    """Check plain data against a model; the first fault becomes a one-sentence ``ConfigError``."""
    if _count(content, {}) > MOST_VALUES:
        raise ConfigError(f"{source} holds more than {MOST_VALUES} values; write fewer")
    try:
        # As JSON, because strict models take a list for a tuple only from there.
        text = json.dumps(content, default=str)
    except (TypeError, ValueError, RecursionError) as error:  # a date as a key, an endless list
        raise ConfigError(f"{source} holds what no setting can be: {error}; correct it") from error
    try:
        return model.model_validate_json(text)
    except pydantic.ValidationError as error:
        # A mistyped key is also a missing one: the unknown name says more.
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise ConfigError(_sentence(model, faults[0], source)) from error


def _sentence(model: type[Strict], fault: dict[str, Any], source: str) -> str:
    location = [str(part) for part in fault["loc"]]
    place = ".".join(location) or "the whole"
    given = fault["input"]
    match fault["type"]:
        case "extra_forbidden":
            names = _field_names(model, location[:-1])
            return f"{source}: unknown key {place!r}; {suggest(location[-1], names)}"
        case "missing":
            return f"{source}: {place!r} is missing; add it"
        case "value_error":
            where = f" at {place}" if location else ""
            return f"{source}{where}: {fault['ctx']['error']}"
        case "float_type" | "int_type" if isinstance(given, str):
            hint = "write it without quotes"
            if match := re.fullmatch(r"([+-]?\d+)(\.\d*)?[eE]([+-]?)(\d+)", given):
                whole, fraction, sign, exponent = match.groups()
                number = f"{whole}{fraction or '.0'}e{sign or '+'}{exponent}"
                if fault["type"] == "int_type":
                    number = f"{float(given):.0f}"
                hint = f"YAML takes that for text, write {number}"
            return f"{source}: {place} must be a number, not the text {given!r}; {hint}"
        case _:
            message = fault["msg"][0].lower() + fault["msg"][1:]
            return f"{source}: {place} = {given!r} is not valid: {message}"


def _field_names(model: type[BaseModel], location: list[str]) -> set[str]:
    """The keys that the models at a place know; a union's tag in the place is passed over."""
    models = {model}
    for part in location:
        inner = set()
        for candidate in models:
            for name, field in candidate.model_fields.items():
                if part == (field.alias or name):
                    inner |= _models_in(field.annotation)
        models = inner or models
    return {field.alias or name for m in models for name, field in m.model_fields.items()}


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_args(annotation):
        return set().union(*(_models_in(part) for part in typing.get_args(annotation)), set())
    return set()


def suggest(name: str, known: typing.Iterable[str]) -> str:
    """“did you mean …?”, or the whole list when nothing is near."""
    known = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
