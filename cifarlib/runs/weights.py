"""A run's weights on disk, as they were when its predictions were made; read without code from it.

They stand beside the checkpoints, ``state/weights/<run id>.pt``, and decide nothing: a run's id and
its record are the same with and without them.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cifarlib.checking import read_bytes
from cifarlib.config import Channels
from cifarlib.errors import RecordError
from cifarlib.models import build_model, last_layer
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import DIGEST_BYTES, unreadable, write_atomically

CONTENT = b"weights 1"  # what the digest says that it holds


@dataclass(frozen=True)
class KeptWeights:
    """What a run's network needs to be used: its weights, and what images are normalised with."""

    weights: dict[str, Tensor]  # a state_dict in fp32, of the average where a run averages
    mean: Channels  # of pixels scaled to 0–1
    std: Channels


def write_weights(path: Path, kept: KeptWeights) -> None:
    """Put a run's weights in place whole or not at all, behind a SHA-256; the run names the file.

    Raises ``RecordError`` where the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    weights = {name: value.cpu() for name, value in kept.weights.items()}
    content = {"run_id": path.stem, "weights": weights, "mean": kept.mean, "std": kept.std}
    torch.save(content, buffer)
    raw = buffer.getvalue()
    write_atomically(path, _digest(raw) + raw)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(CONTENT + content).digest()


def read_weights(path: Path) -> KeptWeights:
    """The weights of the run that names a file; raises ``RecordError`` for anything else."""
    try:
        raw = read_bytes(path)
    except OSError as error:
        raise unreadable(path, error) from error
    digest, content = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
    if _digest(content) != digest:
        raise RecordError(f"{path} is damaged: its content does not match its digest")
    try:  # weights_only: no code comes from a file
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        owner, kept = found["run_id"], KeptWeights(found["weights"], found["mean"], found["std"])
    except MemoryError:
        raise
    except Exception as error:  # whoever wrote this gave it a digest, and torch may raise anything
        raise RecordError(f"{path} holds no weights of a run ({type(error).__name__})") from error
    if owner != path.stem:
        raise RecordError(f"{path} holds the weights of another run, {owner}")
    return kept


def build_network(record: RunRecord, path: Path) -> tuple[nn.Module, KeptWeights]:
    """A recorded run's network with its kept weights, on the CPU, and what was kept with them.

    Raises ``RecordError`` where the file is damaged, and where its weights are of another training
    of the run: the record keeps the last layer, to 1/127 of its largest weight.
    """
    kept = read_weights(path)
    shape = record.config.model.model_copy(update={"initialization": "kaiming"})  # nothing fetched
    model = build_model(shape, record.config.dropout, record.config.seed)
    try:
        model.load_state_dict(kept.weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} does not fit the network of its run") from error
    predictions = record.result.predictions
    last = last_layer(model).weight.detach().numpy()
    if not np.isfinite(last).all():  # a record says nothing of such weights
        last = np.zeros_like(last)
    step = predictions.last_layer_scale / 127
    if np.abs(last - predictions.weights).max() > 0.501 * step:
        raise RecordError(
            f"{path} is of another training of its run: its last layer is not the record's"
        )
    return model, kept
