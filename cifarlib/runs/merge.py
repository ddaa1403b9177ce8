"""Merging: records of the same study that were made in other build folders, into one.

Every record is checked before it is taken. Two records of one run that differ in more than
timing and provenance are a conflict, which nothing decides but the caller.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cifarlib.checking import read_bytes
from cifarlib.config import DATASETS
from cifarlib.errors import ConfigError, RecordError
from cifarlib.runs.checkpoints import unpack_checkpoint
from cifarlib.runs.locks import lock
from cifarlib.runs.provenance import name_commit
from cifarlib.runs.results import Results
from cifarlib.runs.schema import DataRecord, NetworkRecord, Provenance, RunRecord
from cifarlib.runs.shift import ShiftRecord, read_shift, write_shift
from cifarlib.runs.store import RecordStore, write_atomically

Record = RunRecord | DataRecord | NetworkRecord | ShiftRecord
Side = Literal["ours", "theirs"]


@dataclass(frozen=True)
class Conflict:
    """Two good records of one thing that say different things."""

    name: str
    ours: Provenance
    theirs: Provenance
    folder: Path  # theirs
    kept: Side | None  # None: undecided, ours is untouched


@dataclass
class Merged:
    """What a merge did, in names of files and runs."""

    taken: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # of theirs, a sentence about each
    replaced: list[str] = field(default_factory=list)  # ours that were damaged, likewise
    others: list[str] = field(default_factory=list)  # good, but of no run of this study
    decided: list[Conflict] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)  # undecided

    def lines(self) -> list[str]:
        """The same in sentences, what needs a look at the end."""
        lines = [
            f"{len(self.taken)} records taken, {len(self.equal)} equal ones were here already, "
            f"{len(self.checkpoints)} checkpoints of unfinished runs taken"
        ]
        if self.others:
            lines.append(f"{len(self.others)} records of other studies or scales left")
        lines += [f"left, damaged: {fault}" for fault in self.damaged]
        lines += [f"replaced, damaged: {fault}" for fault in self.replaced]
        for conflict in [*self.decided, *self.conflicts]:
            kept = f"kept {conflict.kept}" if conflict.kept else "conflict, nothing changed"
            lines.append(f"{conflict.name}: {kept}")
            lines.append(f"  ours:   {_describe(conflict.ours)}")
            lines.append(f"  theirs: {_describe(conflict.theirs)}, in {conflict.folder}")
        if self.conflicts:
            lines.append(
                f"{len(self.conflicts)} conflicts: look why, then decide with --prefer ours or "
                "--prefer theirs"
            )
        return lines


def merge(results: Results, folders: Sequence[Path], *, prefer: Side | None = None) -> Merged:
    """Take what other build folders hold of a study into its own.

    Damaged records of theirs are named and left; a damaged one of ours gives way to a good one
    of theirs and is set aside. Equal results are no conflict, whenever and wherever they were
    made. Records of runs that the study does not have at this scale are left. Raises
    ``ConfigError`` for a folder that holds no records, before anything is taken.
    """
    ours = results.store
    for folder in folders:
        if not (folder / "runs").is_dir():
            raise ConfigError(f"{folder} is no build folder: it has no runs/; name one that has")
        if folder.resolve() == ours.folder.resolve():
            raise ConfigError(f"{folder} is the folder to merge into; name others")
    merged = Merged()
    names = {c.run_id: f"{c.name} (seed {c.config.seed})" for c in reversed(results.known)}
    for folder in folders:
        theirs = RecordStore(folder)
        for path in theirs.files(theirs.runs, ".json"):
            _merge_record(path.name, ours, theirs, names, prefer, merged)
        for path in theirs.files(theirs.state, ".pt"):
            if path.stem in names:
                _merge_checkpoint(path, names[path.stem], ours, merged)
    return merged


# ---------------------------------------------------------------------------------------------
# One record
# ---------------------------------------------------------------------------------------------


def _merge_record(
    file: str,
    ours: RecordStore,
    theirs: RecordStore,
    names: dict[str, str],
    prefer: Side | None,
    merged: Merged,
) -> None:
    try:
        new = _read(theirs, file)
    except RecordError as error:
        merged.damaged.append(str(error))
        return
    name = names.get(new.run_id) if isinstance(new, RunRecord | ShiftRecord) else file
    if name and isinstance(new, ShiftRecord):
        name += " on CIFAR-10.1"
    if new is None or name is None:
        merged.others.append(file)
        return
    try:
        old = _read(ours, file)
    except RecordError as error:
        aside = ours.set_aside(ours.runs / file, str(error))
        merged.replaced.append(f"{error}; set aside as {aside}")
        old = None
    if old is None:
        _take(new, ours)
        merged.taken.append(name)
    elif _content(old) == _content(new):
        merged.equal.append(name)
    else:
        conflict = Conflict(name, old.provenance, new.provenance, theirs.folder, prefer)
        (merged.decided if prefer else merged.conflicts).append(conflict)
        if prefer == "theirs":
            _take(new, ours)


def _read(store: RecordStore, file: str) -> Record | None:
    """The record of a file name; None where it is not there, or of an engine or data unknown."""
    if file == store.network_path.name:
        return store.read_network()
    for dataset in DATASETS:
        if file == store.data_path(dataset).name:
            return store.read_data(dataset)
    if file.startswith(("data-", "network-")):
        return None
    if file.startswith("shift-"):
        return read_shift(store, Path(file).stem.removeprefix("shift-"))
    return store.read_run(Path(file).stem)


def _take(record: Record, store: RecordStore) -> None:
    if isinstance(record, ShiftRecord):
        write_shift(store, record)
        return
    store.write(record)
    if isinstance(record, RunRecord):
        (store.state / f"{record.run_id}.pt").unlink(missing_ok=True)  # of use no more


def _content(record: Record) -> dict[str, object]:
    """What a record says, whenever and wherever it was made."""
    return record.model_dump(exclude={"timing", "provenance"})


def _describe(provenance: Provenance) -> str:
    commit = name_commit(provenance.commit, provenance.dirty)
    versions = " ".join(f"{name} {number}" for name, number in provenance.versions.items())
    return f"{provenance.device}, {commit}, {versions}, finished {provenance.finished}"


# ---------------------------------------------------------------------------------------------
# One checkpoint
# ---------------------------------------------------------------------------------------------


def _merge_checkpoint(path: Path, name: str, ours: RecordStore, merged: Merged) -> None:
    """Take a checkpoint that is further than ours of a run that nobody is training here."""
    mine = ours.state / path.name
    with lock(ours.state / f"{path.stem}.lock") as held:
        if not held or ours.run_path(path.stem).exists():
            return
        try:
            raw = read_bytes(path)
        except OSError as error:  # such as a folder of this name
            merged.damaged.append(f"{path} cannot be read ({error.strerror})")
            return
        unpacked = unpack_checkpoint(raw)
        if unpacked is None:
            merged.damaged.append(f"{path} does not match its digest")
        elif unpacked[0] > _epoch(mine):
            if mine.is_dir():
                aside = ours.set_aside(mine, "it is a folder")
                merged.replaced.append(f"{mine} is a folder; set aside as {aside}")
            write_atomically(mine, raw)
            merged.checkpoints.append(name)


def _epoch(checkpoint: Path) -> int:
    """Where a checkpoint stands; 0 where there is none, or none that a run could go on from."""
    try:
        unpacked = unpack_checkpoint(read_bytes(checkpoint))
    except OSError:
        return 0
    return unpacked[0] if unpacked else 0
