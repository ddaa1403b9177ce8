"""A study as data (``params/study.yaml``), at a scale (``params/<scale>.yaml``): its conditions.

A ``Study`` says which conditions there are, a ``Scale`` how much of them to run. ``expand`` makes
one ``RunConfig`` of each condition and seed, ``expand_paper`` one of each of the paper's.

In the stages of the paper a condition has the paper's run number where its settings are the
paper's (``params/published/``), wherever in the study they stand. Any other is the user's own: it
has no number, and a name made of its settings.
"""

import copy
import itertools
import json
import math
import re
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from cifarlib import paths
from cifarlib.checking import (
    Strict,
    cut,
    list_folder,
    parse_value,
    read_yaml,
    shown,
    suggest,
    validate,
)
from cifarlib.config import (
    IMAGE_SIZE,
    DataConfig,
    EvaluationConfig,
    PlateauSchedule,
    ProtocolConfig,
    RunConfig,
    ValidationStepSchedule,
    flatten,
    run_id,
)
from cifarlib.errors import ConfigError
from cifarlib.paper.tables import Presets, read_conditions


def _distinct(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if (twice := _first_twice(numbers)) is not None:
        raise ValueError(f"{twice} stands there twice; name each once")
    return numbers


def _first_twice(values: typing.Iterable[Any]) -> str | None:
    """A value that is there more than once, as text."""
    counted = Counter(map(_plain, values)).most_common(1)
    return counted[0][0] if counted and counted[0][1] > 1 else None


def _plain(value: Any) -> str:
    """A value as a name or a sentence may hold it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**32)], ...],
    Field(min_length=1),
    pydantic.AfterValidator(_distinct),
]


class Reference(Strict):
    """Conditions taken from another stage by number: the paper's, else their place in the stage.

    The paper's runs have the paper's settings, whether the other stage still trains them or not.
    """

    stage: str
    runs: Annotated[tuple[int, ...], Field(min_length=1), pydantic.AfterValidator(_distinct)]


class Stage(Strict):
    """Conditions that belong together: a grid, a list, or runs of another stage, changed."""

    title: str
    from_: Reference | None = Field(default=None, alias="from")
    seeds: Seeds | None = None  # in place of the scale's
    fixed: dict[str, Any] = Field(default={})
    grid: dict[str, list[Any]] = Field(default={})
    list_: list[dict[str, Any]] = Field(default=[], alias="list")
    # Each item of the list adds to the ones before; one with ``kept: false`` is tried and dropped.
    cumulated: bool = False
    at: dict[str, dict[str, Any]] = Field(default={})  # by scale of params/; epochs as they stand

    @pydantic.field_validator("list_")
    @classmethod
    def _kept_or_not(cls, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for kept in (item.get("kept", True) for item in items):
            if not isinstance(kept, bool):
                raise ValueError(f"kept = {cut(repr(kept))} must be true or false")
        return items


Epochs = dict[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
"""The paper's: ours."""


class Study(Strict):
    """Which conditions there are (``params/study.yaml``).

    A setting's key may be dotted, ``protocol.shuffle``: it changes one field of a group, after
    the group's preset. ``label`` is a setting that only names a condition for people.
    """

    presets: Presets
    defaults: dict[str, Any]
    stages: dict[Annotated[str, Field(min_length=1)], Stage]
    epochs: dict[str, Epochs] = Field(default={})  # by scale: added to its own

    def epochs_at(self, scale: str) -> Epochs:
        """What this study adds to the epochs of a scale: of one of one's own, as to ``full``."""
        return self.epochs.get(scale, self.epochs.get("full", {}))


Kind = Literal["engine", "data", "device_class", "dirty"]
"""In what the records of one report may differ only where its scale says so."""


_Percent = Annotated[float, Field(gt=0, lt=100)]


class Scale(Strict):
    """How much of a study to run (``params/<scale>.yaml``)."""

    data: DataConfig
    epochs: Epochs
    seeds: Seeds
    precision: Literal["fp32", "bf16"]
    image_size: int = Field(ge=32, le=448)  # stage 3, pixels after the crop
    evaluation: EvaluationConfig
    protocol: ProtocolConfig
    name: str = ""  # in params/; empty for a file of one's own and where --set changes its runs
    # % validation top-1 at which a schedule acts: the paper's: ours
    thresholds: dict[_Percent, _Percent] = Field(default={})
    mixed: tuple[Kind, ...] = ()  # what may differ between records of one report


@dataclass(frozen=True)
class Condition:
    """One condition of the study at one scale and seed."""

    stage: str
    run: int | None  # the paper's number; in a stage past the paper the place; None: one's own
    settings: dict[str, Any]  # as the study says them, preset names unresolved
    changed: dict[str, Any]  # what sets it apart from the run it was taken from
    config: RunConfig
    run_id: str
    name: str  # stage1-daa1/13; of one's own: stage1-daa1/batch_size=64,learning_rate=0.003

    @property
    def seeded_name(self) -> str:
        """“stage1-daa1/13 (seed 42)”."""
        return f"{self.name} (seed {self.config.seed})"


STUDIES = {"study": paths.STUDY, "beyond": paths.BEYOND}
"""The studies that ``params/`` holds: the paper's conditions, and those that go past them."""


NEWEST = "newest"  # stands for the study that a build folder has kept last
KEPT = "studies"  # the folder of one's own studies in a build folder


def kept_studies(folder: Path) -> dict[str, Path]:
    """Name → file of the studies of one's own that a build folder keeps; none of ``STUDIES``."""
    files = list_folder(folder / KEPT, ".yaml")
    return {path.stem: path for path in files if path.stem not in STUDIES}


def find_study(study: str, folder: Path) -> Path:
    """The file of a study: one of ``STUDIES`` or of a build folder by name, or any YAML file.

    ``NEWEST`` is the one that the folder has kept last.
    """
    kept = kept_studies(folder)
    known = STUDIES | kept
    if study.endswith((".yaml", ".yml")):
        return Path(study)
    if study == NEWEST and kept:
        return max(kept.values(), key=lambda path: path.stat().st_mtime_ns)
    if study == NEWEST:
        raise ConfigError(
            f"{shown(folder)} keeps no grid of your own; make one, such as `cifarlib sweep --from "
            "stage1-daa1/13 --grid dropout=0,0.3`"
        )
    if study not in known:
        where = shown(folder)
        raise ConfigError(f"there is no study {study!r} in {where}; {suggest(study, known)}")
    return known[study]


def load_study(study: Path | str | None = None) -> Study:
    """Read and check a study, a file or one of ``STUDIES`` by name; the paper's unless given.

    One of one's own may leave out presets and defaults: they are those of ``beyond.yaml``, to
    which its own presets are added.
    """
    path = Path(STUDIES.get(str(study), study) if study else paths.STUDY)
    if path.parent == paths.PARAMS and not paths.PARAMS.is_dir():
        raise ConfigError(
            f"{paths.PARAMS} is missing: studies, notebooks and records stand in a checkout of "
            "cifarlib's repository; clone it and run the command there"
        )
    content = read_yaml(path)
    if path not in STUDIES.values():
        content = {"presets": {}, "defaults": load_study("beyond").defaults} | content
        if isinstance(content["presets"], dict):
            content["presets"] = merge_presets(content["presets"])
    loaded = validate(Study, content, shown(path))
    if not loaded.stages:
        raise ConfigError(f"{shown(path)}: a study needs a stage; add one under `stages`")
    for name, stage in loaded.stages.items():
        for scale in stage.at.keys() - (known := set(scale_names())):
            where = f"{shown(path)}: stages.{name}.at"
            raise ConfigError(f"{where}: there is no scale {scale!r}; {suggest(scale, known)}")
    return loaded


def merge_presets(presets: typing.Mapping[str, Any]) -> dict[str, Any]:
    """The presets of ``beyond.yaml`` and those given, which win, group by group."""
    shipped = load_study("beyond").presets
    return shipped | {
        key: shipped.get(key, {}) | group if isinstance(group, dict) else group
        for key, group in presets.items()
    }


def scale_names() -> list[str]:
    """The scales that ``params/`` offers."""
    return sorted({p.stem for p in list_folder(paths.PARAMS, ".yaml")} - STUDIES.keys())


def split_overrides(overrides: str | typing.Sequence[str]) -> tuple[str, ...]:
    """Overrides one by one, where papermill's ``-p`` may have made one text of them.

    ``'["epochs.30=2", "seeds=[1, 2]"]'`` is a list, any other text one override.
    """
    if not isinstance(overrides, str):
        known = overrides if isinstance(overrides, typing.Sequence) else [overrides]
        if wrong := [text for text in known if not isinstance(text, str)]:
            raise ConfigError(
                f'overrides {cut(repr(wrong[0]))}: write texts, such as ["epochs.30=2"]'
            )
        return tuple(known)
    if not overrides.lstrip().startswith("["):
        return (overrides,) if overrides.strip() else ()
    listed = parse_value(overrides, "overrides")
    if not all(isinstance(text, str) for text in listed):
        raise ConfigError(f'overrides {cut(overrides)}: write a list of texts, such as ["a=1"]')
    return tuple(listed)


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
        shipped = path.stem in scale_names()  # "params/lite.yaml", from another folder
        cure = f"write {path.stem!r} for the one of params, or " if shipped else ""
        cure += "name a file that is there"
        cure = cure if path == Path(name) else suggest(name, scale_names())
        raise ConfigError(f"there is no scale {name!r}; {cure}")
    content = read_yaml(path)
    loaded = copy.deepcopy(content)
    protocols = study if "protocol" in study.presets else load_study()  # own ones need none
    if "protocol" in content:
        content["protocol"] = _preset(protocols, "protocol", content["protocol"])
    source, of_params = shown(path), path.resolve().parent == paths.PARAMS.resolve()
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {cut(text)}: write key=value, such as data.train_size=2000")
        parsed = parse_value(value, f"--set {cut(text)}")
        keys = key.strip().split(".")
        _assign(content, keys, parsed, f"--set {cut(text)}")
        of_params &= keys[0] in ("mixed", "seeds")  # which change no run
        source = f"{shown(path)} with --set"
        if isinstance(content.get("protocol"), str):
            content["protocol"] = _preset(protocols, "protocol", content["protocol"])
        if keys[0] in ("epochs", "thresholds"):
            _refuse_unused(content, loaded, study, f"--set {cut(text)}")
    if isinstance(content.get("epochs"), dict):  # after the overrides, which may replace them all
        content["epochs"] = study.epochs_at(path.stem) | content["epochs"]
    if "name" in content:
        raise ConfigError(f"{source}: unknown key 'name'; a scale is named by its file")
    content["name"] = path.stem if of_params else ""
    return validate(Scale, content, source)


def _refuse_unused(
    content: dict[str, Any], loaded: dict[str, Any], study: Study, source: str
) -> None:
    """Raise ``ConfigError`` where an override translates a number that no run has."""
    presets, stages = read_conditions()
    settings = [one.settings for stage in stages.values() for one in stage]
    said = [study.model_dump(), load_study("beyond").model_dump(), presets, settings]
    for key, words in {"epochs": "number of epochs", "threshold": "threshold"}.items():
        field = f"{key.rstrip('s')}s"
        if not isinstance(changed := content.get(field), dict):
            continue  # which the model refuses
        before = loaded.get(field)
        known = _numbers([said, {key: list(before) if isinstance(before, dict) else []}], key)
        if unused := [number for number in changed if number not in known]:
            only = ", ".join(f"{number:g}" for number in sorted(known))
            wrong = cut(str(unused[0]))
            raise ConfigError(f"{source}: {wrong} is the {words} of no run; known are {only}")


def _numbers(content: Any, key: str) -> set[float]:
    """The numbers that stand for a key, or a list of them, anywhere in plain data.

    None below 1, as a plateau schedule's threshold is, which no scale translates.
    """
    if isinstance(content, list | tuple):
        return set().union(*(_numbers(item, key) for item in content))
    if not isinstance(content, dict):
        return set()
    found = set()
    for name, value in content.items():
        if str(name).rpartition(".")[2] == key:
            values = value if isinstance(value, list) else [value]
            found |= {one for one in values if isinstance(one, int | float) and one >= 1}
        found |= _numbers(value, key)
    return found


# ---------------------------------------------------------------------------------------------
# Conditions
# ---------------------------------------------------------------------------------------------


def expand(study: Study, scale: Scale, stage: str | None = None) -> list[Condition]:
    """Every condition of a study (or of one stage) at a scale, in the study's order.

    Several conditions may have the same ``run_id``: such a run is trained once.
    """
    if stage is not None and stage not in study.stages:
        raise ConfigError(f"there is no stage {stage!r}; {suggest(stage, study.stages)}")
    paper = _Paper()
    conditions: list[Condition] = []
    named: dict[tuple[str, int], str] = {}
    for name in study.stages if stage is None else [stage]:
        exact = study.stages[name].at.get(scale.name, {})
        points = _stage_points(study, name, paper, exact)
        seeds = study.stages[name].seeds or scale.seeds
        _limit(len(conditions) + len(points) * len(seeds), name)
        conditions += _at_scale(study, scale, name, points, exact)
    for one in conditions:
        if named.setdefault((one.name, one.config.seed), one.run_id) != one.run_id:
            raise ConfigError(
                f"stage {one.stage}: two different runs have the name {one.name}; give each a "
                "label of its own"
            )
    return conditions


MOST_CONDITIONS = 10_000
"""Of a study with all its seeds; two orders of magnitude above the paper's."""


def _limit(conditions: int, stage: str) -> None:
    if conditions > MOST_CONDITIONS:
        raise ConfigError(
            f"stage {stage}: the study then has {conditions:,} conditions, seeds counted; "
            f"at most {MOST_CONDITIONS:,} can be run, so shorten its grid, list or seeds"
        )


def expand_paper(study: Study, scale: Scale) -> list[Condition]:
    """The paper's conditions at a scale, in its order, whatever the study makes of them.

    Of a study without any stage of the paper there are none, and none of a length for which the
    scale has no epochs.
    """
    paper = _Paper()
    if not paper.stages & study.stages.keys():
        return []
    study = study.model_copy(update={"presets": study.presets | paper.presets})
    conditions = []
    for name in paper.stages:
        at = study.stages[name].at if name in study.stages else {}
        exact = {key: v for key, v in at.get(scale.name, {}).items() if _is_budget(key)}
        points = [
            replace(point, settings=point.settings | exact)
            for point in paper.points(name)
            if point.settings["epochs"] in scale.epochs or "epochs" in exact
        ]
        conditions += _at_scale(study, scale, name, points, exact)
    return conditions


def change(study: Study, base: Condition, settings: typing.Mapping[str, Any]) -> Condition:
    """A condition of one's own: ``base`` with some settings changed, in the words of the study.

    Presets have the names of ``study``; a dotted key, ``protocol.shuffle``, changes one field of a
    group. All else, epochs and seed included, stays as it is run. Raises ``ConfigError``.
    """
    settings = {key: to_python(value) for key, value in settings.items()}
    name = describe_change(base.name, settings)
    content = base.config.model_dump(mode="json")
    for key, value in sorted(settings.items(), key=lambda item: item[0].count(".")):
        _assign(content, key.split("."), _preset(study, key, value), name)  # presets come first
    config = validate(RunConfig, content, name)
    return Condition("own", None, base.settings | settings, settings, config, run_id(config), name)


def to_python(value: Any) -> Any:
    """A number of NumPy as Python's own; any other value as it is.

    Raises ``ConfigError`` for what no study can say, such as a set.
    """
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, str | int | float | list | tuple | typing.Mapping | None):
        raise ConfigError(
            f"{cut(repr(value))} cannot be a setting; write numbers and texts, several as a list"
        )
    return value


