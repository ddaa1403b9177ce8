"""Figures of the course of training: the base search (Fig. 5) and dropout (Figs. 8 and 9).

Beside each ``plot_…`` stands a ``describe_…`` that says in words what the figure shows.
"""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cifarlib.figures import (
    BATCH_MARKS,
    BEST,
    DECAY_STYLES,
    RATE_COLOURS,
    SPLIT_COLOURS,
    STYLE,
)
from cifarlib.records import Results, RunRecord, SplitHistory
from cifarlib.study import Condition

Run = tuple[Condition, RunRecord]

OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


# ---------------------------------------------------------------------------------------------
# The base search
# ---------------------------------------------------------------------------------------------


def plot_base_search(results: Results, threshold: float = 70.0) -> Figure | None:
    """Figure 5: accuracy, loss and settings of the base search, 3 × 4 panels.

    Rows: top-1 accuracy and loss on the test set by epoch; each run as a line from its first
    loss (a dot, by batch size) through its settings to its test accuracy. Columns: SGD, Adam,
    AdamW, and the runs above ``threshold`` % test top-1. A red dot marks a column's best run.
    """
    panels = _panels(results, threshold)
    runs = [run for name in OPTIMIZERS.values() for run in panels[name]]
    if not runs:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            3, 4, figsize=(10, 7.6), layout="constrained", sharey="row", height_ratios=(1, 1, 1.1)
        )
        settings = _SettingsScales(runs)
        for column, (name, members) in zip(axes.T, panels.items(), strict=True):
            column[0].set_title(f"{name} ({_runs(len(members))})")
            for axis, metric in zip(column[:2], ("accuracy", "loss"), strict=True):
                _draw_runs(axis, members, metric)
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
                axis.set_xlabel("epoch")
            column[1].sharex(column[0])
            settings.draw(column[2], members)
        axes[0, 0].set_ylabel("test top-1, %")
        axes[1, 0].set_ylabel("test loss")
        _set_log(axes[1, 0])
        figure.legend(handles=_run_legend(runs), loc="outside lower center", ncols=5, frameon=False)
    return figure


def describe_base_search(results: Results, threshold: float = 70.0) -> str:
    """Figure 5 in words: how many runs each column has, and its best."""
    parts = []
    for name, members in _panels(results, threshold).items():
        if not members:
            parts.append(f"{name}: no run")
            continue
        condition, record = _best(members)
        parts.append(
            f"{name}: {_runs(len(members))}, best run {condition.run} with "
            f"{record.accuracy('test') or 0:.1f} % after epoch {record.reported_epoch}, learning "
            f"rate {condition.config.learning_rate:g}, batch size {condition.config.batch_size}"
        )
    return (
        "Three rows of four panels: test accuracy by epoch, test loss by epoch, and each run's "
        f"line from first loss through its settings to its test accuracy. {'; '.join(parts)}."
    )


def choose_threshold(results: Results, threshold: float = 0.0, published: float = 70.0) -> float:
    """Figure 5's threshold in %: the one given, unless it is 0.

    Else the paper's 70 %, or where no run exceeds that, nine tenths of the best run.
    """
    if threshold:
        return threshold
    best = results.stage("stage1-base")["test_top1"].max()
    return published if pd.isna(best) or best > published else float(np.floor(0.9 * best))


def _panels(results: Results, threshold: float) -> dict[str, list[Run]]:
    """The columns of Figure 5: title → the recorded runs in it."""
    runs = [
        (condition, record)
        for condition in results.select("stage1-base")
        if (record := results.record(condition))
    ]
    panels = {
        name: [(c, r) for c, r in runs if c.settings["optimizer"] == key]
        for key, name in OPTIMIZERS.items()
    }
    above = [(c, r) for c, r in runs if (r.accuracy("test") or 0) > threshold]
    return panels | {f"above {threshold:.4g} %": above}


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def _best(runs: Sequence[Run]) -> Run:
    return max(runs, key=lambda run: run[1].accuracy("test") or 0)


def _draw_runs(axis: Axes, runs: Sequence[Run], metric: str) -> None:
    for condition, record in runs:
        epochs, values = _course(record.result.history.test, metric)
        axis.plot(epochs, values, **_line(condition), linewidth=1.1)
    if runs:
        _, record = _best(runs)
        epoch = record.reported_epoch
        epochs, values = _course(record.result.history.test, metric)
        if epoch in epochs:
            axis.plot(epoch, values[epochs.index(epoch)], "o", color=BEST, markersize=6, zorder=3)


def _course(history: SplitHistory, metric: str, k: int = 1) -> tuple[list[int], list[float]]:
    """Epochs at which a set was evaluated, and its loss or top-k accuracy in % there."""
    epochs, values = [], []
    for epoch in range(len(history.loss)):
        value = history.loss[epoch] if metric == "loss" else history.accuracy(epoch, k)
        if value is not None:
            epochs.append(epoch)
            values.append(value)
    return epochs, values


