"""What the report tells of every single run: configuration, course, outcome, origin, command.

Everything is plain data for the template, except the curves: small SVG drawings, written by hand
and thinned, so that a hundred runs of two hundred epochs stay below a megabyte.
"""

import html
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from cifarlib.config import DATASETS, NETWORKS, SPLITS
from cifarlib.formatting import say_count, say_setting
from cifarlib.runs import provenance
from cifarlib.runs.progress import Prices, duration
from cifarlib.runs.results import Results
from cifarlib.runs.schema import RunRecord
from cifarlib.study import Condition

MOST_POINTS = 50  # of a curve
WIDTH, HEIGHT = 240, 104  # of a drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 30, 4, 6, 16  # margins
STEEP = 20  # ratio of the largest to the smallest value from which an axis is logarithmic
LOGARITHMIC = f'<text x="{LEFT + 4}" y="{TOP + 6}">logarithmic</text>'

RULES: dict[Literal["validation", "test", "last"], str] = {
    "validation": "best on the validation set",
    "test": "best on the test set",
    "last": "last",
}

SAID = ("label", "optimizer", "learning_rate", "weight_decay", "batch_size", "epochs")
"""Settings that every description begins with."""

TITLES: dict[Any, str] = {
    "sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "muon": "Muon", "daa1": "DAA-1",
    "daa2": "DAA-2", True: "on", False: "off",
} | {name: network.title for name, network in NETWORKS.items()}  # fmt: skip

# fmt: off
PROTOCOL: dict[str, tuple[str, dict[Any, str]]] = {
    "shuffle": ("Training order", {
        True: "images shuffled anew in every epoch (the paper's listing never shuffles)",
        False: "images in one fixed order, never shuffled, as in the paper's listing",
    }),
    "augmented_evaluation": ("Evaluation", {
        True: "validation and test images augmented like training images, as in the listing",
        False: "on clean images (the paper's listing augments validation and test images, too)",
    }),
    "selection": ("Chosen epoch", {
        "test": "the best on the test set, as in the paper's listing",
        "validation": "the best on the validation set (the listing: the best on the test set)",
    }),
    "checkpoint": ("Weights", {
        "last": "predictions from the last epoch's weights, as in the paper's listing",
        "best": "predictions from the chosen epoch's weights (the listing keeps the last epoch's)",
    }),
    "normalization": ("Normalisation", {
        "published": "the constants of the paper's listing",
        "computed": "channel statistics computed from the training images",
    }),
    "loss": ("Loss shown", {
        "batch_means": "sum of batch means divided by the number of images, as in the listing",
        "per_sample": "mean cross-entropy per image",
    }),
}
# fmt: on
"""Setting of the protocol → its title, and what each value means."""


def describe_all(results: Results, options: str) -> list[dict[str, Any]]:
    """The stages in the paper's order, each with its title and a description of its runs.

    A run that several conditions share is told once, where it first occurs, with all its names.
    ``options`` are the command line options that name the records.
    """
    names: dict[str, list[Condition]] = {}
    for condition in results.known:
        names.setdefault(condition.run_id, []).append(condition)
    prices = Prices(results.every_record.values())
    stages: dict[str, list[dict[str, Any]]] = {}
    for conditions in names.values():
        run = describe(results, conditions, prices, options)
        stages.setdefault(conditions[0].stage, []).append(run)
    return [{"title": results.title(stage), "runs": runs} for stage, runs in stages.items()]


def describe(
    results: Results, conditions: Sequence[Condition], prices: Prices, options: str
) -> dict[str, Any]:
    """One run under all its names: what it is, how to make it, and, once recorded, what came out.

    ``conditions`` have the same run id.
    """
    condition = conditions[0]
    stage = results.study.stages.get(condition.stage)
    several_seeds = len((stage and stage.seeds) or results.scale.seeds) > 1
    seed = f", seed {condition.config.seed}" if several_seeds else ""
    names = [c.name + seed for c in conditions]
    target = condition.run_id if several_seeds else condition.name
    record = results.every_record.get(condition.run_id)
    verb = "run" if record is None else "verify --run"  # "run" only reads what is recorded
    run: dict[str, Any] = {
        "run_id": condition.run_id,
        "names": names,
        "title": names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""),
        "settings": describe_settings(condition, results),
        "command": f"cifarlib {verb} {shlex.quote(target)} {options}",
    }
    if record is None:
        cost = duration(prices.seconds(condition.config))
        return run | {"done": False, "cost": f"about {cost} of the whole machine"}
    return run | {"done": True} | _describe_outcome(record)


def describe_settings(condition: Condition, results: Results) -> str:
    """A run's configuration in words; what is the study's default or the scale's is left out."""
    config, settings = condition.config, condition.settings
    defaults = results.study.defaults
    published = settings.get("epochs", config.epochs)
    more = f" ({published} at full scale)" if published != config.epochs else ""
    words = [
        *([f"“{settings['label']}”"] if "label" in settings else []),
        _say_value(config.optimizer.name),
        f"learning rate {config.learning_rate:g}",
        f"weight decay {config.weight_decay:g}",
        f"batches of {config.batch_size}",
        f"{say_count(config.epochs, 'epoch')}{more}",
        f"seed {config.seed}",
    ]
    for name in dict.fromkeys([*defaults, *settings]):
        said = name in SAID or name.startswith("protocol")
        if not said and settings.get(name) != defaults.get(name):
            value = getattr(config, name, settings[name])
            if name == "augmentation":  # its name says more than the steps that it stands for
                value = settings[name]
            words.append(f"{say_setting(name.rpartition('.')[2])} {_say_value(value)}")
    usual = results.scale.protocol.model_dump()
    for name, value in config.protocol.model_dump().items():
        if value != usual[name]:
            title, meanings = PROTOCOL[name]
            words.append(f"{title.lower()}: {meanings[value]}")
    return ", ".join(words)