def describe_change(base: str, settings: typing.Mapping[str, Any]) -> str:
    """“stage1-daa1/13 with learning_rate=0.002”; the name alone where nothing is changed."""
    words = ", ".join(f"{key}={cut(_plain(value))}" for key, value in settings.items())
    return f"{base} with {words}" if words else base


@dataclass(frozen=True)
class _Point:
    """A condition of a stage, before it is run at a scale."""

    run: int | None
    settings: dict[str, Any]
    changed: dict[str, Any]
    name: str

    @classmethod
    def numbered(
        cls, stage: str, run: int, settings: dict[str, Any], changed: dict[str, Any]
    ) -> "_Point":
        """``stage1-daa1/13``; with what was changed where the number is not enough."""
        words = [f"{key}={value}" for key, value in changed.items()]
        if "label" in changed:
            words = [_plain(changed["label"])]
        return cls(run, settings, changed, ",".join([f"{stage}/{run}", *words]))


def _at_scale(
    study: Study, scale: Scale, stage: str, points: list[_Point], exact: dict[str, Any]
) -> list[Condition]:
    """A stage's conditions at each seed; ``exact`` is what the stage says for this scale alone."""
    seeds = study.stages[stage].seeds if stage in study.stages else None
    conditions = []
    for point, seed in itertools.product(points, seeds or scale.seeds):
        where = f"the study, {point.name}"
        translated = "epochs" not in exact
        try:
            config = _run_config(study, scale, where, point.settings, seed, translated=translated)
        except ConfigError as error:
            raise ConfigError(
                text if where in (text := str(error)) else f"{where}: {text}"
            ) from None
        conditions.append(Condition(stage, **vars(point), config=config, run_id=run_id(config)))
    return conditions


