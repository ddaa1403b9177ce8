"""Which schedule of the learning rate wins: each at the rate that is best for it on validation.

Accuracies are top-1 in %.
"""

from dataclasses import dataclass

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from cifarlib.beyond.seeds import Mean, average, difference, tested, validated, values
from cifarlib.display import signed
from cifarlib.records import Results
from cifarlib.report.style import SPLIT_COLOURS, STYLE
from cifarlib.study import Condition

STAGE = "schedules"
CONSTANT = "constant"
TITLES = {
    "constant": "constant",
    "step_at_89": "the paper's step at 89 %",
    "plateau": "reduce on plateau",
    "multi_step": "multi-step",
    "cosine": "cosine with warm-up",
    "triangular": "triangular",
}


@dataclass(frozen=True)
class Entry:
    """A schedule with one optimiser, at the best of its rates so far."""

    optimizer: str
    schedule: str
    rates: dict[float, list[Condition]]  # learning rate → conditions, one for each seed
    tried: dict[float, float]  # rate → validation top-1 of the first seed, where recorded
    best: float | None  # of the rates, on validation; None without a record

    @property
    def conditions(self) -> list[Condition]:
        return [] if self.best is None else self.rates[self.best]


def entries(results: Results) -> list[Entry]:
    """Every schedule with every optimiser, in the study's order."""
    groups: dict[tuple[str, str], dict[float, list[Condition]]] = {}
    for condition in results.select(STAGE):
        key = (condition.settings["label"], condition.settings["schedule"])
        rates = groups.setdefault(key, {})
        rates.setdefault(condition.config.learning_rate, []).append(condition)
    found = []
    for (optimizer, schedule), rates in groups.items():
        tried = {}
        for rate in sorted(rates):
            for value in values(results, rates[rate][:1], validated).values():
                tried[rate] = value
        best = max(tried, key=lambda rate: tried[rate]) if tried else None
        found.append(Entry(optimizer, schedule, rates, tried, best))
    return found


def tabulate_schedules(results: Results) -> pd.DataFrame:
    """A row for each schedule and optimiser: its rate, validation and test, gain over constant."""
    found = entries(results)
    constant = {e.optimizer: e.conditions for e in found if e.schedule == CONSTANT}
    rows, behind = [], []
    for entry in found:
        test = average(results, entry.conditions)
        gain = difference(results, entry.conditions, constant.get(entry.optimizer, []))
        rows.append(
            {
                "Optimiser": entry.optimizer,
                "Schedule": TITLES.get(entry.schedule, entry.schedule),
                "Rates tried": f"{len(entry.tried)} of {len(entry.rates)}",
                "Rate": None if entry.best is None else f"{entry.best:g}",
                "Seeds": test.count,
                "Validation": average(results, entry.conditions, validated).say(),
                "Test": test.say(),
                "Over constant": ("–" if entry.schedule == CONSTANT else gain.say_difference()),
            }
        )
        behind.append(test.runs)
    frame = pd.DataFrame(rows)
    frame.attrs["runs"] = behind
    return frame


def plot_schedules(results: Results) -> Figure | None:
    """Mean test top-1 of each schedule over its seeds, a panel for each optimiser."""
    found = entries(results)
    means: dict[tuple[str, str], Mean] = {
        (e.optimizer, e.schedule): average(results, e.conditions, tested) for e in found
    }
    if not any(mean.values for mean in means.values()):
        return None
    optimizers = list(dict.fromkeys(e.optimizer for e in found))
    schedules = list(dict.fromkeys(e.schedule for e in found))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(optimizers), figsize=(8.5, 2.6), layout="constrained", sharey=True, squeeze=False
        )
        for axis, optimizer in zip(axes[0], optimizers, strict=True):
            for place, schedule in enumerate(schedules):
                mean = means[optimizer, schedule]
                axis.plot(mean.values, [place] * mean.count, "o", color="0.6", markersize=4)
                if mean.mean is not None:
                    axis.plot(mean.mean, place, "|", color=SPLIT_COLOURS["test"], markersize=14)
            axis.set_title(optimizer)
            axis.grid(visible=False, axis="y")
        axes[0][0].set_yticks(range(len(schedules)), [TITLES.get(s, s) for s in schedules])
        axes[0][0].set_ylim(len(schedules) - 0.5, -0.5)
        figure.supxlabel("test top-1 in %, a dot for each seed, a stroke for the mean", fontsize=9)
    return figure


def describe_schedules(results: Results) -> str:
    """The figure in words: mean of each schedule."""
    parts = []
    for entry in entries(results):
        mean = average(results, entry.conditions).mean
        title = TITLES.get(entry.schedule, entry.schedule)
        parts.append(f"{entry.optimizer}, {title} {'pending' if mean is None else f'{mean:.2f}'}")
    return f"Dots for test top-1 in %, a row for each schedule: {'; '.join(parts)}."


def say_schedules(results: Results) -> str:
    """The best schedule of each optimiser on validation, and what it gains over a constant rate."""
    found = entries(results)
    sentences = []
    for optimizer in dict.fromkeys(e.optimizer for e in found):
        mine = [e for e in found if e.optimizer == optimizer]
        ranked = [
            (mean, e) for e in mine if (mean := average(results, e.conditions, validated).mean)
        ]
        if len(ranked) < len(mine):
            done = len(ranked)
            sentences.append(f"{optimizer}: pending ({done} of {len(mine)} schedules recorded).")
            continue
        _, best = max(ranked, key=lambda pair: pair[0])
        (constant,) = (e for e in mine if e.schedule == CONSTANT)
        gain = difference(results, best.conditions, constant.conditions)
        title = TITLES.get(best.schedule, best.schedule)
        told = "" if gain.mean is None else f", {signed(2)(gain.mean)} points over a constant rate"
        noise = "" if gain.interval else " (one seed)"
        sentences.append(f"{optimizer}: {title} is best on validation{told}{noise}.")
    return " ".join(sentences)
