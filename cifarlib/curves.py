"""Figures of the course of training: dropout (Figs. 8 and 9).

Beside each ``plot_…`` stands a ``describe_…`` that says in words what the figure shows.
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cifarlib.figures import (
    SPLIT_COLOURS,
    STYLE,
)
from cifarlib.records import Results, RunRecord, SplitHistory
from cifarlib.report.style import set_log


def _course(history: SplitHistory, metric: str, k: int = 1) -> tuple[list[int], list[float]]:
    """Epochs at which a set was evaluated, and its loss or top-k accuracy in % there."""
    epochs, values = [], []
    for epoch in range(len(history.loss)):
        value = history.loss[epoch] if metric == "loss" else history.accuracy(epoch, k)
        if value is not None:
            epochs.append(epoch)
            values.append(value)
    return epochs, values


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
        set_log(axes[0, 0])
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