def _line(condition: Condition) -> dict[str, object]:
    return {
        "color": RATE_COLOURS[condition.config.learning_rate],
        "linestyle": DECAY_STYLES[condition.config.weight_decay],
    }


def _set_log(axis: Axes) -> None:
    """A logarithmic loss axis with plain numbers, fewer where it spans more."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    steps = (1, 2, 5) if high < 50 * low else (1,)
    axis.yaxis.set_major_locator(LogLocator(10, subs=steps))
    axis.yaxis.set_major_formatter(FuncFormatter(_plain))
    axis.yaxis.set_minor_locator(NullLocator())


def _plain(value: float, _: int) -> str:
    """0.5, 200, and powers of ten beyond: 10⁷."""
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    digits, _, power = f"{value:.0e}".partition("e")
    factor = "" if digits == "1" else f"{digits}·"
    return f"{factor}10{str(int(power)).translate(SUPERSCRIPTS)}"


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class _SettingsScales:
    """Parallel axes that all panels of the third row share, each from 0 to 1."""

    names = ("first\nloss", "batch\nsize", "learning\nrate", "L2", "test\ntop-1, %")

    def __init__(self, runs: Sequence[Run]):
        rows = np.array([self._values(run) for run in runs])
        self.choices = [sorted(set(rows[:, column])) for column in (1, 2, 3)]
        self.bounds = {0: self._bounds(rows[:, 0]), 4: self._bounds(rows[:, 4])}

    @staticmethod
    def _bounds(values: np.ndarray) -> tuple[float, float]:
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        return low, high

    @staticmethod
    def _values(run: Run) -> list[float]:
        """First test loss, batch size, learning rate, weight decay, test accuracy."""
        config, record = run[0].config, run[1]
        _, losses = _course(record.result.history.test, "loss")
        first = losses[0] if losses else np.nan
        settings = [float(config.batch_size), config.learning_rate, config.weight_decay]
        return [first, *settings, record.accuracy("test") or np.nan]

    def _height(self, column: int, value: float) -> float:
        if column in self.bounds:
            low, high = self.bounds[column]
            return (value - low) / (high - low) if high > low else 0.5
        choices = self.choices[column - 1]
        return 0.1 + 0.8 * choices.index(value) / max(1, len(choices) - 1)

    def _offset(self, values: list[float]) -> float:
        """Runs that share a setting pass side by side."""
        ranks = [c.index(value) for c, value in zip(self.choices, values[1:4], strict=True)]
        sizes = [len(choices) for choices in self.choices]
        place, count = int(np.ravel_multi_index(ranks, sizes)), int(np.prod(sizes))
        return 0.11 * (place / max(1, count - 1) - 0.5)

    def _dot(self, values: list[float]) -> float:
        """First losses that coincide stand side by side, by batch size."""
        sizes = self.choices[0]
        return 0.22 * (sizes.index(values[1]) - (len(sizes) - 1) / 2)

    def draw(self, axis: Axes, runs: Sequence[Run]) -> None:
        """One line for each run, from its first loss to its accuracy."""
        for condition, record in runs:
            values = self._values((condition, record))
            heights = np.array([self._height(*pair) for pair in enumerate(values)])
            heights[1:4] += self._offset(values)
            places = [self._dot(values), 1, 2, 3, 4]
            axis.plot(places, heights, **_line(condition), linewidth=1.0)
            colour, mark = BATCH_MARKS[condition.config.batch_size]
            style = {"color": colour, "markeredgecolor": "0.2", "markersize": 5.5, "zorder": 3}
            axis.plot(places[0], heights[0], mark, **style)
        if runs:
            height = self._height(4, self._values(_best(runs))[4])
            axis.plot(4, height, "o", color=BEST, markersize=6, zorder=3)
        axis.set_xticks(range(5), self.names, fontsize=7)
        axis.set_xlim(-0.35, 4.35)
        axis.set_ylim(-0.08, 1.08)
        axis.yaxis.set_visible(False)
        axis.spines[:].set_visible(False)
        self._label(axis)

    def _label(self, axis: Axes) -> None:
        """Values on the axes themselves; white behind, for lines run there."""
        box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        for column, choices in enumerate(self.choices, start=1):
            for value in choices:
                height = self._height(column, value)
                axis.text(column, height, f"{value:g}", fontsize=6.5, ha="center", va="center",
                          bbox=box, zorder=4)  # fmt: skip
        for column, (low, high) in self.bounds.items():
            ends = [(low, -0.07, "top"), (high, 1.07, "bottom")]
            for value, height, side in ends if high > low else [(low, 0.42, "top")]:
                axis.text(column, height, f"{value:.3g}", fontsize=6.5, ha="center", va=side)


def _run_legend(runs: Sequence[Run]) -> list[Line2D]:
    configs = [condition.config for condition, _ in runs]
    rates = sorted({c.learning_rate for c in configs}, reverse=True)
    handles = [Line2D([], [], color=RATE_COLOURS[r], label=f"learning rate {r:g}") for r in rates]
    handles += [
        Line2D([], [], color="0.3", linestyle=DECAY_STYLES[decay], label=f"L2 {decay:g}")
        for decay in sorted({c.weight_decay for c in configs}, reverse=True)
    ]
    for size in sorted({c.batch_size for c in configs}):
        colour, mark = BATCH_MARKS[size]
        style = {"color": colour, "marker": mark, "markeredgecolor": "0.2", "linestyle": ""}
        handles.append(Line2D([], [], **style, label=f"first loss, batch size {size}"))
    return [*handles, Line2D([], [], color=BEST, marker="o", linestyle="", label="best run")]


# ---------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------


def plot_dropout(results: Results, run: int) -> Figure | None:
    """Figures 8 (run 9) and 9 (run 13): loss and top-1 to 3 accuracy by epoch and dropout.

    A row for each dropout, 0 first; left the loss, right the accuracy, of the training and the
    test set. Dots are training accuracies where only some epochs were evaluated; the dotted
    line marks the chosen epoch. At several seeds, the first one's run is drawn.
    """
    runs = _by_dropout(results, run)
    if not any(runs.values()):
        return None
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(runs), 2, figsize=(7.2, 1.75 * len(runs) + 0.6), sharex=True, sharey="col",
            layout="constrained",
        )  # fmt: skip
        for row, (dropout, record) in zip(axes, runs.items(), strict=True):
            row[0].set_title(f"dropout {dropout:g}: loss", loc="left")
            row[1].set_title(_accuracy_title(record), loc="left")
            if record is None:
                for axis in row:
                    axis.text(0.5, 0.5, "pending", transform=axis.transAxes, ha="center")
                continue
            _draw_losses(row[0], record)
            _draw_accuracies(row[1], record)
            for axis in row:
                axis.axvline(record.reported_epoch, **CHOSEN, linewidth=1.3, zorder=1)
        _set_log(axes[0, 0])
        for axis in axes[-1]:
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(handles=_split_legend(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def describe_dropout(results: Results, run: int) -> str:
    """Figure 8 or 9 in words: what each dropout reaches, and the gap to the training set."""
    parts = []
    for dropout, record in _by_dropout(results, run).items():
        if record is None:
            parts.append(f"dropout {dropout:g} pending")
            continue
        train, test = record.accuracy("train") or 0, record.accuracy("test") or 0
        parts.append(
            f"dropout {dropout:g} reaches {test:.1f} % on the test and {train:.1f} % on the "
            f"training set at epoch {record.reported_epoch} of {record.result.history.epochs}"
        )
    return (
        f"Rows of two panels, loss left, top-1, top-2 and top-3 accuracy right, of run {run}: "
        f"{'; '.join(parts)}."
    )


def _by_dropout(results: Results, run: int) -> dict[float, RunRecord | None]:
    """The first seed's run at each dropout, None while it is pending."""
    found: dict[float, RunRecord | None] = {}
    for condition in results.select("stage1-long", "stage2-dropout", run=run):
        found.setdefault(condition.config.dropout, results.record(condition))
    return dict(sorted(found.items()))