def _say_value(value: Any) -> str:
    """A setting's value; of a group, each of its values by name."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    if isinstance(value, dict):
        said = (f"{say_setting(key)} {_say_value(v)}" for key, v in value.items())
        return f"({', '.join(said)})"
    if isinstance(value, tuple):
        return " and ".join(map(_say_value, value))
    return TITLES.get(value, str(value)) if isinstance(value, str | bool) else str(value)


def _describe_outcome(record: RunRecord) -> dict[str, Any]:
    history = record.result.history
    data = DATASETS[record.config.data.name]
    top = [_percent(record.accuracy("test", k)) for k in (1, 2, 3)]
    if record.result.diverged:
        top[0] = "diverged"
    predictions = record.result.predictions
    epochs = range(history.epochs + 1)
    accuracies = {split: [*map(history.split(split).accuracy, epochs)] for split in SPLITS}
    losses = {split: history.split(split).loss for split in SPLITS}
    losses["train"] = history.training_loss
    return {
        "test": top[0],
        "epochs": history.epochs,
        "chosen": record.reported_epoch,
        "accuracies": [
            {
                "rule": RULES[rule],
                "reported": rule == record.config.protocol.selection,
                "epoch": epoch,
                "values": [_percent(record.accuracy(split, epoch=epoch)) for split in SPLITS],
            }
            for rule in RULES
            if (epoch := record.result.chosen.get(rule)) is not None
        ],
        "top": " / ".join(top),
        "curves": [
            (title, draw_curves(title, values, record.reported_epoch))
            for title, values in (("Top-1 accuracy in %", accuracies), ("Loss", losses))
        ],
        "classes": data.classes,
        "confusion": list(zip(data.classes, predictions.confusion["test"], strict=True)),
        "confusion_epoch": predictions.epoch,
        "time": duration(record.seconds),
        "seconds": round(record.seconds, 1),
        "origin": _describe_origin(record),
        "device": record.provenance.device,
        "commit": (record.provenance.commit or "–")[:12] + ("*" if record.provenance.dirty else ""),
    }


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _describe_origin(record: RunRecord) -> str:
    """Where, when and with what a run was made, in one line."""
    origin = record.provenance
    words = [
        f"{origin.device} ({origin.device_class}, {say_count(origin.threads, 'thread')})",
        f"training {duration(record.training_seconds)} ({record.images_per_s:,.0f} images/s)",
        f"evaluation {duration(record.seconds - record.training_seconds)}",
        f"finished {origin.finished}",
        provenance.name_commit(origin.commit, origin.dirty),
        ", ".join(f"{name} {version}" for name, version in origin.versions.items()),
        f"data {record.data_fingerprint}",
        f"engine {record.engine}",
    ]
    if origin.resumed:
        words.append(f"resumed {say_count(origin.resumed, 'time')}")
    words += origin.changes
    return "; ".join(words)


def draw_curves(title: str, curves: Mapping[Any, Sequence[float | None]], chosen: int) -> str:
    """A small SVG line chart of values by epoch, from epoch 0; a dotted line is at ``chosen``.

    Classes ``train``, ``validation`` and ``test`` give the lines their looks; a value that is
    None is left out. Values that differ much stand on a logarithmic axis. An empty text where
    there is nothing to draw.
    """
    points = {
        name: [(epoch, value) for epoch, value in enumerate(values) if value is not None]
        for name, values in curves.items()
    }
    values = [value for curve in points.values() for _, value in curve]
    if not values:
        return ""
    last = max(1, *(len(values) - 1 for values in curves.values()))
    low, high = min(values), max(values)
    logarithmic = low > 0 and high > STEEP * low
    place = math.log if logarithmic else float
    span = place(high) - place(low) or 1.0

    def x(epoch: int) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * epoch / last:.1f}"

    def y(value: float) -> str:
        return f"{TOP + (HEIGHT - TOP - BOTTOM) * (place(high) - place(value)) / span:.1f}"

    lines = ""
    for name, curve in points.items():
        step = max(1, (len(curve) - 1) / (MOST_POINTS - 1))
        thinned = [curve[round(step * n)] for n in range(min(len(curve), MOST_POINTS))]
        path = " ".join(f"{x(epoch)},{y(value)}" for epoch, value in thinned)
        if len(curve) == 1:  # a line of one point would not be seen
            left, _, top = path.partition(",")
            lines += f'<circle class="{name}" cx="{left}" cy="{top}" r="2"/>'
        elif curve:
            lines += f'<polyline class="{name}" points="{path}"/>'
    said = "; ".join(
        f"{name} {_tick(curve[0][1])} at epoch {curve[0][0]}, "
        f"{_tick(curve[-1][1])} at epoch {curve[-1][0]}"
        for name, curve in points.items()
        if curve
    )
    bottom = HEIGHT - BOTTOM
    return (
        f'<svg class="curves" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)} by epoch: {said}.">'
        f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>'
        f'<path class="chosen" d="M{x(chosen)} {TOP}V{bottom}"/>{lines}'
        f'<text x="{LEFT - 3}" y="{TOP + 6}" class="end">{_tick(high)}</text>'
        f'<text x="{LEFT - 3}" y="{bottom}" class="end">{_tick(low)}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 4}">0</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" class="end">epoch {last}</text>'
        f"{LOGARITHMIC if logarithmic else ''}</svg>"
    )


def _tick(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.1e}"