def _list_items(stage: Stage) -> Iterator[dict[str, Any]]:
    """The settings of each item of a stage's list, with those of the kept ones before it."""
    kept: dict[str, Any] = {}
    for item in stage.list_ or [{}]:
        settings = kept | {key: value for key, value in item.items() if key != "kept"}
        yield settings
        if stage.cumulated and item.get("kept", True):
            kept = settings


def _stage_points(
    study: Study,
    name: str,
    paper: "_Paper",
    exact: dict[str, Any],
    visited: tuple[str, ...] = (),
) -> list[_Point]:
    """The conditions of a stage; ``exact`` is what it says for one scale alone."""
    stage = study.stages[name]
    where = f"stage {name}"
    varied = set().union(stage.grid, *stage.list_)
    both = (stage.fixed.keys() & varied) | (stage.grid.keys() & set().union(*stage.list_))
    if both:
        raise ConfigError(f"{where}: {', '.join(sorted(both))} is both fixed and varied; keep one")
    items = list(_list_items(stage))
    runs = len(stage.from_.runs) if stage.from_ else 1
    _limit(math.prod(map(len, stage.grid.values())) * len(items) * runs, name)
    for key, values in stage.grid.items():
        if not values:
            raise ConfigError(f"{where}: the grid gives no value for {key}")
        if (twice := _first_twice(values)) is not None:
            raise ConfigError(f"{where}: the grid gives {key} the value {twice} twice; keep one")
    points = [
        item | dict(zip(stage.grid, values, strict=True))
        for item in items
        for values in itertools.product(*stage.grid.values())
    ]
    found: list[tuple[int, dict[str, Any], dict[str, Any]]]
    if stage.from_ is None:
        found = [
            (number, study.defaults | stage.fixed | point, {})
            for number, point in enumerate(points, start=1)
        ]
    else:
        bases = _bases(study, name, stage.from_, paper, visited)
        found = [
            (run, bases[run] | stage.fixed | point, point)
            for run in stage.from_.runs
            for point in points
        ]
    if name in paper.stages:
        return [paper.place(study, name, settings, exact) for _, settings, _ in found]
    return [
        _Point.numbered(name, run, settings | exact, changed) for run, settings, changed in found
    ]