def _accuracy_title(record: RunRecord | None) -> str:
    if record is None:
        return "accuracy, %"
    return f"accuracy, %: test top-1 {record.accuracy('test') or 0:.1f}"


def _draw_losses(axis: Axes, record: RunRecord) -> None:
    history = record.result.history
    values = [(e, loss) for e, loss in enumerate(history.training_loss) if loss is not None]
    if values:
        axis.plot(*zip(*values, strict=True), color=SPLIT_COLOURS["train"], linewidth=1.0)
    axis.plot(*_course(history.test, "loss"), color=SPLIT_COLOURS["test"], linewidth=1.0)


def _draw_accuracies(axis: Axes, record: RunRecord) -> None:
    for k, style in TOP_K_STYLES.items():
        for split in ("train", "test"):
            epochs, values = _course(record.result.history.split(split), "accuracy", k)
            sparse = len(epochs) <= 3  # evaluated at the chosen epochs only
            colour = SPLIT_COLOURS[split]
            if sparse:
                axis.plot(epochs, values, TOP_K_MARKS[k], color=colour, markersize=4)
            else:
                axis.plot(epochs, values, color=colour, linestyle=style, linewidth=1.0)


CHOSEN = {"color": "0.25", "linestyle": ":"}
TOP_K_STYLES = {1: "-", 2: (0, (4, 1.5)), 3: (0, (1, 1))}
TOP_K_MARKS = {1: "o", 2: "s", 3: "^"}


def _split_legend() -> list[Line2D]:
    handles = [
        Line2D([], [], color=SPLIT_COLOURS[split], label=label)
        for split, label in (("train", "training set"), ("test", "test set"))
    ]
    handles.append(Line2D([], [], **CHOSEN, label="chosen epoch"))
    handles += [
        Line2D([], [], color="0.3", linestyle=style, marker=TOP_K_MARKS[k], markersize=3,
               label=f"top-{k}")
        for k, style in TOP_K_STYLES.items()
    ]  # fmt: skip
    return handles
