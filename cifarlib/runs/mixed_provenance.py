"""Mixed provenance: records that were not all made alike must not share a table unnoticed.

Engine, data, kind of device and the state of the code are looked at. Different commits are no
fault: what a commit changes in the arithmetic is said by the engine. A run from changed files among
runs from clean ones is, for nobody can look up what it was made with; so is one from a copy without
git. A scale that means it says so: ``mixed: [device_class, dirty]``.
"""

import typing
from collections.abc import Callable

from cifarlib.errors import ReportError
from cifarlib.runs.schema import RunRecord
from cifarlib.study import Kind

if typing.TYPE_CHECKING:
    from cifarlib.runs.results import Results

NAMED = 3  # runs that a sentence names
DEVICES = {"cpu": "on processors", "cuda": "on GPUs"}
CHANGES = {
    True: "with uncommitted changes",
    False: "without uncommitted changes",
    None: "from a copy whose changes nobody can know",
}
KINDS: dict[Kind, tuple[str, Callable[[RunRecord], str]]] = {
    "engine": ("The engine", lambda record: f"of engine {record.engine}"),
    "data": ("The data", lambda record: f"on data {record.data_fingerprint}"),
    "device_class": ("The kind of device", lambda r: DEVICES[r.provenance.device_class]),
    "dirty": ("The state of the code", lambda record: CHANGES[record.provenance.dirty]),
}


def find_mixtures(results: "Results") -> dict[Kind, str]:
    """In what records differ though they should not, and a sentence: how many runs have what, and
    the fewer by name."""
    names = {c.run_id: c.name for c in reversed(results.known)}
    found = {}
    for kind, (title, say) in KINDS.items():
        groups: dict[str, list[str]] = {}
        for run, record in results.every_record.items():
            groups.setdefault(say(record), []).append(run)
        ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
        if len(ordered) > 1:
            counts = ", ".join(
                f"{len(runs)} {'run is' if len(runs) == 1 else 'runs are'} {what}"
                for what, runs in ordered
            )
            fewer = [names[run] for _, runs in ordered[1:] for run in runs]
            more = f" and {len(fewer) - NAMED} more" if len(fewer) > NAMED else ""
            found[kind] = f"{title} differs: {counts} ({', '.join(fewer[:NAMED])}{more})."
    return found


def refuse_undeclared(results: "Results") -> None:
    """Raise ``ReportError`` where records differ in what their scale does not declare."""
    for kind, sentence in find_mixtures(results).items():
        if kind not in results.scale.mixed:
            declared = ", ".join([*results.scale.mixed, kind])
            raise ReportError(
                f"{sentence.removesuffix('.')}; remove the records of the fewer from "
                f"{results.store.runs} and make them again with a sweep, or declare the difference "
                f"with --set 'mixed=[{declared}]' or in the scale file"
            )
