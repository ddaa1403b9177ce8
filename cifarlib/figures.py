"""One function for each figure of the paper, drawn from records; each returns a Figure.

One colour-blind safe palette; colours stand for learning rates, line styles for weight decay and
marks for batch sizes in every figure that shows runs. ``diagram`` draws the
network.
"""

import base64
import io

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from cifarlib.config import DATASETS
from cifarlib.records import DataRecord
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
