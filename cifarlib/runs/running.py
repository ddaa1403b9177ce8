"""Runs in training: found by their locks, with the epoch of their last checkpoint."""

from pathlib import Path

from cifarlib.checking import open_file
from cifarlib.runs.locks import held

DIGEST_BYTES, EPOCH_BYTES = 32, 4  # what a checkpoint begins with


def list_running(state: Path) -> dict[str, int]:
    """Run id → epoch of the last checkpoint, of every run that a living process trains."""
    return {name: checkpoint_epoch(state / f"{name}.pt") for name in held(state)}


def checkpoint_epoch(path: Path) -> int:
    """The epoch that a checkpoint claims to stand at, unchecked; 0 where there is none."""
    try:
        with open_file(path) as file:
            head = file.read(DIGEST_BYTES + EPOCH_BYTES)
    except OSError:
        return 0
    return int.from_bytes(head[DIGEST_BYTES:], "big")
