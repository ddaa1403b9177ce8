"""Checkpoints: a run's state on disk, with its digest; read without code from it."""

import contextlib
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cifarlib.checking import read_bytes
from cifarlib.runs.schema import Provenance
from cifarlib.runs.store import DIGEST_BYTES, EPOCH_BYTES, RecordStore, unreadable, write_atomically

SALT = b"checkpoint 2"  # of the digest
PARTS = {"model", "optimizer", "history", "best", "seconds", "resumed", "provenance"}  # of a state

Aside = Callable[[], contextlib.AbstractContextManager[None]]
"""Within it, other runs of this process have the device."""


def write_checkpoint(
    path: Path, state: dict[str, Any], aside: Aside = contextlib.nullcontext
) -> None:
    """A state behind the number of its epoch and a SHA-256 of both."""
    import torch

    buffer = io.BytesIO()
    epoch = len(state["history"]["learning_rate"]) - 1
    buffer.write(epoch.to_bytes(EPOCH_BYTES, "big"))
    torch.save(state | {"run_id": path.stem}, buffer)
    with aside():
        content = buffer.getvalue()
        write_atomically(path, hashlib.sha256(SALT + content).digest() + content)


def read_checkpoint(
    path: Path, store: RecordStore, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """A run's state, None where there is none; a damaged one is set aside and said.

    Raises ``UnreadableError`` for one that cannot be read at this moment.
    """
    try:
        return _unpack_state(read_bytes(path), path.stem)
    except FileNotFoundError:
        return None
    except IsADirectoryError as error:
        reason = f"it cannot be read ({error.strerror})"
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        reason = str(error)
    aside = store.set_aside(path, reason)
    say(f"the checkpoint is damaged and was set aside as {aside}; training from the start")
    return None


def _unpack_state(raw: bytes, name: str) -> dict[str, Any]:
    """A checkpoint's state; ``ValueError`` with the reason why a run cannot go on from it."""
    import torch

    digest, content = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
    if hashlib.sha256(SALT + content).digest() != digest:
        raise ValueError("its content does not match its digest")
    try:  # weights_only: no code comes from a file
        buffer = io.BytesIO(content[EPOCH_BYTES:])
        state = torch.load(buffer, map_location="cpu", weights_only=True)
        owner = state.pop("run_id")
        if "provenance" in state:
            state["provenance"] = Provenance.model_validate(state["provenance"])
    except MemoryError:
        raise
    except Exception as error:  # whoever wrote this gave it a digest, and torch may raise anything
        raise ValueError(f"it holds no state of a run ({type(error).__name__})") from error
    if owner != name:
        raise ValueError(f"it is of another run, {owner}")
    if lacking := PARTS - set(state):
        raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
    return state
