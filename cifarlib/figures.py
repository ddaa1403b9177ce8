"""One function for each figure of the paper, drawn from records; each returns a Figure.

One colour-blind safe palette; colours stand for learning rates, line styles for weight decay and
marks for batch sizes in every figure that shows runs. ``curves`` draws the course of training,
``diagram`` the network.
"""

import base64
import io

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from cifarlib.config import DATASETS
from cifarlib.records import DataRecord, RunRecord
from cifarlib.report.style import (
    BATCH_MARKS,
    BEST,
    DECAY_STYLES,
    RATE_COLOURS,
    SPLIT_COLOURS,
    STYLE,
)

__all__ = ["BATCH_MARKS", "BEST", "DECAY_STYLES", "RATE_COLOURS", "SPLIT_COLOURS", "STYLE"]


def _image(png: str) -> np.ndarray:
    """An image's pixels, each as 4 × 4: not every reader of SVG keeps large pixels sharp."""
    pixels = plt.imread(io.BytesIO(base64.b64decode(png)))
    return pixels.repeat(4, axis=0).repeat(4, axis=1)


def _class_names(record: RunRecord) -> tuple[str, ...]:
    return tuple(DATASETS[record.config.data.name].classes)


def plot_examples(data: DataRecord | None) -> Figure | None:
    """Figure 1: one training image of each of the ten classes."""
    if data is None:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(2, 5, figsize=(7, 3.2), layout="constrained")
        names = DATASETS[data.dataset].classes
        for label, (axis, png, name) in enumerate(
            zip(axes.flat, data.examples, names, strict=True), start=1
        ):
            axis.imshow(_image(png), interpolation="none")
            axis.set_title(f"{label} {name}")
            axis.axis("off")
    return figure


def describe_examples(data: DataRecord | None) -> str:
    """Figure 1 in words."""
    if data is None:
        return "Pending."
    names = enumerate(DATASETS[data.dataset].classes, start=1)
    listed = ", ".join(f"{number} {name}" for number, name in names)
    return f"Ten images in two rows of five, one of each class: {listed}."


def plot_transforms(data: DataRecord | None) -> Figure | None:
    """Figure 2: one training image after each transform."""
    if data is None:
        return None
    with mpl.rc_context(STYLE):
        count = len(data.transforms)
        figure, axes = plt.subplots(1, count, figsize=(1.6 * count, 1.9), layout="constrained")
        for axis, (name, png) in zip(axes, data.transforms.items(), strict=True):
            axis.imshow(_image(png), interpolation="none")
            axis.set_title(name, fontsize=8)
            axis.axis("off")
    return figure


def describe_transforms(data: DataRecord | None) -> str:
    """Figure 2 in words."""
    if data is None:
        return "Pending."
    return f"The same image {len(data.transforms)} times in a row: {', '.join(data.transforms)}."


def plot_confusion(record: RunRecord | None) -> Figure | None:
    """Figures 6, 7 and 10: confusion matrices of the training and the test set.

    Cells are % of their true class, blank below 0.5; classes are numbered from 1, as in the
    paper, which calls the test set's “Validation”.
    """
    if record is None:
        return None
    names = [f"{n} {name}" for n, name in enumerate(_class_names(record), start=1)]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
        for axis, split in zip(axes, ("train", "test"), strict=True):
            counts = np.array(record.result.predictions.confusion[split], dtype=float)
            shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
            sns.heatmap(
                shares,
                annot=np.where(shares >= 0.5, shares.round().astype(int).astype(str), ""),
                fmt="",
                cmap="cividis",
                vmin=0,
                vmax=100,
                square=True,
                cbar=False,
                xticklabels=names,
                yticklabels=names,
                annot_kws={"fontsize": 7},
                ax=axis,
            )
            accuracy = record.accuracy(split, epoch=record.result.predictions.epoch)
            title = "training set" if split == "train" else "test set"
            axis.set_title(f"{title}, top-1 {accuracy:.1f} %")
            axis.set_xlabel("predicted")
            axis.set_ylabel("true class, in %")
            slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
            axis.set_xticks(axis.get_xticks(), names, **slanted)
            axis.tick_params(axis="y", rotation=0)
    return figure


def describe_confusion(record: RunRecord | None, count: int = 3) -> str:
    """Figure 6, 7 or 10 in words: accuracies, and the test set's most frequent mistakes."""
    if record is None:
        return "Pending."
    names = _class_names(record)
    predictions = record.result.predictions
    counts = np.array(predictions.confusion["test"], dtype=float)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    np.fill_diagonal(shares, 0)
    largest = np.argsort(-shares, axis=None, kind="stable")[:count]
    mistakes = ", ".join(
        f"{names[true]} for {names[predicted]} {shares[true, predicted]:.0f} %"
        for true, predicted in zip(*np.unravel_index(largest, shares.shape), strict=True)
    )
    train, test = (record.accuracy(s, epoch=predictions.epoch) or 0 for s in ("train", "test"))
    return (
        "Two heat maps of 10 × 10 cells, true class by predicted class: training set, top-1 "
        f"{train:.1f} %, and test set, top-1 {test:.1f} %. Most frequent mistakes of the test set, "
        f"true class first: {mistakes}."
    )


def plot_last_layer(record: RunRecord | None) -> Figure | None:
    """Ours, after the paper's Listing 5: weights of the last layer, and the size of each row.

    Rows are classes, columns features; zero is white. Right: root mean square of a class's
    weights; the dashed line is √(2/10), the standard deviation of the first weights.
    """
    if record is None:
        return None
    weights = record.result.predictions.weights
    names = _class_names(record)
    limit = float(np.abs(weights).max()) or 1.0
    with mpl.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(9, 2.8), layout="constrained", width_ratios=(5, 1), sharey=True
        )
        image = left.imshow(
            weights.repeat(8, axis=0),  # sharp rows in readers that smooth large pixels
            extent=(-0.5, weights.shape[1] - 0.5, len(weights) - 0.5, -0.5),
            cmap="PuOr",
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            interpolation="none",
        )
        left.set_yticks(range(len(names)), names)
        left.set_xlabel(f"feature (of {weights.shape[1]})")
        left.grid(visible=False)
        figure.colorbar(image, ax=left, label="weight", pad=0.01)
        right.barh(range(len(names)), _root_mean_square(weights), color=RATE_COLOURS[0.0001])
        right.axvline(FIRST_DEVIATION, color="0.2", linestyle="--", linewidth=1)
        right.set_xlabel("root mean square")
        right.grid(visible=False, axis="y")
    return figure


FIRST_DEVIATION = (2 / 10) ** 0.5  # of Kaiming's normal weights with ten outputs (fan-out)


def describe_last_layer(record: RunRecord | None) -> str:
    """The heat map of the last layer in words: range of the weights, largest and smallest row."""
    if record is None:
        return "Pending."
    weights = record.result.predictions.weights
    names = _class_names(record)
    sizes = _root_mean_square(weights)
    return (
        f"Heat map of {weights.shape[0]} rows, one for each class, and {weights.shape[1]} columns; "
        f"weights from {weights.min():.2f} to {weights.max():.2f}. Bars beside it: root mean "
        f"square by class, from {sizes.min():.3f} ({names[int(sizes.argmin())]}) to "
        f"{sizes.max():.3f} ({names[int(sizes.argmax())]})."
    )


def _root_mean_square(weights: np.ndarray) -> np.ndarray:
    return np.sqrt((weights**2).mean(axis=1))
