"""Where numbers come from: commit, versions, machine. Imports nothing heavy."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from cifarlib import paths
from cifarlib.checking import cut, read_bytes
from cifarlib.errors import ConfigError
from cifarlib.runs.schema import Provenance

PROGRAM = ("cifarlib",)  # what a run is made by: its parameters stand in its record
REPORT = ("cifarlib", "params", ":(glob)notebooks/[0-9]*.ipynb")  # what a report is made by

VARIABLE = "CIFARLIB_COMMIT"
ARCHIVED = "commit.txt"  # in the package; git archive puts the commit into it (.gitattributes)
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn")


@lru_cache
def commit(part: tuple[str, ...] = PROGRAM) -> tuple[str | None, bool | None]:
    """The commit of this code, and whether its tracked files were changed; None: not known.

    In a checkout git says both, of the files in ``part``. Elsewhere, in a repository around an
    unpacked copy too, the commit is what ``CIFARLIB_COMMIT`` says (``ConfigError`` where that is
    none), else what ``git archive`` wrote down.
    """
    try:
        if Path(_git("rev-parse", "--show-toplevel")).samefile(paths.PACKAGE.parent):
            head = _git("rev-parse", "HEAD")
            changes = _git("status", "--porcelain", "--untracked-files=no", "--", *part)
            return head, bool(changes)
    except (OSError, subprocess.SubprocessError):
        pass
    return _stated_commit(), None


def _stated_commit() -> str | None:
    if stated := os.environ.get(VARIABLE):
        if not _is_commit(stated):
            raise ConfigError(
                f"{VARIABLE}={cut(stated)} is no commit; give its 40 hexadecimal digits"
            )
        return stated
    try:
        archived = read_bytes(paths.PACKAGE / ARCHIVED).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return archived if _is_commit(archived) else None


def _is_commit(text: str) -> bool:
    return bool(re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", text))


def _git(*arguments: str) -> str:
    # Without optional locks, so that no `git commit` of the user's finds the index locked.
    command = ["git", "--no-optional-locks", "-C", str(paths.PACKAGE.parent), *arguments]
    # A hook's GIT_DIR would name another repository.
    environment = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE")}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=20, env=environment
    ).stdout.strip()


def is_tracked(path: Path) -> bool:
    """Whether git keeps a file of this checkout."""
    try:
        return bool(_git("ls-files", "--", str(path.absolute())))
    except (OSError, subprocess.SubprocessError):
        return False


def name_commit(commit: str | None, dirty: bool | None) -> str:
    """A commit in words, and whether files were changed since."""
    changes = {True: ", with uncommitted changes", False: "", None: ", changes unknown"}[dirty]
    return f"commit {commit[:12]}{changes}" if commit else "commit unknown"


def versions() -> dict[str, str]:
    """Python and the packages that decide numbers, by their installed metadata."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def processor() -> str:
    """The processor's name; numbers stand for it on Linux on ARM."""
    if sys.platform == "darwin":  # where platform.processor() calls each of Apple's chips "arm"
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.check_output(command, text=True, timeout=20).strip()
    known: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            known.setdefault(key.strip(), value.strip())
    if name := known.get("model name"):
        return name
    if part := known.get("CPU part"):
        return f"{platform.machine()} {known.get('CPU implementer')}/{part}"
    return platform.processor() or platform.machine()


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def differences(before: Provenance, after: Provenance) -> list[str]:
    """In what decides the bits of a run on the processor two origins differ; a clause for each."""
    apart = []
    if before.device != after.device:
        apart.append(f"trained on {after.device} instead of {before.device}")
    if before.threads != after.threads:
        apart.append(f"{after.threads} instead of {before.threads} threads")
    for name in dict.fromkeys([*before.versions, *after.versions]):
        if name == "scikit-learn":  # which only splits the images
            continue
        old, new = (origin.versions.get(name, "none") for origin in (before, after))
        digits = 2 if name == "python" else None  # of which the last one decides nothing
        if old.split(".")[:digits] != new.split(".")[:digits]:
            apart.append(f"{name} {new} instead of {old}")
    return apart


def of_this_process(threads: int, gpu: str | None = None) -> Provenance:
    """What stands in a record of what this process makes now, on the processor or a GPU by name."""
    head, dirty = commit()
    return Provenance(
        commit=head,
        dirty=dirty,
        versions=versions(),
        device=gpu or processor(),
        device_class="cuda" if gpu else "cpu",
        threads=threads,
        finished=now(),
    )
