"""Mixed provenance: records that were not all made alike must not share a table unnoticed.

A report compares runs with one another, so whatever else differs between them must be known. Four
things are looked at: the engine, the data's fingerprint, the kind of device, and whether the
package had uncommitted changes. Different commits are no fault: what a commit changes in the
arithmetic is said by the engine. A run from changed files among runs from clean ones is, for
nobody can look up what it was made with; so is one from a copy without git, changed or not.
Changes outside the package, such as a notebook that was executed in JupyterLab, make no run.
A scale that means it says so:

    mixed: [device_class, dirty]
"""

import typing
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import get_args

from cifarlib.errors import ReportError
from cifarlib.study import Kind

if typing.TYPE_CHECKING:
    from cifarlib.runs.results import Results
    from cifarlib.runs.schema import RunRecord

NAMED = 3  # runs that a sentence names


@dataclass(frozen=True)
class Mixture:
    """Records of one report that differ in something that all should have in common."""

    kind: Kind
    groups: dict[str, tuple[str, ...]]  # what the records have → run ids, the largest group first
    names: tuple[str, ...]  # of the runs outside the largest group

    @property
    def sentence(self) -> str:
        """How many runs have what."""
        parts = [f"{_runs(len(members))} {text}" for text, members in self.groups.items()]
        return f"{TITLES[self.kind]} differs: {', '.join(parts)} ({self.fewer})."

    @property
    def fewer(self) -> str:
        """The runs outside the largest group, the first of them by name."""
        more = len(self.names) - NAMED
        return ", ".join(self.names[:NAMED]) + (f" and {more} more" if more > 0 else "")


TITLES: dict[Kind, str] = {
    "engine": "The engine",
    "data": "The data",
    "device_class": "The kind of device",
    "dirty": "The state of the code",
}

_HAVE: dict[Kind, Callable[["RunRecord"], Hashable]] = {
    "engine": lambda record: f"of engine {record.engine}",
    "data": lambda record: f"on data {record.data_fingerprint}",
    "device_class": lambda record: {"cpu": "on processors", "cuda": "on GPUs"}[
        record.provenance.device_class
    ],
    "dirty": lambda record: {
        True: "with uncommitted changes",
        False: "without uncommitted changes",
        None: "from a copy whose changes nobody can know",
    }[record.provenance.dirty],
}


def find_mixtures(results: "Results", among: Collection[str] | None = None) -> list[Mixture]:
    """In what a report's records differ though they should not; nothing where all is well.

    ``among`` are the ids of the runs to look at, all of them unless given.
    """
    records = {
        name: record
        for name, record in results.every_record.items()
        if among is None or name in among
    }
    return [found for kind in get_args(Kind) if (found := _look(results, records, kind))]


def _look(results: "Results", records: dict[str, "RunRecord"], kind: Kind) -> Mixture | None:
    groups: dict[str, list[str]] = {}
    for name, record in records.items():
        groups.setdefault(str(_HAVE[kind](record)), []).append(name)
    if len(groups) < 2:
        return None
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    outside = {name for _, members in ordered[1:] for name in members}
    names = {c.run_id: c.name for c in reversed(results.known) if c.run_id in outside}
    return Mixture(
        kind,
        {text: tuple(members) for text, members in ordered},
        tuple(names[name] for name in records if name in outside),
    )


def refuse_undeclared(results: "Results") -> None:
    """Raise ``ReportError`` where records differ in what their scale does not declare."""
    for found in find_mixtures(results):
        if found.kind not in results.scale.mixed:
            declared = ", ".join([*results.scale.mixed, found.kind])
            raise ReportError(
                f"{found.sentence.removesuffix('.')}; remove the records of the fewer from "
                f"{results.store.runs} and make them again with a sweep, or declare the mixture "
                f"with --set 'mixed=[{declared}]' or in the scale file"
            )


def _runs(number: int) -> str:
    return f"{number} {'run is' if number == 1 else 'runs are'}"
