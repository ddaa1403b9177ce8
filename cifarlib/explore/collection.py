"""Every recorded run of a build folder as one frame: both studies' runs and one's own.

A run that neither study has at this scale was trained from a notebook or under other overrides.
It belongs to the stage “own” and is named after the condition that it was trained from, which a
note in the build folder tells, else after the most similar one.
"""

import json
from typing import Any

import pandas as pd

from cifarlib.checking import cut, parse_json, read_bytes, suggest
from cifarlib.config import ENGINE, RunConfig, flatten
from cifarlib.errors import ConfigError
from cifarlib.runs.frames import tabulate_runs
from cifarlib.runs.other_studies import list_conditions
from cifarlib.runs.results import Results
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import write_atomically
from cifarlib.study import Condition, describe_change

OWN = "own"
MOST_CHANGES = 4  # settings that a name can hold


def tabulate(results: Results) -> pd.DataFrame:
    """A row for each recorded run, best test accuracy first, with the columns of ``results.runs``.

    Records written since ``results`` was opened are read, too. The index is the studies' order.
    Names are unique: a seed is added where one condition has several, then the id's beginning.
    ``comparable`` says whether a run saw the scale's images for its condition's epochs; means are
    taken over such runs only.
    """
    return collect(results)[0]


def collect(results: Results) -> tuple[pd.DataFrame, dict[str, RunRecord]]:
    """What ``tabulate`` gives, and the records by run id; ``ConfigError`` for no results."""
    conditions, records = _collect(check_results(results))
    frame = tabulate_runs(conditions, records, protocol=results.protocol)
    # As epochs: the scale's.
    frame["early_stopping"] = [c.config.early_stopping for c in conditions]
    seeds = frame["name"].astype(str) + ", seed " + frame["seed"].astype(str)
    frame["name"] = frame["name"].mask(frame["name"].duplicated(keep=False), seeds)
    ids = frame["name"].astype(str) + " (" + frame["run_id"].astype(str).str[:8] + ")"
    frame["name"] = frame["name"].mask(frame["name"].duplicated(keep=False), ids)
    frame["comparable"] = [
        c.config.data == results.scale.data and "epochs" not in c.changed for c in conditions
    ]
    return frame.sort_values("test_top1", ascending=False, kind="stable"), records


def check_results(results: Any) -> Results:
    """Results as they are; ``ConfigError`` for what is none."""
    if not isinstance(results, Results):
        given = cut(" ".join(repr(results).split()))
        raise ConfigError(f"results is {given}; give what cl.open_results('lite') gives")
    return results


def _collect(results: Results) -> tuple[list[Condition], dict[str, RunRecord]]:
    """The recorded conditions, one's own last, and the records by run id."""
    new = [name for name in results.store.run_ids() if name not in results.every_record]
    records = results.every_record | results.store.read_runs(new)[0]
    records = {name: record for name, record in records.items() if record.engine == ENGINE}
    known: dict[str, Condition] = {}
    for _, condition in list_conditions(results):
        known.setdefault(condition.run_id, condition)
    own = [name_own(results, record, known) for i, record in records.items() if i not in known]
    return [*(c for i, c in known.items() if i in records), *own], records


def list_own(results: Results) -> list[Condition]:
    """The conditions of recorded runs that no study has."""
    return [condition for condition in _collect(results)[0] if condition.stage == OWN]


def find_run(results: Results, name: str) -> RunRecord:
    """A recorded run by its name in ``tabulate`` or its id, or by any of its conditions' names.

    Raises ``ConfigError`` where there is none.
    """
    frame, records = collect(results)
    found = [*frame.loc[frame["name"].eq(name) | frame["run_id"].eq(name), "run_id"]]
    found += [c.run_id for _, c in list_conditions(results) if c.name == name]
    for run in found:
        if run in records:
            return records[run]
    raise ConfigError(f"no recorded run is named {name!r}; {suggest(name, frame['name'])}")


def write_note(results: Results, condition: Condition, start: str) -> None:
    """Keep in the build folder from which condition a run of one's own is trained."""
    path = results.store.folder / OWN / f"{condition.run_id}.json"
    write_atomically(path, json.dumps({"from": start, "settings": condition.changed}).encode())


def name_own(results: Results, record: RunRecord, known: dict[str, Condition]) -> Condition:
    """The condition of a run that no study has, by its note or the most similar condition."""
    name = record.run_id
    bases = {c.name: c for c in reversed(known.values())}
    try:
        note = parse_json(read_bytes(results.store.folder / OWN / f"{name}.json"))
        base: Condition | None
        base, changed = bases[note["from"]], dict(note["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        differences = ((c, list_differences(c.config, record.config)) for c in known.values())
        base, changed = min(differences, key=lambda pair: len(pair[1]), default=(None, {}))
    if base is None or len(changed) > MOST_CHANGES:
        settings = flatten(record.config.model_dump(mode="json"))
        return Condition(OWN, None, settings, {}, record.config, name, f"{OWN}/{name[:8]}")
    title = describe_change(base.name, changed)
    return Condition(OWN, None, base.settings | changed, changed, record.config, name, title)


def list_differences(base: RunConfig, other: RunConfig) -> dict[str, Any]:
    """The settings of ``other`` that ``base`` does not have, with dotted keys."""
    here, there = (flatten(config.model_dump(mode="json")) for config in (base, other))
    return {key: value for key, value in there.items() if here.get(key, ...) != value}
