"""The studies past the paper's, as far as a report shows them: recorded in the same build folder.

The report counts and asks for the runs of the paper's study alone; those of the others are listed
with them, so that every number leads to its run.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cifarlib.checking import suggest
from cifarlib.errors import ConfigError
from cifarlib.runs.results import Results, open_results
from cifarlib.study import STUDIES, Condition, Study, expand, kept_studies, load_study

PAPER = "study"  # the name of the paper's study among ``STUDIES``


def open_others(
    scale: str, overrides: str | Sequence[str], build: str | Path, own: Collection[str] = ()
) -> dict[str, Results]:
    """Every study but the paper's by name, opened as ``open_results`` does.

    ``own`` names some that the build folder keeps. One that the scale cannot be applied to is left
    out: a scale file of one's own need not say what the epochs of every study become.
    """
    found = {}
    for name in [name for name in (*STUDIES, *own) if name != PAPER]:
        with contextlib.suppress(ConfigError):
            found[name] = open_results(scale, overrides, build, name)
    return found


def list_conditions(results: Results) -> Iterator[tuple[Study, Condition]]:
    """Every condition with its study: of ``results``, past the paper's, and of one's own."""
    for condition in results.known:
        yield results.study, condition
    others = STUDIES | kept_studies(results.store.folder)
    for path in [path for name, path in others.items() if name != PAPER or not results.paper]:
        with contextlib.suppress(ConfigError):
            study = load_study(path)
            yield from ((study, c) for c in expand(study, results.scale_for(study)))


def find_condition(results: Results, name: str) -> tuple[Study, Condition]:
    """A condition by name with its study; ``ConfigError`` where no study has it."""
    known = list(list_conditions(results))
    for study, condition in known:
        if condition.name == name:
            return study, condition
    names = dict.fromkeys(condition.name for _, condition in known)
    raise ConfigError(f"no condition is named {name!r}; {suggest(name, names)}")


def narrow(
    others: Mapping[str, Results], results: Results, shown: Collection[str] = ()
) -> dict[str, Results]:
    """Studies with only those runs that are recorded or ``shown``, and that ``results`` has not."""
    told = {condition.run_id for condition in results.known}
    narrowed = {}
    for name, other in others.items():
        wanted = (other.every_record.keys() | shown) - told
        kept = [condition for condition in other.conditions if condition.run_id in wanted]
        told |= {condition.run_id for condition in kept}
        narrowed[name] = replace(other, conditions=kept)
    return narrowed


def join(results: Results, others: Mapping[str, Results]) -> Results:
    """The paper's study with the conditions, records and faults of others."""
    for other in others.values():
        results = replace(
            results,
            conditions=results.conditions + other.conditions,
            records=results.records | other.records,
            diverged=results.diverged | other.diverged,
            faults=list(dict.fromkeys(results.faults + other.faults)),
        )
    return results
