"""The records of a study as tidy frames: a row a run, a row an epoch, a run's predictions.

Accuracies are in %, differences in percentage points, times in seconds. A run without outcomes
(pending, running or diverged) has its settings and NA.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from cifarlib.config import SPLITS, SplitName
from cifarlib.data import stratified_subset
from cifarlib.runs.schema import DataRecord, RunRecord
from cifarlib.study import Condition

SETTINGS = (
    "model", "resize", "augmentation", "optimizer", "batch_size", "learning_rate", "weight_decay",
    "dropout", "schedule", "early_stopping", "protocol", "label",
)  # fmt: skip
"""Settings in the order of their columns; those that only some conditions have follow."""

OUTCOMES = (
    "trained", "rates", "epoch", "time_s", *(f"{s}_top{k}" for s in SPLITS for k in (1, 2, 3)),
    "gap", "flip_top1", "crop_top1",
)  # fmt: skip


def tabulate_runs(
    conditions: Iterable[Condition],
    records: Mapping[str, RunRecord],
    *,
    protocol: str = "",
    running: Collection[str] = (),
) -> pd.DataFrame:
    """A row a condition and seed: what was set, how far it is, and what came out.

    ``stage``, ``run`` (the paper's number), ``name``, settings by the names that the study gives
    them, ``epochs`` as configured, ``seed``, ``run_id``, ``state``; then ``trained`` epochs, the
    number of learning ``rates`` at their ends, the chosen ``epoch``, ``time_s``, top-1 to 3 of each
    set at that epoch (``test_top1``), ``gap``, training less test top-1, and, where asked for,
    ``flip_top1``, test top-1 by the mean logits of each image and its mirror image, and
    ``crop_top1``, by those of six views.
    ``protocol`` is the scale's, ``running`` the ids of runs in training.
    """
    rows = []
    for condition in conditions:
        record = records.get(condition.run_id)
        state = "running" if condition.run_id in running else "pending"
        row: dict[str, Any] = {"stage": condition.stage, "run": condition.run}
        row |= {"name": condition.name, "protocol": protocol}
        row |= {key.replace(".", "_"): _plain(value) for key, value in condition.settings.items()}
        resize = condition.config.resize
        row["resize"] = row.get("resize") or (resize.method if resize else "none")
        row |= {"epochs": condition.config.epochs, "seed": condition.config.seed}
        row |= {"run_id": condition.run_id, "state": state}
        rows.append(row | (_outcomes(record) if record else {}))
    frame = pd.DataFrame(rows)
    first = ["stage", "run", "name", *SETTINGS, "epochs", "seed", "run_id", "state"]
    extra = frame.columns.difference([*first, *OUTCOMES], sort=False)
    known = [name for name in first if name in frame or name not in SETTINGS]
    return frame.reindex(columns=[*known, *extra, *OUTCOMES])


def _plain(value: Any) -> Any:
    """A setting in one cell: a name or a number; a group as “padding=4, …”, a list as its text."""
    if isinstance(value, dict):
        return value.get("method") or ", ".join(f"{key}={_plain(v)}" for key, v in value.items())
    return str(list(value)) if isinstance(value, list | tuple) else value


def _outcomes(record: RunRecord) -> dict[str, Any]:
    row: dict[str, Any] = {"trained": record.result.history.epochs, "time_s": record.seconds}
    row["rates"] = len(set(record.result.history.learning_rate[1:]))
    if record.result.diverged:
        return row | {"state": "diverged"}
    row |= {"state": "recorded", "epoch": record.reported_epoch}
    row |= {f"{split}_top{k}": record.accuracy(split, k) for split in SPLITS for k in (1, 2, 3)}
    row |= {"gap": row["train_top1"] - row["test_top1"]}
    result = record.result
    for name, averaged in (("flip", result.flip_averaged), ("crop", result.crop_averaged)):
        if averaged:
            row[f"{name}_top1"] = 100 * averaged.test / result.history.test.images
    return row


def tabulate_curves(runs: pd.DataFrame, records: Mapping[str, RunRecord]) -> pd.DataFrame:
    """A row a recorded run, epoch and set: ``rate``, ``loss``, ``top1`` to ``top3``.

    Before them stand the columns of ``runs`` that say what was set. ``rate`` is the learning rate
    at the epoch's last step. Epoch 0 is before training. The set “steps” holds the mean loss over
    an epoch's steps, in training mode. Where a set was not evaluated there is no row.
    """
    parts = []
    for name in runs["run_id"].drop_duplicates()[lambda ids: ids.isin(records)]:
        history = records[name].result.history
        columns = {"run_id": name, "epoch": range(history.epochs + 1)}
        columns["rate"] = np.array(history.learning_rate, float)
        for split in SPLITS:
            counts = history.split(split)
            found = {
                f"top{k}": 100 * np.array(column, float) / counts.images
                for k, column in enumerate((counts.top1, counts.top2, counts.top3), start=1)
            }
            loss = np.array(counts.loss, float)
            parts.append(pd.DataFrame(columns | {"split": split, "loss": loss} | found))
        steps = np.array(history.training_loss, float)
        parts.append(pd.DataFrame(columns | {"split": "steps", "loss": steps}))
    types = {"run_id": str, "epoch": int, "split": str, "rate": float, "loss": float}
    types |= {"top1": float, "top2": float, "top3": float}
    found = pd.concat(parts) if parts else pd.DataFrame(columns=list(types))
    found = found.reindex(columns=list(types)).astype(types)
    found = found.dropna(subset=["loss", "top1"], how="all")
    settings = runs.drop(columns=["state", *OUTCOMES])
    return settings.merge(found, on="run_id")


@dataclass(frozen=True)
class RunPredictions:
    """What a run says of each test image, from the weights of its reported epoch or its last."""

    record: RunRecord
    data: DataRecord | None

    def __repr__(self) -> str:
        return f"<RunPredictions of {self.record!r}>"

    @property
    def classes(self) -> np.ndarray:
        """Predicted class of each test image, uint8 (n,)."""
        return self.record.result.predictions.classes

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, (n,), to 1/255."""
        return self.record.result.predictions.confidence

    @property
    def weights(self) -> np.ndarray:
        """Weights of the last linear layer, (10, features)."""
        return self.record.result.predictions.weights

    @cached_property
    def labels(self) -> np.ndarray | None:
        """True class of each test image, uint8 (n,).

        None where the data set is not on record, or is not the run's: its labels must give the
        confusion matrix that the run counted for itself.
        """
        if self.data is None or self.data.data_fingerprint != self.record.data_fingerprint:
            return None
        size = self.record.config.data.test_size
        labels = self.data.labels[stratified_subset(self.data.labels, size)]
        matrix = np.zeros((10, 10), dtype=int)
        np.add.at(matrix, (labels, self.classes), 1)
        return labels if np.array_equal(matrix, self.confusion("test")) else None

    @property
    def correct(self) -> np.ndarray | None:
        """Which test images are right, bool (n,); None where the labels are not known."""
        return None if self.labels is None else self.classes == self.labels

    def confusion(self, split: SplitName) -> np.ndarray:
        """Images of a set by true (rows) and predicted class, int (10, 10)."""
        return np.array(self.record.result.predictions.confusion[split])

    def accuracy(self, split: SplitName) -> float:
        """Top-1 accuracy in % of these predictions."""
        matrix = self.confusion(split)
        return float(100 * matrix.trace() / matrix.sum())