def _bases(
    study: Study, name: str, reference: Reference, paper: "_Paper", visited: tuple[str, ...]
) -> dict[int | None, dict[str, Any]]:
    """Number → settings of the runs of the stage that another one is taken from."""
    source = reference.stage
    if source not in {*study.stages, *paper.stages} or source in (*visited, name):
        raise ConfigError(
            f"stage {name} is taken from {source!r}, which is no other stage before it, nor of the "
            "paper"
        )
    bases: dict[int | None, dict[str, Any]] = {}
    if source in paper.stages:
        bases = {point.run: study.defaults | point.settings for point in paper.points(source)}
    if source in study.stages:
        for point in _stage_points(study, source, paper, {}, (*visited, name)):
            bases[point.run] = point.settings
    if missing := [run for run in reference.runs if run not in bases]:
        raise ConfigError(
            f"stage {name} is taken from run {missing[0]} of {source}, which has no such run"
        )
    return bases


def _is_budget(key: str) -> bool:
    """Whether a setting says how much is run and how it is measured, as a scale does."""
    return key.partition(".")[0] in ("data", "epochs", "precision", "evaluation", "protocol")


_REFERENCE = Scale(
    data=DataConfig(name="cifar10", train_size=45_000, validation_size=5_000, test_size=10_000),
    epochs={},
    seeds=(0,),
    precision="fp32",
    image_size=IMAGE_SIZE,
    evaluation=EvaluationConfig(train_every=1, test_every=1),
    protocol=ProtocolConfig(
        shuffle=True,
        augmented_evaluation=False,
        normalization="computed",
        loss="per_sample",
        checkpoint="best",
        selection="validation",
    ),
)
"""At which settings are compared with the paper's; any other would do."""


