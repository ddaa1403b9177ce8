"""All runs of a build folder in one table, the study's and one's own: filtered, grouped, compared.

What ``explore`` shows, without its widgets. A run that is not of the study at its scale, because
it was trained from the notebook or under other overrides, belongs to the stage ``own``; its name
says in what it differs from the nearest condition of the study.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cifarlib import data
from cifarlib.analysis.statistics import Disagreement, mcnemar
from cifarlib.config import DATASETS, RunConfig, flatten, run_id
from cifarlib.errors import DataError, RecordError
from cifarlib.records import Results, RunRecord, open_results
from cifarlib.runs.frames import RunPredictions
from cifarlib.study import Condition, Study

OWN = "own"
ABSENT = "–"  # a setting that only the other run has
NAMED_CHANGES = 4  # settings that a name can hold

OUTCOMES = ("best_epoch", "train_top1", "validation_top1", "test_top1", "seconds")

TITLES = {
    "stage": "stage",
    "model": "network",
    "optimizer": "optimiser",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay (L2)",
    "batch_size": "batch size, images",
    "augmentation": "augmentation",
    "dropout": "dropout",
    "schedule": "schedule",
    "epochs": "epochs",
    "resize": "resized to, pixels",
    "protocol": "protocol",
    "data": "data",
    "seed": "seed",
    "best_epoch": "chosen epoch",
    "train_top1": "training top-1, %",
    "validation_top1": "validation top-1, %",
    "test_top1": "test top-1, %",
    "seconds": "time, s",
}
"""What a column of the table is called, with its unit."""

SETTINGS = tuple(name for name in TITLES if name not in OUTCOMES)


# ---------------------------------------------------------------------------------------------
# The runs
# ---------------------------------------------------------------------------------------------


@dataclass
class Runs:
    """Every good record of a build folder, with the study that it was made for."""

    results: Results
    records: dict[str, RunRecord] = field(default_factory=dict)  # by run id
    faults: list[str] = field(default_factory=list)  # a sentence about each damaged record

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Read what has been recorded since."""
        new = [name for name in self.results.store.run_ids() if name not in self.records]
        found, self.faults = self.results.store.read_runs(new)
        self.records |= found
        self.__dict__.pop("frame", None)

    @cached_property
    def study(self) -> dict[str, Condition]:
        """The study's conditions by run id."""
        known: dict[str, Condition] = {}
        for condition in self.results.known:
            known.setdefault(condition.run_id, condition)
        return known

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a run, best test accuracy first: name, ``SETTINGS`` and ``OUTCOMES``.

        The index is the run id. Accuracies are top-1 in % at the reported epoch.
        """
        rows = {name: self._row(name, record) for name, record in self.records.items()}
        columns = ["name", *SETTINGS, *OUTCOMES]
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        return frame.sort_values(["test_top1", "name"], ascending=[False, True])

    def _row(self, name: str, record: RunRecord) -> dict[str, Any]:
        known = self.study.get(name)
        row: dict[str, Any] = {"name": self.name(record.config)}
        row["stage"] = known.stage if known else OWN
        row |= describe_settings(record.config, self.results.study)
        row["best_epoch"] = record.reported_epoch
        for split in ("train", "validation", "test"):
            row[f"{split}_top1"] = record.accuracy(split)  # type: ignore[arg-type]
        row["seconds"] = record.seconds
        return row

    def name(self, config: RunConfig) -> str:
        """The study's name of a run, or ``own`` and what sets it apart from the nearest one."""
        name = run_id(config)
        seeds = len(self.results.scale.seeds) > 1
        if known := self.study.get(name):
            return f"{known.name}, seed {config.seed}" if seeds else known.name
        nearest, changed = self.nearest(config)
        if nearest is None or len(changed) > NAMED_CHANGES:
            return f"{OWN}/{name[:8]}"
        words = [f"{key.rpartition('.')[2]}={_plain(value)}" for key, value in changed.items()]
        return f"{OWN}: {nearest.name} with {', '.join(words)}"

    def nearest(self, config: RunConfig) -> tuple[Condition | None, dict[str, Any]]:
        """The study's condition with the fewest other settings, and those settings here."""
        wanted = _flat(config)
        best: tuple[Condition | None, dict[str, Any]] = (None, wanted)
        for condition, known in self._flat_study:
            changed = {key: wanted[key] for key in wanted if known.get(key, wanted) != wanted[key]}
            if len(changed) < len(best[1]):
                best = condition, changed
        return best

    @cached_property
    def _flat_study(self) -> list[tuple[Condition, dict[str, Any]]]:
        return [(condition, _flat(condition.config)) for condition in self.study.values()]


def open_runs(scale: str, overrides: Sequence[str] = (), build: str | Path = "") -> Runs:
    """Every record of a build folder, ``build/<scale>`` where none is named."""
    return Runs(open_results(scale, overrides, build))


# ---------------------------------------------------------------------------------------------
# Settings, as the table has them
# ---------------------------------------------------------------------------------------------


