"""Grids of one's own: any condition with any settings varied, kept as a study in a build folder.

Such a study is a YAML file in the format of ``params/study.yaml``, in the folder ``studies`` beside
the records, where every command and the explorer know it by name.
"""

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cifarlib import paths
from cifarlib.checking import cut, parse_value, read_bytes, shown, validate
from cifarlib.config import flatten
from cifarlib.errors import ConfigError
from cifarlib.runs.other_studies import find_condition, list_conditions
from cifarlib.runs.results import Results
from cifarlib.runs.store import write_atomically
from cifarlib.study import (
    KEPT,
    NEWEST,
    STUDIES,
    Condition,
    Study,
    expand,
    find_study,
    kept_studies,
    load_study,
    merge_presets,
    to_python,
)

HEAD = "# Made by cifarlib: a study in the format of params/study.yaml, to be changed at will.\n"
YAML: Any = {"sort_keys": False, "allow_unicode": True, "width": 100, "default_flow_style": None}
MOST_LETTERS = 60  # of a name that a grid is given
LONGEST = 200  # bytes of any name, to which a file's adds some


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Setting → values, from ``dropout=0,0.3``; values are YAML."""
    settings: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not key.strip() or key.strip() in settings:
            raise ConfigError(f"--grid {text}: write each setting once, such as dropout=0,0.3")
        settings[key.strip()] = parse_value(f"[{values}]", f"--grid {text}")
    return settings


def make_grid(
    results: Results,
    start: str,
    settings: Mapping[str, Sequence[Any]],
    seeds: int | Sequence[int] = (),
    name: str = "",
) -> str:
    """Keep every combination of some settings' values, on a condition by name, as a study.

    Its first stage is the condition itself, to compare with; all else, epochs included, is as
    there. Gives the study's name: the one asked for, or one made of start and settings. Raises
    ``ConfigError`` for what cannot be run, for a number of which the scale makes another, and for a
    name under which another study is kept, before anything is written.
    """
    found = find_condition(results, start)
    if not settings:
        raise ConfigError("a grid needs a setting to vary, such as dropout with the values 0, 0.3")
    if "seed" in settings:
        raise ConfigError(
            "a grid does not vary the seed; give seeds apart: --seeds 42,43 or seeds=[42, 43]"
        )
    grid = {key: plain_values(values) for key, values in settings.items()}
    for seed in plain_values(seeds):
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ConfigError(
                f"seeds: {cut(repr(seed))} is none; write whole numbers below 2³², such as 42,43"
            )
    if not isinstance(name, str):
        raise ConfigError(f"name is {cut(repr(name))}; write a text")
    named, kept = name or _name(start, grid), kept_studies(results.store.folder)
    for number in itertools.count(2):
        content = json.loads(json.dumps(_describe(results, *found, grid, seeds, named)))
        text = f"{HEAD}{yaml.safe_dump(content, **YAML)}".encode()
        if name or named not in kept or read_bytes(kept[named]) == text:
            break
        named = f"{_name(start, grid)}-{number}"
    study = validate(Study, content, f"the grid {named}")
    for condition in expand(study, results.scale_for(study)):  # raises where a setting cannot be
        _refuse_translated(condition, grid, results.scale_name)
    path = place(results.store.folder, named)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if read_bytes(path) != text:
            raise ConfigError(
                f"{shown(path)} holds another study; choose another name, or remove that one"
            )
    write_atomically(path, text)
    return named


def _refuse_translated(condition: Condition, grid: Mapping[str, Sequence[Any]], scale: str) -> None:
    """Raise ``ConfigError`` where the scale makes another number of one that the grid gives."""
    run = flatten(condition.config.model_dump(mode="json"))
    for key in grid.keys() & condition.changed.keys() & run.keys():
        if (given := condition.changed[key]) != run[key] and isinstance(given, int | float):
            raise ConfigError(
                f"at scale {scale} {key}={given} becomes {run[key]}; give the number that shall be "
                "run, or take cl.train, which takes each as it stands"
            )


def plain_values(values: Any) -> list[Any]:
    """A list, tuple, array or single value as a list of plain values."""
    values = values.tolist() if hasattr(values, "tolist") else values
    values = list(values) if isinstance(values, list | tuple | range) else [values]
    return [to_python(value) for value in values]


def _name(start: str, settings: Mapping[str, Any]) -> str:
    """“stage1-daa1-13-by-dropout”."""
    name = re.sub(r"[^\w.-]+", "-", f"{start}-by-{'-'.join(settings)}")
    if len(name) > MOST_LETTERS:
        name = f"{name[:MOST_LETTERS]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return name


def _describe(
    results: Results,
    study: Study,
    base: Condition,
    grid: dict[str, list[Any]],
    seeds: int | Sequence[int],
    name: str,
) -> dict[str, Any]:
    """A grid as the content of a study."""
    stage = study.stages.get(base.stage)
    at = {
        scale: {key: value for key, value in changes.items() if key not in grid}
        for scale, changes in (stage.at if stage else {}).items()
    }
    anywhere = replace(results, scale=results.scale.model_copy(update={"name": ""}))
    alike = (c for _, c in list_conditions(anywhere) if c.name == base.name)
    settings = next(alike, base).settings  # without what the stage says for this scale alone
    epochs = {n: n for n in grid.get("epochs", []) if type(n) is int and n > 0}
    own = {results.scale_name: study.epochs_at(results.scale_name) | epochs}
    listed = plain_values(seeds)
    shared = ({"seeds": listed} if listed else {}) | ({"at": at} if any(at.values()) else {})
    first = {"title": f"{base.name}, from which the grid starts", "fixed": dict(settings)}
    varied = {"from": {"stage": f"{name}-start", "runs": [1]}, "grid": grid}
    title = {"title": f"{base.name} with other values of {', '.join(grid)}"}
    return {
        "epochs": study.epochs | own,
        "presets": merge_presets(study.presets),
        "defaults": {},
        "stages": {f"{name}-start": first | shared, name: title | varied | shared},
    }


def place(folder: Path, name: str, cure: str = "choose another name") -> Path:
    """Where a build folder keeps a study; ``ConfigError`` for what cannot be a study's name."""
    taken = name.endswith((".yaml", ".yml")) or name in {
        *(*STUDIES, NEWEST),
        *(stage for study in STUDIES for stage in load_study(study).stages),
        *(path.stem.partition("_")[2] for path in paths.NOTEBOOKS.glob("[0-9]*.ipynb")),
    }
    if taken or not re.fullmatch(r"[\w-][\w.-]*", name) or len(name.encode()) > LONGEST:
        raise ConfigError(
            f"{cut(name)!r} cannot name a study of your own; {cure} (letters and digits will do)"
        )
    return folder / KEPT / f"{name}.yaml"


def keep(text: str, results: Results) -> str:
    """The name of a study; one that is a file of one's own is copied into the build folder.

    It takes the place of an earlier copy that has no recorded run besides those of the file.
    """
    path = find_study(text, results.store.folder)
    for name, shipped in STUDIES.items():
        if path.resolve() == shipped.resolve():
            return name
    if text.endswith((".yaml", ".yml")) and path.parent != results.store.folder / KEPT:
        kept, now = place(results.store.folder, path.stem, "rename the file"), _ids(results, path)
        before = _ids(results, kept) & set(results.store.run_ids()) if kept.is_file() else set()
        if lost := len(before - now):
            raise ConfigError(
                f"{shown(kept)} has recorded runs that {shown(path)} has not ({lost}); add them "
                "again, rename the file, or remove the one kept"
            )
        write_atomically(kept, read_bytes(path))
    return path.stem


def _ids(results: Results, path: Path) -> set[str]:
    """The runs of a study's file."""
    study = load_study(path)
    return {condition.run_id for condition in expand(study, results.scale_for(study))}


def open_study(results: Results, name: str) -> Results:
    """A study by name or file over the same records at the same scale."""
    return results.with_study(load_study(find_study(name, results.store.folder)))