class _Paper:
    """The paper's conditions, and which of them a condition of a study is."""

    def __init__(self) -> None:
        self.presets, self._conditions = read_conditions()
        self.stages = self._conditions.keys()
        self._rows: dict[str, dict[str, _Point]] = {}

    def points(self, stage: str) -> list[_Point]:
        """The paper's conditions of a stage, in its order."""
        points = []
        for one in self._conditions[stage]:
            alike = [other for other in self._conditions[stage] if other.run == one.run]
            changed = {
                key: value
                for key, value in one.settings.items()
                if any(other.settings[key] != value for other in alike)
            }
            points.append(_Point.numbered(stage, one.run, one.settings, changed))
        return points

    def place(
        self, study: Study, stage: str, settings: dict[str, Any], exact: dict[str, Any]
    ) -> _Point:
        """A condition of one of the paper's stages: the paper's run, or one's own."""
        said = settings | {key: value for key, value in exact.items() if not _is_budget(key)}
        own = self._own_name(study, stage, said)
        row = None
        if not any(_is_budget(key) and key != "epochs" for key in said):
            row = self._known(stage).get(_identity(study, f"the study, {own}", said))
        if row is None:
            return _Point(None, settings | exact, {}, own)
        return replace(row, settings=settings | exact)

    def _known(self, stage: str) -> dict[str, _Point]:
        if stage not in self._rows:
            study = Study(presets=self.presets, defaults={}, stages={})
            self._rows[stage] = {
                _identity(study, f"the paper, {point.name}", point.settings): point
                for point in self.points(stage)
            }
        return self._rows[stage]

    def _own_name(self, study: Study, stage: str, settings: dict[str, Any]) -> str:
        """The stage, what varies in it in the paper, and whatever else is not the paper's."""
        mine = flatten(settings)
        rows = [flatten(row.settings) for row in self._conditions[stage]]
        words = []
        for key in dict.fromkeys(key for key in [*rows[0], *mine] if key in mine):
            value = mine[key]
            if key != "label" and any(key not in row or row[key] != value for row in rows):
                words.append(f"{key}={_plain(value)}")
            words += self._changes(study, key, value)
        return f"{stage}/{','.join(words)}"

    def _changes(self, study: Study, key: str, preset: Any) -> list[str]:
        """In what a preset of the study is not the paper's of the same name."""
        if not isinstance(preset, str) or preset not in self.presets.get(key, {}):
            return []
        now, then = study.presets.get(key, {}).get(preset, {}), self.presets[key][preset]
        return [
            f"{key}.{field}={_plain(now.get(field))}"
            for field in dict.fromkeys([*then, *now])
            if now.get(field) != then.get(field)
        ]


