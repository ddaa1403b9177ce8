"""Figures that more than one chapter draws; each function returns a matplotlib figure."""

import base64
import io
import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from cifarlib.config import CLASSES, DATASETS, SplitName
from cifarlib.runs.frames import RunPredictions

__all__ = ["CLASSES", "class_names", "describe_confusion", "plot_confusion", "plot_images"]
__dir__ = __all__.copy  # what a notebook completes


def plot_images(pictures: Mapping[str, str], columns: int) -> Figure | None:
    """Images, PNG in base64, by what is written above each.

    A pixel is drawn as 4 × 4, for not every reader of SVG keeps large pixels sharp.
    """
    if not pictures:
        return None
    rows = math.ceil(len(pictures) / columns)
    size = (1.6 * columns, 1.85 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, png) in zip(axes.flat, pictures.items(), strict=False):
        pixels = plt.imread(io.BytesIO(base64.b64decode(png)))
        axis.imshow(pixels.repeat(4, axis=0).repeat(4, axis=1), interpolation="none")
        axis.set_title(title, fontsize=8)
    figure.tight_layout()
    return figure


def plot_confusion(predictions: RunPredictions | None) -> Figure | None:
    """Confusion matrices of the training and the test set, in % of the true class.

    Cells are blank below 0.5 %; classes are numbered from 1, as in the paper.
    """
    if predictions is None:
        return None
    names = [f"{number} {name}" for number, name in enumerate(class_names(predictions), start=1)]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    splits: tuple[SplitName, SplitName] = ("train", "test")
    for axis, split in zip(axes, splits, strict=True):
        shares = _shares(predictions.confusion(split))
        texts = np.where(shares >= 0.5, np.floor(shares + 0.5).astype(int).astype(str), "")
        sns.heatmap(
            shares, annot=texts, fmt="", cmap="cividis", vmin=0, vmax=100, square=True, cbar=False,
            xticklabels=names, yticklabels=names, annot_kws={"fontsize": 7}, ax=axis,
        )  # fmt: skip
        title = "training set" if split == "train" else "test set"
        axis.set_title(f"{title}, top-1 {predictions.accuracy(split):.1f} %")
        axis.set(
            xlabel="predicted class, % of the true one (blank: below 0.5)", ylabel="true class"
        )
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks(axis.get_xticks(), names, **slanted)
        axis.tick_params(axis="y", rotation=0)
    return figure


def describe_confusion(predictions: RunPredictions | None) -> str:
    """``plot_confusion`` in words: accuracies, and the test set's three most frequent mistakes."""
    if predictions is None:
        return "Pending."
    names, shares = class_names(predictions), _shares(predictions.confusion("test"))
    np.fill_diagonal(shares, 0)
    largest = np.argsort(-shares, axis=None, kind="stable")[:3]
    mistakes = ", ".join(
        f"{names[true]} for {names[predicted]} {shares[true, predicted]:.0f} %"
        for true, predicted in zip(*np.unravel_index(largest, shares.shape), strict=True)
    )
    train, test = predictions.accuracy("train"), predictions.accuracy("test")
    return (
        "Two heat maps of 10 × 10 cells, true class by predicted class: training set, top-1 "
        f"{train:.1f} %, and test set, top-1 {test:.1f} %. Most frequent mistakes of the test set, "
        f"true class first: {mistakes}."
    )


def class_names(predictions: RunPredictions) -> tuple[str, ...]:
    """The classes of the run's data set, in order."""
    return tuple(DATASETS[predictions.record.config.data.name].classes)


def _shares(counts: np.ndarray) -> np.ndarray:
    """Counts in % of their row."""
    return 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
