"""What is measured on a set of images: loss, top-1/2/3, confusion, confidence."""

import torch
from torch import Tensor
from torch.nn import functional

from cifarlib.config import ProtocolConfig


def mean_loss(logits: Tensor, labels: Tensor, protocol: ProtocolConfig, batch_size: int) -> float:
    """Cross-entropy of (n, 10) logits and (n,) labels.

    ``per_sample`` is the mean over the images. ``batch_means`` is what Listing 3 computes: the
    sum of the batches' means over the number of images, which scales with 1/batch size.
    """
    losses = functional.cross_entropy(logits.float(), labels, reduction="none").double()
    if protocol.loss == "batch_means":
        return float(sum(batch.mean() for batch in losses.split(batch_size)) / len(labels))
    return float(losses.mean())


def rank(logits: Tensor) -> Tensor:
    """Classes (n, 10) of n images from the largest logit to the smallest; ties by class index.

    Every count below follows this one order, so that no two of them can disagree.
    """
    return logits.sort(dim=1, descending=True, stable=True).indices


def top_k_correct(logits: Tensor, labels: Tensor) -> tuple[int, int, int]:
    """How many of n images have their label among the first 1, 2 and 3 classes of ``rank``."""
    hits = rank(logits)[:, :3].eq(labels[:, None]).sum(dim=0).cumsum(dim=0)
    top1, top2, top3 = hits.tolist()
    return top1, top2, top3


def confusion_matrix(logits: Tensor, labels: Tensor) -> tuple[tuple[int, ...], ...]:
    """Counts of (true class, predicted class), 10 × 10."""
    classes = logits.shape[1]
    cells = torch.bincount(labels * classes + rank(logits)[:, 0], minlength=classes**2)
    return tuple(tuple(row) for row in cells.view(classes, classes).tolist())


def predictions(logits: Tensor) -> tuple[list[int], list[float]]:
    """Predicted class of each image, and the probability given to it."""
    predicted = rank(logits)[:, 0]
    confidence = logits.float().softmax(dim=1).gather(1, predicted[:, None])[:, 0]
    return predicted.tolist(), confidence.tolist()
