"""Figures for exploring: the grid as parallel coordinates, and the curves of chosen runs."""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifarlib.explore.collection import TITLES
from cifarlib.records import RunRecord, SplitName
from cifarlib.report.style import RATE_COLOURS, STYLE

COLOURS = [*RATE_COLOURS.values(), "#33bbee", "#ee3377", "#555555", "#bb8800"]
"""Of curves: the colours of the report, and four more that stay apart for the colour-blind."""

LINES = ("-", (0, (4, 1.5)), (0, (1, 1)))
MOST = len(COLOURS) * len(LINES)  # curves that can be told apart

SPREAD = 0.035  # how far lines through one value lie from it, as a share of the axis
NOT_CHOSEN = "#c4c4c4"

Quantity = Literal["top-1 accuracy, %", "loss"]


def plot_grid(
    frame: pd.DataFrame, axes: Sequence[str], shown: Collection[str], chosen: Collection[str] = ()
) -> Figure:
    """Parallel coordinates: a line for each run, coloured by its test accuracy.

    ``frame`` is a table of ``collection.Runs``; ``axes`` are one or more of its settings, the
    last axis is test top-1. Run ids in ``shown`` have colour, the others lie grey behind them;
    ``chosen`` are bold. Every value of a setting has its place, in their order; lines through one
    are spread a little.
    """
    columns = [*axes, "test_top1"]
    heights = np.column_stack([_places(frame, column) for column in columns])
    accuracy = frame["test_top1"].to_numpy(dtype=float)
    low, high = _limits(accuracy)
    colour = ScalarMappable(mpl.colors.Normalize(low, high), "cividis")
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure, axis = plt.subplots(figsize=(11, 3.1), layout="constrained")
        is_shown, is_chosen = frame.index.isin(list(shown)), frame.index.isin(list(chosen))
        for row in np.lexsort([accuracy, is_chosen, is_shown]):
            x, y = _bend(heights[row])
            axis.plot(
                x,
                y,
                color=colour.to_rgba(accuracy[row]) if is_shown[row] else NOT_CHOSEN,
                linewidth=2.6 if is_chosen[row] else 1.0,
                alpha=0.9 if is_shown[row] else 0.35,
                solid_capstyle="round",
            )
        for place, column in enumerate(columns[:-1]):
            _draw_values(axis, place, frame[column])
        axis.set_xlim(-0.2, len(columns) - 1)
        axis.set_ylim(-0.08, 1.08)
        axis.set_xticks(range(len(columns)), [TITLES[column] for column in columns])
        axis.set_yticks([])
        axis.tick_params(axis="x", length=0, pad=4)
        axis.spines[:].set_visible(False)
        bar = figure.colorbar(colour, ax=axis, pad=0.0, aspect=25, fraction=0.03)
        bar.outline.set_visible(False)
        bar.ax.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    return figure


def _limits(accuracy: np.ndarray) -> tuple[float, float]:
    low, high = float(accuracy.min()), float(accuracy.max())
    return (low, high) if high > low else (low - 1, high + 1)


def _places(frame: pd.DataFrame, column: str) -> np.ndarray:
    """Height of each run on an axis, from 0 to 1; the runs of one value from worst to best."""
    accuracy = frame["test_top1"].to_numpy(dtype=float)
    low, high = _limits(accuracy)
    share = (accuracy - low) / (high - low)
    if column == "test_top1":
        return share
    values = sorted(frame[column].unique())
    places = frame[column].map(_positions(values)).to_numpy(dtype=float)
    return places + SPREAD * (2 * share - 1)


def _positions(values: Sequence[Any]) -> dict[Any, float]:
    step = 1 / max(1, len(values) - 1)
    return {v: i * step if len(values) > 1 else 0.5 for i, v in enumerate(values)}


def _bend(heights: np.ndarray, steps: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A smooth line through a run's heights: level at each axis, so that it can be followed."""
    share = np.linspace(0, 1, steps)
    ease = share * share * (3 - 2 * share)
    pieces = [a + (b - a) * ease for a, b in pairwise(heights)]
    places = [start + share for start in range(len(pieces))]
    return np.concatenate(places), np.concatenate(pieces)


def _draw_values(axis: Axes, place: int, column: pd.Series) -> None:
    axis.axvline(place, color="0.25", linewidth=0.8, zorder=3)
    for value, height in _positions(sorted(column.unique())).items():
        text = f"{value:g}" if isinstance(value, float) else str(value)
        axis.annotate(
            text,
            (place, height),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            zorder=4,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
        )


def plot_curves(
    records: Mapping[str, RunRecord], split: SplitName, quantity: Quantity
) -> Figure | None:
    """Accuracy or loss of runs by epoch, on one of the three sets; None where there is no run.

    ``records`` are at most ``MOST`` runs by the names for the legend. A dot marks the reported
    epoch. The training set is often evaluated at the chosen epoch only: then only the dot is there.
    """
    if not records:
        return None
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(11, 3.6), layout="constrained")
        for index, (name, record) in enumerate(list(records.items())[:MOST]):
            epochs, values = trace(record, split, quantity)
            colour = COLOURS[index % len(COLOURS)]
            style = LINES[index // len(COLOURS)]
            axis.plot(epochs, values, color=colour, linestyle=style, linewidth=1.4, label=name)
            reported = dict(zip(epochs, values, strict=True)).get(record.reported_epoch)
            if reported is not None:
                axis.plot(record.reported_epoch, reported, "o", color=colour, markersize=5)
        axis.set_xlabel("epoch")
        title = {"train": "training"}.get(split, split)
        axis.set_ylabel(f"{title} {quantity}")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def trace(record: RunRecord, split: SplitName, quantity: Quantity) -> tuple[list[int], list[float]]:
    """The epochs at which a set was evaluated, and the values there."""
    history = record.result.history
    pairs = []
    for epoch in range(history.epochs + 1):
        chosen = history.split(split)
        value = chosen.loss[epoch] if quantity == "loss" else chosen.accuracy(epoch)
        if value is not None:
            pairs.append((epoch, value))
    return [epoch for epoch, _ in pairs], [value for _, value in pairs]


def plot_progress(accuracies: Mapping[int, float], epochs: int) -> Figure | None:
    """Validation accuracy of a run in training, by epoch; None before its first epoch."""
    if not accuracies:
        return None
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5, 1.9), layout="constrained")
        axis.plot(list(accuracies), list(accuracies.values()), "o-", color=COLOURS[3], markersize=3)
        axis.set_xlim(0, epochs)
        axis.set_xlabel("epoch")
        axis.set_ylabel("validation top-1, %")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
