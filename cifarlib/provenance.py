"""Where numbers come from: commit, versions, machine. Imports nothing heavy."""

import datetime
import importlib.metadata
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from cifarlib import paths
from cifarlib.records import Provenance

PROGRAM = "cifarlib"  # what a run is made by: its parameters stand in its record
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn")


@lru_cache
def commit(part: str = ".") -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether tracked files were changed; None outside a checkout.

    ``part`` is a folder of the checkout whose files alone are looked at for changes.
    """
    try:
        head = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", part)
        return head, bool(changes)
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(paths.ROOT), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()


def versions() -> dict[str, str]:
    """Python and the packages that decide numbers, by their installed metadata."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def of_this_process(
    device_class: str, threads: int, device: str | None = None, **more: Any
) -> Provenance:
    """What stands in a record of what this process makes now, on the processor by default."""
    head, dirty = commit(PROGRAM)
    return Provenance(
        commit=head,
        dirty=dirty,
        versions=versions(),
        device=device or processor(),
        device_class=device_class,  # type: ignore[arg-type]
        threads=threads,
        finished=now(),
        **more,
    )
