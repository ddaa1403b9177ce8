"""Two readings of Table XIV: its caption has learning rate and weight decay of 0.001, the listing
that trains it 0.01 and a hundredth of that. Accuracies are test top-1 in %."""

import pandas as pd

from cifarlib import published
from cifarlib.beyond.seeds import Mean, average
from cifarlib.display import fixed
from cifarlib.records import Results
from cifarlib.study import Condition

STAGE = "dropout-question"
TABLE = "XIV"


def _settings(results: Results) -> dict[str, dict[float, list[Condition]]]:
    """Label → dropout → its conditions, one for each seed."""
    found: dict[str, dict[float, list[Condition]]] = {}
    for condition in results.select(STAGE):
        reading = found.setdefault(condition.settings["label"], {})
        reading.setdefault(condition.config.dropout, []).append(condition)
    return found


def tabulate_dropout(results: Results) -> pd.DataFrame:
    """The paper's test accuracy at each dropout beside ours under both readings."""
    paper = published.read_table(TABLE).set_index("dropout").test_top1
    readings = _settings(results)
    rows, behind = [], []
    for dropout, value in paper.items():
        ours = {
            label: average(results, by_dropout.get(dropout, []))
            for label, by_dropout in readings.items()
        }
        rows.append(
            {"Dropout": dropout, "Paper": value} | {name: mean.say() for name, mean in ours.items()}
        )
        behind.append(tuple(run for mean in ours.values() for run in mean.runs))
    frame = pd.DataFrame(rows)
    frame.attrs["runs"] = behind
    return frame


def say_dropout(results: Results) -> str:
    """Which reading is nearer to the printed numbers, in a sentence or two."""
    paper = published.read_table(TABLE).set_index("dropout").test_top1
    distances = {}
    for label, by_dropout in _settings(results).items():
        means: dict[float, Mean] = {d: average(results, c) for d, c in by_dropout.items()}
        if any(means.get(d, Mean(())).mean is None for d in paper.index):
            return "Pending: not every dropout of both readings is recorded."
        apart = [(means[d].mean or 0.0) - value for d, value in paper.items()]
        mean = sum(apart) / len(apart)
        shape = [value - mean for value in apart]
        distances[label] = tuple((sum(x * x for x in v) / len(v)) ** 0.5 for v in (apart, shape))
    absolute = not results.scale.reduced
    nearest = min(distances, key=lambda label: distances[label][0 if absolute else 1])
    told = ", ".join(
        f"{label} {fixed(2)(one)} ({fixed(2)(two)} once the mean is taken off)"
        for label, (one, two) in distances.items()
    )
    sentence = f"Distance from the printed numbers, root mean square in points: {told}. "
    if absolute:
        return sentence + f"The numbers are nearer to the table {nearest}."
    return sentence + (
        "At a smaller budget than the paper's only the shape can be compared: it is nearer to the "
        f"table {nearest}."
    )
