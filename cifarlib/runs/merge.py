"""Merging: records of the same study that were made in other build folders, into one.

Every record is checked before it is taken. Two records of one run that differ in more than
timing and provenance are a conflict, which nothing decides but the caller. Checkpoints are left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cifarlib.checking import list_folder
from cifarlib.config import DATASETS
from cifarlib.errors import ConfigError, RecordError
from cifarlib.runs.cifar10_1 import ShiftRecord, read_shift
from cifarlib.runs.provenance import name_commit
from cifarlib.runs.results import Results
from cifarlib.runs.schema import Provenance, Record, RunRecord
from cifarlib.runs.store import RecordStore, encode, write_atomically

Side = Literal["ours", "theirs"]


@dataclass
class Merged:
    """What a merge did, in names of files and runs."""

    taken: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # of theirs, a sentence about each
    replaced: list[str] = field(default_factory=list)  # ours that were damaged, likewise
    others: list[str] = field(default_factory=list)  # good, but of no run of this study
    decided: list[str] = field(default_factory=list)  # what was kept of two that differ
    conflicts: list[str] = field(default_factory=list)  # two that differ; ours is untouched

    def lines(self) -> list[str]:
        """The same in sentences, what needs a look at the end."""
        lines = [f"{len(self.taken)} records taken, {len(self.equal)} equal ones were here already"]
        if self.others:
            lines.append(f"{len(self.others)} records of other studies or scales left")
        lines += [f"left, damaged: {fault}" for fault in self.damaged]
        lines += [f"replaced, damaged: {fault}" for fault in self.replaced]
        lines += [*self.decided, *self.conflicts]
        if self.conflicts:
            lines.append(
                f"{len(self.conflicts)} conflicts: look why, then decide with --prefer ours or "
                "--prefer theirs"
            )
        return lines


def merge(results: Results, folders: Sequence[Path], *, prefer: Side | None = None) -> Merged:
    """Take what other build folders hold of a study into its own.

    Damaged records of theirs, and those of runs that the study does not have at this scale, are
    left; a damaged one of ours is set aside for a good one of theirs. Raises ``ConfigError`` for a
    folder that holds no records, before anything is taken.
    """
    ours = results.store
    for folder in folders:
        if not (folder / "runs").is_dir():
            raise ConfigError(f"{folder} is no build folder: it has no runs/; name one that has")
        if folder.resolve() == ours.folder.resolve():
            raise ConfigError(f"{folder} is the folder to merge into; name others")
    merged = Merged()
    names = {c.run_id: c.seeded_name for c in reversed(results.known)}
    for theirs in map(RecordStore, folders):
        for path in list_folder(theirs.runs, ".json"):
            _merge_record(path.name, ours, theirs, names, prefer, merged)
    return merged


def _merge_record(
    file: str,
    ours: RecordStore,
    theirs: RecordStore,
    names: Mapping[str, str],
    prefer: Side | None,
    merged: Merged,
) -> None:
    try:
        new = _read(theirs, file)
    except RecordError as error:
        merged.damaged.append(str(error))
        return
    name = names.get(new.run_id) if isinstance(new, RunRecord | ShiftRecord) else file
    if new is None or name is None:
        merged.others.append(file)
        return
    if isinstance(new, ShiftRecord):
        name += " on CIFAR-10.1"
    try:
        old = _read(ours, file)
    except RecordError as error:
        aside = ours.set_aside(ours.runs / file, error)
        merged.replaced.append(f"{error}; set aside as {aside}")
        old = None
    if old is None:
        merged.taken.append(name)
    elif _content(old) == _content(new):
        merged.equal.append(name)
        return
    else:
        (merged.decided if prefer else merged.conflicts).append(
            f"{name}: {f'kept {prefer}' if prefer else 'conflict, nothing changed'}\n"
            f"  ours:   {_describe(old.provenance)}\n"
            f"  theirs: {_describe(new.provenance)}, in {theirs.folder}"
        )
    if old is None or prefer == "theirs":
        write_atomically(ours.runs / file, encode(new))
        if isinstance(new, RunRecord):
            ours.checkpoint_path(new.run_id).unlink(missing_ok=True)  # of use no more


def _read(store: RecordStore, file: str) -> Record | ShiftRecord | None:
    """The record of a file name; None where it is not there, or of an engine or data unknown."""
    kind, _, name = Path(file).stem.rpartition("-")
    datasets = {info.fingerprint: dataset for dataset, info in DATASETS.items()}
    match kind:
        case "":
            return store.read_run(name)
        case "shift":
            return read_shift(store, name)
        case "network" if name == "residual":
            return store.read_network()
        case "data" if name in datasets:
            return store.read_data(datasets[name])
    return None


def _content(record: Record | ShiftRecord) -> dict[str, object]:
    """What a record says, whenever and wherever it was made."""
    return record.model_dump(exclude={"timing", "provenance"})


def _describe(provenance: Provenance) -> str:
    commit = name_commit(provenance.commit, provenance.dirty)
    versions = " ".join(f"{name} {number}" for name, number in provenance.versions.items())
    return f"{provenance.device}, {commit}, {versions}, finished {provenance.finished}"
