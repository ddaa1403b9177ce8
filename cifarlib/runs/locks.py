"""Locks: one living process at a time may do a thing in a build folder.

The kernel holds them, not the files: the lock of a process that was killed is free at once, and no
clock has a say. The file is removed by its holder; one that is found held by nobody means nothing.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import filelock

from cifarlib.checking import list_folder, open_file
from cifarlib.errors import RecordError


@contextlib.contextmanager
def lock(path: Path, *, patient: bool = False) -> Iterator[bool]:
    """Hold a lock that ends with this process; False where another living process holds it.

    A ``patient`` caller waits until it is free. Raises ``RecordError`` where the folder cannot be
    written.
    """
    own = filelock.FileLock(path, timeout=-1 if patient else 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(filelock.Timeout):
            own.acquire()
    except OSError as error:
        if path.is_dir():
            raise RecordError(
                f"a folder stands where the lock {path} belongs; remove it and run the same "
                "command again: nothing that was finished is lost"
            ) from error
        raise RecordError(
            f"{path} cannot be locked ({error.strerror}); make the folder writable or name another "
            "with --out"
        ) from error
    try:
        yield own.is_locked
    finally:
        if own.is_locked:
            with contextlib.suppress(OSError):  # left behind, the file does no harm
                path.unlink()
            own.release()


def held(folder: Path) -> set[str]:
    """The names of the locks in a folder, perhaps a read-only one, that a living process holds."""
    return {path.stem for path in list_folder(folder, ".lock") if _is_held(path)}


def _is_held(path: Path) -> bool:
    try:
        with open_file(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
