"""The records of a build folder: written whole or not at all, and read back checked.

A digest over the content tells an edited or damaged file, which is never read: a sweep sets it
aside and trains the run again.
"""

import contextlib
import itertools
import json
import os
import tempfile
import typing
from collections.abc import Iterable
from pathlib import Path

import pydantic

from cifarlib.checking import Strict, list_folder, open_file, parse_json, read_bytes
from cifarlib.config import DATASETS, ENGINE, run_id
from cifarlib.config import digest as _digest
from cifarlib.errors import RecordError, UnreadableError
from cifarlib.runs.locks import lock
from cifarlib.runs.schema import FORMAT, DataRecord, NetworkRecord, Record, RunRecord

DIGEST_BYTES, EPOCH_BYTES = 32, 4  # what a checkpoint begins with; kept weights have the first

AnyRecord = typing.TypeVar("AnyRecord", bound=Strict)


def write_atomically(path: Path, content: bytes) -> None:
    """Put a file in place whole or not at all, and durably.

    Raises ``RecordError`` where the disk is full or the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        temporary = None
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except IsADirectoryError as error:
        raise RecordError(
            f"a folder stands where the file {path} belongs; move it away and run the same command "
            "again: nothing that was finished is lost"
        ) from error
    except OSError as error:
        raise RecordError(
            f"{path} cannot be written ({error.strerror}); make room there or name another place "
            "with --out, and run the same command again: nothing that was finished is lost"
        ) from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def unreadable(path: Path, error: OSError) -> RecordError:
    """What to raise where a file cannot be read; only a folder in its place is damage."""
    said = f"{path} cannot be read ({error.strerror})"
    if isinstance(error, IsADirectoryError):
        return RecordError(said)
    return UnreadableError(f"{said}; see to that and run the same command again: nothing is lost")


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of a file; for whoever alone may write it."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(OSError):  # in a folder that cannot be written they do no harm
            leftover.unlink()


def encode(record: Strict) -> bytes:
    """A record as JSON, one key a line, with its digest."""
    content = record.model_dump(mode="json")
    content["digest"] = _digest(content)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def decode(model: type[AnyRecord], raw: bytes, name: str) -> AnyRecord:
    """A record from its JSON, checked; raises ``RecordError`` with the reason."""
    try:
        content = parse_json(raw)
        digest = content.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RecordError(f"{name} is truncated or is no record") from error
    if content.get("format") != FORMAT:
        raise RecordError(
            f"{name} has format {content.get('format')!r}, this program reads {FORMAT}"
        )
    if digest != _digest(content):
        raise RecordError(f"{name} was edited or damaged: its content does not match its digest")
    try:
        return model.model_validate_json(json.dumps(content))
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the whole"
        reason = fault["msg"].removeprefix("Value error, ")
        raise RecordError(f"{name} is no valid record: {reason} ({place})") from error


class RecordStore:
    """The records of one build folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.runs = folder / "runs"
        self.state = folder / "state"

    def run_path(self, run_id: str) -> Path:
        """Where a run's record stands."""
        return self.runs / f"{run_id}.json"

    def data_path(self, dataset: str) -> Path:
        """Where a data set's record stands."""
        return self.runs / f"data-{DATASETS[dataset].fingerprint}.json"

    def checkpoint_path(self, run_id: str) -> Path:
        """Where a run's checkpoint stands while it is trained."""
        return self.state / f"{run_id}.pt"

    def checkpoint_epoch(self, run_id: str) -> int:
        """The epoch that a run's checkpoint claims to be at, unchecked; 0 where there is none."""
        try:
            with open_file(self.checkpoint_path(run_id)) as file:
                head = file.read(DIGEST_BYTES + EPOCH_BYTES)
        except OSError:
            return 0
        return int.from_bytes(head[DIGEST_BYTES:], "big")

    def weights_path(self, run_id: str) -> Path:
        """Where a run's weights stand, if they were kept."""
        return self.state / "weights" / f"{run_id}.pt"

    @property
    def network_path(self) -> Path:
        """Where the residual network's record stands."""
        return self.runs / "network-residual.json"

    def write(self, record: Record) -> Path:
        """Put a record in place; raises ``RecordError`` where that is impossible."""
        match record:
            case RunRecord():
                path = self.run_path(record.run_id)
            case DataRecord():
                path = self.data_path(record.dataset)
            case _:
                path = self.network_path
        write_atomically(path, encode(record))
        return path

    def read_run(self, run_id_: str) -> RunRecord | None:
        """A run's record, None where there is none; ``RecordError`` where it is damaged."""
        path = self.run_path(run_id_)
        record = self.read(RunRecord, path)
        if record and record.run_id != run_id_:
            raise RecordError(f"{path} holds the record of another run, {record.run_id}")
        if record and run_id(record.config, record.engine, record.data_fingerprint) != run_id_:
            raise RecordError(f"{path}: the run id does not follow from the configuration")
        return record

    def read_data(self, dataset: str) -> DataRecord | None:
        """A data set's record, None where there is none; ``RecordError`` where it is damaged."""
        path = self.data_path(dataset)
        record = self.read(DataRecord, path)
        if record and f"data-{record.data_fingerprint}" != path.stem:
            raise RecordError(f"{path} holds the record of another data set, {record.dataset}")
        return record

    def read_network(self) -> NetworkRecord | None:
        """The residual network's record, None where there is none of this engine.

        Raises ``RecordError`` where it is damaged.
        """
        record = self.read(NetworkRecord, self.network_path)
        return record if record and record.engine == ENGINE else None

    def read(self, model: type[AnyRecord], path: Path) -> AnyRecord | None:
        """A record of any kind, None where there is none; ``RecordError`` where it is damaged."""
        try:
            return decode(model, read_bytes(path), str(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(path, error) from error

    def read_runs(self, run_ids: Iterable[str]) -> tuple[dict[str, RunRecord], list[str]]:
        """The good records among the ids, and a sentence about each damaged one."""
        good, faults = {}, []
        for name in dict.fromkeys(run_ids):
            try:
                if record := self.read_run(name):
                    good[name] = record
            except RecordError as error:
                faults.append(str(error))
        return good, faults

    def clear_state(self, run_id: str) -> None:
        """Remove a recorded run's checkpoint, last error and lock, which say nothing any more."""
        locked = self.state / f"{run_id}.lock"
        with contextlib.suppress(OSError, RecordError):
            self.checkpoint_path(run_id).unlink(missing_ok=True)
            (self.state / f"{run_id}.error.txt").unlink(missing_ok=True)
            if locked.exists():
                with lock(locked):  # which removes it, unless somebody holds it
                    pass

    def set_aside(self, path: Path, reason: RecordError | str) -> Path:
        """Move a damaged file out of the way, beside a note of the reason; where it is now.

        What was set aside before under the same name stays. Raises ``RecordError`` where the
        folder cannot be written, and an ``UnreadableError`` that is the reason: such a file stays.
        """
        if isinstance(reason, UnreadableError):
            raise reason
        folder = self.folder / "damaged"
        numbered = (f"{path.stem}.{n}{path.suffix}" for n in itertools.count(2))
        names = itertools.chain([path.name], numbered)
        aside = next(place for name in names if not (place := folder / name).exists())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.replace(aside)
        except FileNotFoundError:  # another sweep was faster, and wrote down why
            return folder / path.name
        except OSError as error:
            raise RecordError(
                f"{path} is damaged ({reason}) and cannot be moved to {folder} ({error.strerror}); "
                "make that folder writable, or remove the file"
            ) from error
        note = f"{reason}\n".encode(errors="backslashreplace")  # of a folder's name, perhaps
        write_atomically(aside.with_name(f"{aside.name}.reason.txt"), note)
        return aside

    def run_ids(self) -> list[str]:
        """The ids of all records in the folder, damaged ones included."""
        return [path.stem for path in list_folder(self.runs, ".json") if "-" not in path.stem]