def describe_settings(config: RunConfig, study: Study) -> dict[str, Any]:
    """A run's settings in one word each; a group that the study names has the study's name."""
    resize = config.resize

    def preset(group: str) -> str:
        content = getattr(config, group).model_dump(mode="json")
        defaults = type(getattr(config, group))
        for name, settings in study.presets.get(group, {}).items():
            if defaults.model_construct(**settings).model_dump(mode="json") == content:
                return name
        return content.get("name", "other")

    return {
        "model": preset("model"),
        "optimizer": config.optimizer.name,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "batch_size": config.batch_size,
        "augmentation": preset("augmentation"),
        "dropout": config.dropout,
        "schedule": preset("schedule"),
        "epochs": config.epochs,
        "resize": f"{resize.size}→{resize.crop} {resize.method}" if resize else "as they are",
        "protocol": preset("protocol"),
        "data": f"{DATASETS[config.data.name].title}, {config.data.train_size:,}",
        "seed": config.seed,
    }


def describe_differences(one: RunConfig, other: RunConfig) -> pd.DataFrame:
    """The settings in which two runs differ, one a row: setting, first, second."""
    first, second = _flat(one), _flat(other)
    keys = [k for k in first | second if first.get(k, ABSENT) != second.get(k, ABSENT)]
    columns = {
        "setting": keys,
        "first": [_plain(first.get(key, ABSENT)) for key in keys],
        "second": [_plain(second.get(key, ABSENT)) for key in keys],
    }
    return pd.DataFrame(columns)


def _flat(config: RunConfig) -> dict[str, Any]:
    return flatten(config.model_dump(mode="json"))


def _plain(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------
# Filtering and grouping
# ---------------------------------------------------------------------------------------------


def varied(frame: pd.DataFrame) -> list[str]:
    """The settings that have more than one value in a table."""
    return [name for name in SETTINGS if frame[name].nunique() > 1]


def select(frame: pd.DataFrame, wanted: Mapping[str, Collection[Any]]) -> pd.DataFrame:
    """The rows with one of the wanted values in every column; no value is any value."""
    keep = np.ones(len(frame), dtype=bool)
    for column, values in wanted.items():
        if values:
            keep &= frame[column].isin(list(values)).to_numpy()
    return frame[keep]


def group(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """Test accuracy by the values of one setting: runs, mean, lowest, highest, in %."""
    grouped = frame.groupby(by, sort=True)["test_top1"]
    table = grouped.agg(runs="count", mean="mean", lowest="min", highest="max")
    return table.reset_index()


# ---------------------------------------------------------------------------------------------
# Image by image
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """A test image that a run takes for another class."""

    index: int  # among the run's test images
    true: str
    predicted: str
    confidence: float  # the run's probability of the predicted class
    image: np.ndarray  # uint8 (32, 32, 3)


def find_mistakes(
    record: RunRecord, *, true: str = "", predicted: str = "", limit: int = 24
) -> tuple[int, list[Mistake]]:
    """How many test images a run gets wrong, and the ones it is surest of.

    ``true`` and ``predicted`` name a class each, any where they are empty. Raises ``DataError``
    where the data set is absent, or is not in the order that the run saw.
    """
    images, labels = _test_images(record)
    names = np.array(DATASETS[record.config.data.name].classes)
    predictions = record.result.predictions
    wrong = predictions.classes != labels
    if true:
        wrong &= names[labels] == true
    if predicted:
        wrong &= names[predictions.classes] == predicted
    found = np.flatnonzero(wrong)
    order = found[np.argsort(-predictions.confidence[found], kind="stable")][:limit]
    mistakes = [
        Mistake(
            int(index),
            str(names[labels[index]]),
            str(names[predictions.classes[index]]),
            float(predictions.confidence[index]),
            images[index].transpose(1, 2, 0),
        )
        for index in order
    ]
    return len(found), mistakes


def _test_images(record: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    """A run's test images, uint8 (n, 3, 32, 32), and labels (n,), in its predictions' order."""
    if record.data_fingerprint != DATASETS[record.config.data.name].fingerprint:
        raise DataError(f"run {record.run_id} was made from other files than the data set now has")
    _, test = data.load(record.config.data.name)
    where = data.stratified_subset(test.labels, record.config.data.test_size)
    labels = test.labels[where]
    counted = np.zeros((10, 10), dtype=int)
    np.add.at(counted, (labels, record.result.predictions.classes), 1)
    if counted.tolist() != [list(row) for row in record.result.predictions.confusion["test"]]:
        raise DataError(
            f"the predictions of run {record.run_id} are not in the order of the data set's images"
        )
    return test.images[where], labels


def compare(runs: Runs, first: RunRecord, second: RunRecord) -> Disagreement:
    """Exact McNemar on the test images of two runs.

    The labels come from the data set's record, else from the data set. Raises ``DataError``
    where the runs saw different test images, or where neither has the labels.
    """
    if first.config.data.test_size != second.config.data.test_size or (
        first.data_fingerprint != second.data_fingerprint
    ):
        raise DataError("the two runs were tested on different images; choose runs of one test set")
    try:
        described = runs.results.store.read_data(first.config.data.name)
    except RecordError:
        described = None
    right = [RunPredictions(record, described).correct for record in (first, second)]
    for place, record in enumerate((first, second)):
        if right[place] is None:
            right[place] = record.result.predictions.classes == _test_images(record)[1]
    return mcnemar(*right)