def _identity(study: Study, where: str, settings: dict[str, Any]) -> str:
    """What is equal for equal settings, however they are written."""
    return run_id(_run_config(study, _REFERENCE, where, settings, 0, translated=False))


def _run_config(
    study: Study,
    scale: Scale,
    where: str,
    settings: dict[str, Any],
    seed: int,
    *,
    translated: bool,
) -> RunConfig:
    """``translated``: whether epochs and thresholds are the paper's, and become the scale's own."""
    content: dict[str, Any] = {
        "protocol": scale.protocol.model_dump(),
        "data": scale.data.model_dump(),
        "precision": scale.precision,
        "evaluation": scale.evaluation.model_dump(),
    }
    if "seed" in settings:
        raise ConfigError(f"{where}: seed is no setting; give the stage its `seeds`")
    dotted = {key: value for key, value in settings.items() if "." in key}
    content |= {k: _preset(study, k, v) for k, v in settings.items() if k not in dotted}
    content |= {"seed": seed}
    content.pop("label", None)
    for key, value in dotted.items():
        _assign(content, key.split("."), copy.deepcopy(value), where)
    published = validate(RunConfig, content, where)  # before anything is computed from it
    if translated:
        if published.epochs not in scale.epochs:
            raise ConfigError(
                f"{where} has {published.epochs} epochs, but the scale does not say what they "
                f"become; add {published.epochs} to its `epochs`"
            )
        content["epochs"] = scale.epochs[published.epochs]
        # Patience in proportion, so that it can still take effect.
        share = content["epochs"] / published.epochs
        if published.early_stopping is not None:
            content["early_stopping"] = max(1, round(published.early_stopping * share))
        if isinstance(published.schedule, PlateauSchedule):
            patience = published.schedule.patience
            content["schedule"]["patience"] = min(patience, max(1, round(patience * share)))
        if isinstance(published.schedule, ValidationStepSchedule):
            threshold = published.schedule.threshold
            content["schedule"]["threshold"] = scale.thresholds.get(threshold, threshold)
    if resize := published.resize:
        size = round(scale.image_size * resize.size / resize.crop)
        content["resize"] |= {"size": size, "crop": scale.image_size}
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
        known: Any = int(key) if re.fullmatch("[0-9]{1,9}", key) else key
        if depth == len(keys) - 1:
            content[known] = value
            return
        inner = content.setdefault(known, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{source}: {key} has no settings of its own")
        content = inner
