"""What the paper's protocol does to the accuracy that is reported.

Three of its six differences from the corrected one change a training or an evaluation, and are
trained: shuffling, augmented evaluation, normalisation. The other three change what is said of a
training, and are read from the records of the runs as published: the set on which the epoch is
chosen, the weights that are kept, and the mean of the losses, which no accuracy depends on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from cifarlib import published
from cifarlib.beyond.seeds import Mean, average, by_label, difference, tested
from cifarlib.contrasts import say_interval
from cifarlib.display import fixed, signed
from cifarlib.records import Results, RunRecord
from cifarlib.report.style import SPLIT_COLOURS, STYLE

STAGE = "protocol-ablation"
PUBLISHED, CORRECTED = "as published", "corrected"
TITLES = {1: "Run 13: with DAA-1", 2: "Run 26: no augmentation"}


@dataclass(frozen=True)
class Effect:
    """What one difference does to the reported test accuracy of one run."""

    run: int  # of the stage
    label: str
    how: str  # "trained", or what it is read from
    value: Mean  # reported accuracy
    change: Mean | None  # less that as published, seed by seed; None as published itself


def chosen_on_validation(record: RunRecord) -> float | None:
    """Test top-1 in % at the epoch that is best on the validation images."""
    return record.accuracy("test", epoch=record.result.chosen["validation"])


def kept(record: RunRecord) -> float | None:
    """Test top-1 in % of the weights that the run is left with."""
    return record.accuracy("test", epoch=record.result.predictions.epoch)


READ = {
    "chosen on validation": chosen_on_validation,
    "the weights kept": kept,
}


def effects(results: Results, run: int) -> list[Effect]:
    """Every difference of the protocol for one run, in the study's order, then those read."""
    settings = by_label(results, STAGE, run)
    base = settings[PUBLISHED]
    trained = [
        Effect(
            run,
            label,
            "trained",
            average(results, conditions),
            None if label == PUBLISHED else difference(results, conditions, base),
        )
        for label, conditions in settings.items()
    ]
    read = [
        Effect(
            run,
            label,
            "read from the runs as published",
            average(results, base, measure),
            difference(results, base, base, measure, tested),
        )
        for label, measure in READ.items()
    ]
    return [*trained[:-1], *read, trained[-1]]


def _runs(results: Results) -> list[int]:
    return list(dict.fromkeys(c.run for c in results.select(STAGE)))


def tabulate_protocol(results: Results) -> pd.DataFrame:
    """Reported test top-1 in %, and what each difference changes of it in points."""
    rows, behind = [], []
    for run in _runs(results):
        for effect in effects(results, run):
            rows.append(
                {
                    "Run": TITLES.get(run, str(run)),
                    "Protocol": effect.label,
                    "How": effect.how,
                    "Seeds": effect.value.count,
                    "Reported test top-1": effect.value.say(),
                    "Change, points": (
                        "–" if effect.change is None else effect.change.say_difference()
                    ),
                }
            )
            behind.append(effect.value.runs)
    frame = pd.DataFrame(rows)
    frame.attrs["runs"] = behind
    return frame


def plot_protocol(results: Results) -> Figure | None:
    """Change of the reported test accuracy by each difference, a panel for each run.

    Dots are means over seeds, bars 95 % intervals; one seed has no bar and an open dot.
    """
    panels = {
        run: [e for e in effects(results, run) if e.change is not None] for run in _runs(results)
    }
    if not any(effect.change.values for shown in panels.values() for effect in shown):
        return None
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(8.5, 2.9), layout="constrained", sharey=True, squeeze=False
        )
        for axis, (run, shown) in zip(axes[0], panels.items(), strict=True):
            _draw_panel(axis, shown)
            axis.set_title(TITLES.get(run, str(run)))
        labels = [effect.label for effect in next(iter(panels.values()))]
        axes[0][0].set_yticks(range(len(labels)), labels)
        axes[0][0].set_ylim(len(labels) - 0.5, -0.5)
        figure.supxlabel("reported test top-1 less that as published, points", fontsize=9)
    return figure


def _draw_panel(axis: plt.Axes, shown: Sequence[Effect]) -> None:
    axis.axvline(0, color="0.3", linewidth=1)
    if not any(effect.change and effect.change.values for effect in shown):
        axis.set_xlim(-1, 1)
    for place, effect in enumerate(shown):
        assert effect.change is not None
        if effect.change.mean is None:
            axis.text(0, place, " pending", va="center", fontsize=8, color="0.4")
            continue
        interval = effect.change.interval
        trained = effect.how == "trained"
        colour = SPLIT_COLOURS["train" if trained else "test"]
        if interval is not None:
            axis.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2)
        axis.plot(
            effect.change.mean,
            place,
            marker="o" if trained else "D",
            color=colour,
            markerfacecolor=colour if interval is not None else "white",
        )
    axis.grid(visible=False, axis="y")


def describe_protocol(results: Results) -> str:
    """The forest plot in words."""
    parts = []
    for run in _runs(results):
        told = [
            f"{e.label} {signed(2)(e.change.mean)}"
            for e in effects(results, run)
            if e.change is not None and e.change.mean is not None
        ]
        parts.append(f"{TITLES.get(run, run)}: {', '.join(told) or 'pending'}")
    return (
        "Dots with intervals, a row for each difference of the protocol and a panel for each run; "
        f"change of the reported test accuracy in points. {'. '.join(parts)}."
    )


def say_optimism(results: Results) -> str:
    """How much of a reported accuracy is the protocol's doing, in a sentence for each run."""
    best = float(published.read_table("XV").set_index("model").test_top1["Improved run 13"])
    sentences = []
    for run in _runs(results):
        settings = by_label(results, STAGE, run)
        gap = difference(results, settings[PUBLISHED], settings[CORRECTED])
        title = TITLES.get(run, str(run))
        if gap.mean is None:
            sentences.append(f"{title}: pending.")
            continue
        interval = gap.interval
        over = (
            "one seed, which tells nothing of noise"
            if interval is None
            else f"{gap.count} seeds, 95 % {say_interval(interval)}"
        )
        verdict = ""
        if interval is not None:
            verdict = " Not told apart." if 0 in interval else " Told apart."
        sentences.append(
            f"{title}: as published, the reported accuracy is {fixed(2)(abs(gap.mean))} points "
            f"{'above' if gap.mean > 0 else 'below'} the corrected protocol's ({over}).{verdict}"
        )
    sentences.append(
        f"The paper's {fixed(2)(best)} % is of one run under the published protocol; how its "
        "losses are averaged moves no accuracy."
    )
    return " ".join(sentences)
