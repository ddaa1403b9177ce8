"""One function for each figure of the paper, drawn from records; each returns a Figure.

One colour-blind safe palette; colours stand for learning rates and line styles for weight
decay in every figure that shows runs.
"""

import base64
import io
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cifarlib.config import DATASETS, Condition
from cifarlib.records import DataRecord, Results, RunRecord

RATE_COLOURS = {0.1: "#cc3311", 0.01: "#ee7733", 0.001: "#009988", 0.0001: "#0077bb"}
DECAY_STYLES = {0.001: "-", 0.0001: (0, (3, 1.5))}
BEST = "#cc3311"

STYLE = {
    **sns.axes_style("whitegrid"),
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
}


def _image(png: str) -> np.ndarray:
    return plt.imread(io.BytesIO(base64.b64decode(png)))


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
            axis.imshow(_image(png), interpolation="nearest")
            axis.set_title(f"{label} {name}")
            axis.axis("off")
    return figure


def plot_transforms(data: DataRecord | None) -> Figure | None:
    """Figure 2: one training image after each transform."""
    if data is None:
        return None
    with mpl.rc_context(STYLE):
        count = len(data.transforms)
        figure, axes = plt.subplots(1, count, figsize=(1.6 * count, 1.9), layout="constrained")
        for axis, (name, png) in zip(axes, data.transforms.items(), strict=True):
            axis.imshow(_image(png), interpolation="nearest")
            axis.set_title(name, fontsize=8)
            axis.axis("off")
    return figure


def plot_base_search(results: Results, threshold: float = 70.0) -> Figure | None:
    """Figure 5, accuracy row: test top-1 by epoch, for each optimiser and for the best runs.

    The fourth panel holds the runs above ``threshold`` % test top-1. A red dot marks the best
    run of a panel at its reported epoch.
    """
    runs = [
        (condition, record)
        for condition in results.select("stage1-base")
        if (record := results.record(condition))
    ]
    if not runs:
        return None
    panels = {
        name: [(c, r) for c, r in runs if c.settings["optimizer"] == key]
        for key, name in (("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW"))
    }
    panels[f"above {threshold:.4g} %"] = [
        (c, r) for c, r in runs if (r.accuracy("test") or 0) > threshold
    ]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, 4, figsize=(10, 3.1), sharex=True, sharey=True, layout="constrained"
        )
        for axis, (name, members) in zip(axes, panels.items(), strict=True):
            _draw_runs(axis, members)
            axis.set_title(f"{name} ({len(members)} run{'s' if len(members) != 1 else ''})")
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel("test top-1, %")
        figure.legend(handles=_run_legend(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def choose_threshold(results: Results, threshold: float = 0.0, published: float = 70.0) -> float:
    """Figure 5's threshold in %: the one given, unless it is 0.

    Else the paper's 70 %, or where no run exceeds that, nine tenths of the best run.
    """
    if threshold:
        return threshold
    best = results.stage("stage1-base")["test_top1"].max()
    return published if pd.isna(best) or best > published else float(np.floor(0.9 * best))


def _draw_runs(axis: Axes, runs: Sequence[tuple[Condition, RunRecord]]) -> None:
    best: tuple[float, int] | None = None
    for condition, record in runs:
        history = record.result.history
        epochs = [e for e in range(history.epochs + 1) if history.test.top1[e] is not None]
        accuracy = [history.test.accuracy(epoch) for epoch in epochs]
        axis.plot(
            epochs,
            accuracy,
            color=RATE_COLOURS[condition.config.learning_rate],
            linestyle=DECAY_STYLES[condition.config.weight_decay],
            linewidth=1.1,
        )
        reached = record.accuracy("test") or 0.0
        if best is None or reached > best[0]:
            best = (reached, record.reported_epoch)
    if best:
        axis.plot(best[1], best[0], "o", color=BEST, markersize=6, zorder=3)


def _run_legend() -> list[Line2D]:
    rates = [0.001, 0.0001]
    handles = [Line2D([], [], color=RATE_COLOURS[r], label=f"learning rate {r:g}") for r in rates]
    handles += [
        Line2D([], [], color="0.3", linestyle=style, label=f"L2 {decay:g}")
        for decay, style in DECAY_STYLES.items()
    ]
    best = Line2D([], [], color=BEST, marker="o", linestyle="", label="best run")
    return [*handles, best]


def plot_confusion(record: RunRecord | None) -> Figure | None:
    """Figures 6, 7 and 10: confusion matrices of the training and the test set.

    Cells are % of their true class; the paper calls the test set's “Validation”.
    """
    if record is None:
        return None
    names = DATASETS[record.config.data.name].classes
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
        for axis, split in zip(axes, ("train", "test"), strict=True):
            counts = np.array(record.result.predictions.confusion[split], dtype=float)
            shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
            sns.heatmap(
                shares,
                annot=True,
                fmt=".0f",
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
            axis.tick_params(axis="x", rotation=45)
            axis.tick_params(axis="y", rotation=0)
    return figure


def plot_agreement(searches: dict[str, pd.DataFrame]) -> Figure | None:
    """Ours against the paper's test top-1, a point for each run of each search.

    ``searches`` are tables as ``tables`` makes them, by title, with the columns
    (Test, paper | ours) and ("", LR).
    """
    if all(table["Test", "ours"].isna().all() for table in searches.values()):
        return None
    with mpl.rc_context(STYLE):
        size = (2.2 * len(searches), 2.9)
        figure, axes = plt.subplots(1, len(searches), figsize=size, layout="constrained")
        panels = np.atleast_1d(axes)
        for axis, (title, table) in zip(panels, searches.items(), strict=True):
            paper, ours = table["Test", "paper"], table["Test", "ours"]
            colours = [RATE_COLOURS[rate] for rate in table["", "LR"]]
            axis.scatter(paper, ours, c=colours, s=16)
            rank = paper.corr(ours, method="spearman")
            note = "pending" if pd.isna(rank) else f"rank correlation {rank:.2f}"
            axis.set_title(f"{title}\n{note}")
        panels[0].set_ylabel("ours, test top-1 in %")
        figure.supxlabel("paper, test top-1 in %", fontsize=9)
        handles = [
            Line2D([], [], color=colour, marker="o", linestyle="", label=f"learning rate {rate:g}")
            for rate, colour in RATE_COLOURS.items()
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure
