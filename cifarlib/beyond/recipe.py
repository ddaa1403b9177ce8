"""How far the paper's network goes: a recipe step by step, and what it reaches.

Steps are judged on the validation images; test accuracies are shown beside, and those of flip
averaging (the mean of an image's and its mirror image's logits) apart. Top-1 in %.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from cifarlib import published
from cifarlib.beyond.seeds import Mean, average, by_label, difference, tested, validated
from cifarlib.config import RunConfig
from cifarlib.display import signed
from cifarlib.progress import duration
from cifarlib.records import Results, RunRecord
from cifarlib.report.style import STYLE
from cifarlib.study import Condition

STAGE, ALONE = "recipe", "recipe-alone"
REACH = ("recipe-whole", "recipe-30", "recipe-200")
PASSES = 3  # forward passes that a training step's arithmetic is worth
LOSS, GAIN = "#cc4a00", "#0077bb"


@dataclass(frozen=True)
class Step:
    """One step of the recipe."""

    label: str
    conditions: list[Condition]  # with all steps before it
    gain: Mean | None  # on validation, over the step before, seed by seed; None for the first
    alone: Mean | None  # on validation, over the first by itself


def steps(results: Results) -> list[Step]:
    """The recipe's steps in the study's order."""
    settings = list(by_label(results, STAGE).items())
    alone = by_label(results, ALONE)
    _, first = settings[0]
    found = [Step(settings[0][0], first, None, None)]
    for (_, before), (label, conditions) in pairwise(settings):
        found.append(
            Step(
                label,
                conditions,
                difference(results, conditions, before, validated),
                difference(results, alone.get(label, []), first, validated),
            )
        )
    return found


def flip_averaged(record: RunRecord) -> float | None:
    """Test top-1 in % by the mean logits of each image and its mirror image."""
    found = record.result.flip_averaged
    return None if found is None else 100 * found.test / record.result.history.test.images


# ---------------------------------------------------------------------------------------------
# Step by step
# ---------------------------------------------------------------------------------------------


def tabulate_recipe(results: Results) -> pd.DataFrame:
    """A row for each step: validation with all steps so far, gains, and test accuracies."""
    rows, behind = [], []
    for step in steps(results):
        value = average(results, step.conditions, validated)
        rows.append(
            {
                "Step": step.label,
                "Seeds": value.count,
                "Validation": value.say(),
                "Gain": "–" if step.gain is None else step.gain.say_difference(),
                "Gain alone": "–" if step.alone is None else step.alone.say_difference(),
                "Test": average(results, step.conditions, tested).say(),
                "Flip-averaged test": average(results, step.conditions, flip_averaged).say(),
            }
        )
        behind.append(value.runs)
    frame = pd.DataFrame(rows)
    frame.attrs["runs"] = behind
    return frame


def plot_recipe(results: Results) -> Figure | None:
    """Waterfall of validation top-1: each step's gain upon the steps before it."""
    found = steps(results)
    means = [average(results, step.conditions, validated).mean for step in found]
    if means[0] is None:
        return None
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8.5, 3.6), layout="constrained")
        level = means[0]
        for place, (step, mean) in enumerate(zip(found, means, strict=True)):
            if mean is None:
                axis.text(place, level, "pending", ha="center", va="top", rotation=90, color="0.4")
                continue
            if place == 0:
                axis.bar(place, mean, color="0.6", width=0.7)
            else:
                colour = GAIN if mean >= level else LOSS
                axis.bar(place, mean - level, bottom=level, color=colour, width=0.7)
                axis.plot([place - 0.65, place + 0.35], [level, level], color="0.3", linewidth=0.8)
            values = list(average(results, step.conditions, validated).values)
            axis.plot([place] * len(values), values, ".", color="black", markersize=4)
            text = f"{mean:.1f}" if place == 0 else signed(1)(mean - level)
            axis.annotate(
                text,
                (place, max(mean, level, *values)),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
            level = mean
        known = [mean for mean in means if mean is not None]
        margin = max(1.0, 0.12 * (max(known) - min(known)))
        axis.set_ylim(min(known) - 3 * margin, max(known) + 2 * margin)
        slanted = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks(range(len(found)), [step.label for step in found], **slanted)
        axis.set_ylabel("validation top-1 in %")
        axis.grid(visible=False, axis="x")
    return figure


def describe_recipe(results: Results) -> str:
    """The waterfall in words."""
    parts = []
    for step in steps(results):
        if step.gain is None:
            mean = average(results, step.conditions, validated).mean
            parts.append(f"{step.label} {'pending' if mean is None else f'{mean:.1f} %'}")
        else:
            mean = step.gain.mean
            parts.append(f"{step.label} {'pending' if mean is None else signed(1)(mean)}")
    return (
        "Waterfall: a bar for the validation accuracy of run 13, then one for what each step adds "
        f"in points, upon those before: {', '.join(parts)}."
    )


# ---------------------------------------------------------------------------------------------
# What it reaches
# ---------------------------------------------------------------------------------------------


def paper_best() -> float:
    """Test top-1 in % of the paper's best model."""
    table = published.read_table("XV").set_index("model")
    return float(table.test_top1["Improved run 13"])


def reached(record: RunRecord, target: float) -> int | None:
    """The first epoch whose test top-1 is at least ``target`` %; None where none is."""
    for epoch in range(1, record.result.history.epochs + 1):
        accuracy = record.accuracy("test", epoch=epoch)
        if accuracy is not None and accuracy >= target:
            return epoch
    return None


def training_flops(results: Results, condition: Condition, epochs: float) -> float | None:
    """Arithmetic of training for some epochs, in floating-point operations; evaluation aside."""
    if results.network is None or condition.config.resize is not None:
        return None
    return PASSES * results.network.flops * condition.config.data.train_size * epochs


def _to_target(
    results: Results, conditions: Sequence[Condition], target: float
) -> dict[str, str | None]:
    """Epochs, arithmetic and training time until a run first has the target; means over seeds."""
    records = [(c, r) for c in conditions if (r := results.record(c)) is not None]
    if not records:
        return {"Epochs to it": None, "PFLOP to it": None, "Training to it": None}
    epochs = [reached(record, target) for _, record in records]
    known = [epoch for epoch in epochs if epoch is not None]
    if not known:
        return {"Epochs to it": "not reached", "PFLOP to it": "–", "Training to it": "–"}
    flops = [
        training_flops(results, condition, epoch)
        for (condition, _), epoch in zip(records, epochs, strict=True)
        if epoch is not None
    ]
    seconds = [
        record.timing.train_s * epoch / record.result.history.epochs
        for (_, record), epoch in zip(records, epochs, strict=True)
        if epoch is not None
    ]
    part = "" if len(known) == len(epochs) else f" ({len(known)} of {len(epochs)} seeds)"
    work = [value for value in flops if value is not None]
    return {
        "Epochs to it": ", ".join(map(str, sorted(set(known)))) + part,
        "PFLOP to it": f"{sum(work) / len(work) / 1e15:.2f}" if work else None,
        "Training to it": duration(sum(seconds) / len(seconds)),
    }


def tabulate_reach(results: Results) -> pd.DataFrame:
    """What the recipe reaches beside the paper's best run: a row for each budget."""
    target = paper_best()
    improved = published.read_table("IX").set_index("run").loc[13]
    rows: list[dict[str, object]] = [
        {
            "What": "The paper's best model",
            "Images": "45,000",
            "Epochs": f"{improved.epochs:.0f}",
            "Seeds": 1,
            "Test": f"{target:.2f}",
            "Flip-averaged test": "–",
            "Epochs to it": "not printed",
            "PFLOP to it": "–",
            "Training to it": "–",
        }
    ]
    behind: list[tuple[str, ...]] = [()]
    for stage in REACH:
        for label, conditions in by_label(results, stage).items():
            config = conditions[0].config
            test = average(results, conditions, tested)
            as_planned = stage == REACH[0] or label == f"{config.epochs} epochs"
            title = "The recipe" if as_planned else f"The recipe, planned as {label}"
            rows.append(
                {
                    "What": title,
                    "Images": f"{config.data.train_size:,}",
                    "Epochs": f"{config.epochs}",
                    "Seeds": test.count,
                    "Test": test.say(),
                    "Flip-averaged test": average(results, conditions, flip_averaged).say(),
                    **_to_target(results, conditions, target),
                }
            )
            behind.append(test.runs)
    frame = pd.DataFrame(rows)
    frame.attrs["runs"] = behind
    return frame


def say_extent(results: Results) -> str:
    """Which of the steps tried the recipe ends with, in a sentence."""
    labels = list(by_label(results, STAGE))
    ends = results.select(REACH[0])[0].run  # the stage's runs keep the numbers of the steps
    tried = labels[ends:]
    behind = f"; tried behind it: {', '.join(tried)}" if tried else ""
    return f"The recipe ends with step {ends} of {len(labels)}, “{labels[ends - 1]}”{behind}."


def say_reach(results: Results) -> str:
    """What the recipe reaches on all training images, in a sentence."""
    conditions = next(iter(by_label(results, REACH[0]).values()))
    test = average(results, conditions, tested)
    if test.mean is None:
        return "The recipe on all training images is pending."
    config = conditions[0].config
    apart = test.mean - paper_best()
    beside = f"{abs(apart):.2f} points {'above' if apart > 0 else 'below'}"
    time = [r.timing.train_s for c in conditions if (r := results.record(c)) is not None]
    devices = {r.provenance.device for c in conditions if (r := results.record(c)) is not None}
    threads = {r.provenance.threads for c in conditions if (r := results.record(c)) is not None}
    return (
        f"Trained on {config.data.train_size:,} images for {config.epochs} epochs, the paper's "
        f"own network reaches {test.mean:.2f} % of the test images ({_say_seeds(test)}), "
        f"{beside} the paper's best {paper_best():.2f} %. Training took "
        f"{duration(sum(time) / len(time))} a run on {', '.join(sorted(devices))}, "
        f"{', '.join(map(str, sorted(threads)))} thread{'' if threads == {1} else 's'} each."
        + _say_longer(results, config)
    )


def _say_longer(results: Results, short: RunConfig) -> str:
    """What more epochs on the same images make of it, where that is recorded."""
    parts = []
    for stage in REACH[1:]:
        for conditions in by_label(results, stage).values():
            config, test = conditions[0].config, average(results, conditions, tested)
            longer = config.data == short.data and config.epochs > short.epochs
            if test.mean is not None and longer:
                parts.append(f" In {config.epochs} epochs, {test.mean:.2f} % ({_say_seeds(test)}).")
    return "".join(parts)


def _say_seeds(mean: Mean) -> str:
    if mean.count == 1:
        return "1 seed"
    return f"{mean.count} seeds: {', '.join(f'{value:.2f}' for value in mean.values)}"
