"""A study as data (``params/study.yaml``), at a scale (``params/<scale>.yaml``): its conditions.

A ``Study`` says which conditions there are, a ``Scale`` how much of them to run. ``expand`` makes
one ``RunConfig`` of each condition and seed.
"""

import copy
import itertools
import operator
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cifarlib import paths
from cifarlib.checking import Strict, cut, parse_value, read_yaml, shown, suggest, validate
from cifarlib.config import (
    DATASETS,
    IMAGE_SIZE,
    DataConfig,
    EvaluationConfig,
    ProtocolConfig,
    RunConfig,
    run_id,
)
from cifarlib.errors import ConfigError

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
    fixed: dict[str, Any] = Field(default={})
    grid: dict[str, list[Any]] = Field(default={})
    list_: list[dict[str, Any]] = Field(default=[], alias="list")
    cumulated: bool = False  # each item of the list adds to the ones before
    at: dict[str, dict[str, Any]] = Field(default={})  # by scale of params/; epochs as they stand


class Study(Strict):
    """Which conditions there are (``params/study.yaml``).

    A setting's key may be dotted, ``protocol.shuffle``: it changes one field of a group, after
    the group's preset. ``label`` is a setting that only names a condition for people.
    """

    presets: dict[str, dict[str, dict[str, Any]]]
    defaults: dict[str, Any]
    stages: dict[str, Stage]
    epochs: dict[str, dict[int, int]] = Field(default={})  # by scale: added to its own


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


def load_study(study: Path | str | None = None) -> Study:
    """Read and check a study, a file or one of ``STUDIES`` by name; the paper's unless given."""
    path = Path(STUDIES.get(str(study), study) if study else paths.STUDY)
    return validate(Study, read_yaml(path), shown(path))


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
    source = shown(path)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: write key=value, such as data.train_size=2000")
        parsed = parse_value(value, f"--set {cut(text)}")
        _assign(content, key.strip().split("."), parsed, f"--set {cut(text)}")
        source = f"{shown(path)} with --set"
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
            exact = study.stages[name].at.get(scale.name, {})
            settings = settings | exact
            for seed in study.stages[name].seeds or scale.seeds:
                config = _run_config(
                    study, scale, name, run, settings, seed, translated="epochs" not in exact
                )
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
    study: Study,
    scale: Scale,
    stage: str,
    run: int,
    settings: dict[str, Any],
    seed: int,
    *,
    translated: bool,
) -> RunConfig:
    """``translated``: whether epochs are the paper's, for which the scale says what they become."""
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
    if translated and isinstance(published, int):
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
