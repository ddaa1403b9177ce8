"""The paper's numbers beside ours: rows meet by their settings."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cifarlib.analysis.statistics import list_columns, run_ids
from cifarlib.checking import suggest
from cifarlib.runs.frames import SETTINGS

LABELS = {
    "run": "Run",
    "optimizer": "Optimiser",
    "augmentation": "Augmentation",
    "batch_size": "Batch",
    "learning_rate": "LR",
    "weight_decay": "L2",
    "dropout": "Dropout",
    "model": "Model",
    "method": "Method",
    "top_k": "Accuracy",
    "epochs": "Epochs",
    "epoch": "Epoch",
    "time_s": "Time, s",
    "train_top1": "Training",
    "validation_top1": "Validation",
    "test_top1": "Test",
    "gap": "Train − test",
}
"""Columns of runs and of the paper's tables, as a printed table names them."""

OUTCOMES = ("test_top1", "validation_top1", "train_top1", "gap", "epoch", "time_s")

WITHOUT_DIFFERENCE = ("epoch", "time_s")  # of different machines, or of no meaning


def compare(
    paper: pd.DataFrame,
    ours: pd.DataFrame,
    on: str | Sequence[str],
    values: str | Sequence[str] = (),
    *,
    names: str | Sequence[str] = ("run",),
) -> pd.DataFrame:
    """The paper's rows, and beside each value ours and the difference, ours − paper.

    Rows meet where the columns ``on`` are equal; several seeds of ours are averaged. ``values`` are
    the outcomes that both have unless given. ``names`` are further columns of the paper that name
    its rows. Columns have two levels, (quantity, paper | ours | diff.); the frame's index is the
    paper's. ``attrs["runs"]`` and ``attrs["states"]`` hold, by index label, the ids of the runs
    behind a row, and what a missing value of ours is: pending, running, or diverged where no seed
    of the setting came to an end; ``attrs["group"]`` is the column by which rows form groups.
    Raises ``ValueError`` for columns that are not there, and where a row would meet two conditions
    or one of another setting.
    """
    keys, values, names = map(list_columns, (on, values, names))
    if not keys:
        raise ValueError("name the columns in which rows meet, such as batch_size")
    values = values or [name for name in OUTCOMES if name in paper and name in ours]
    for name, side in {"paper": paper, "ours": ours}.items():
        if not isinstance(side, pd.DataFrame):
            raise ValueError(f"{name} is {side!r}; give a frame, such as cl.paper.table('IV')")
        if lacking := [key for key in keys if key not in side]:
            raise ValueError(
                f"{lacking[0]} is no column of {name}; join on another: {suggest(lacking[0], side)}"
            )
    if paper.duplicated(keys).any():
        raise ValueError(f"rows of the paper are equal in {', '.join(keys)}; join on more columns")
    if unknown := [name for name in values if name not in paper or name not in ours]:
        both = [name for name in paper if name in ours]
        raise ValueError(
            f"{unknown[0]} is no column of both frames; compare others: {suggest(unknown[0], both)}"
        )
    groups = ours.groupby(keys)
    met = paper[keys].join(groups["name"].unique(), on=keys)["name"] if "name" in ours else []
    for one, other, *_ in (names for names in met if np.size(names) > 1):
        raise ValueError(
            f"{one} and {other} are equal in {', '.join(keys)}, but not the same condition; choose "
            "the rows of ours, or join on more columns"
        )
    for key in [name for name in SETTINGS if name in paper and name in ours and name not in keys]:
        beside = paper[keys].join(groups[key].first(), on=keys)[key]
        if (wrong := beside.notna() & paper[key].notna() & beside.ne(paper[key])).any():
            theirs, own = paper[key][wrong].iloc[0], beside[wrong].iloc[0]
            raise ValueError(
                f"rows equal in {', '.join(keys)} differ in {key}, {theirs} in the paper's and "
                f"{own} in ours; choose other rows of ours, or drop that column"
            )
    means = paper[keys].join(groups[values].mean(), on=keys)[values]
    columns: dict[tuple[str, str], pd.Series] = {
        ("", label(name)): paper[name] for name in dict.fromkeys([*names, *keys]) if name in paper
    }
    for name in values:
        columns[label(name), "paper"] = pd.to_numeric(paper[name])
        columns[label(name), "ours"] = means[name]
        if name not in WITHOUT_DIFFERENCE:
            columns[label(name), "diff."] = means[name] - columns[label(name), "paper"]
    frame = pd.concat(columns, axis=1)
    frame.attrs |= _look_up(paper[keys], groups) | {"group": ("", LABELS["batch_size"])}
    return frame


def _look_up(rows: pd.DataFrame, groups: "pd.api.typing.DataFrameGroupBy") -> dict[str, dict]:
    """By index label: the ids of the runs behind each row, and how far they are."""
    runs, states, known = {}, {}, dict(iter(groups))
    for index, *values in rows.itertuples(name=None):
        if (found := known.get(tuple(values))) is not None:
            runs[index] = run_ids(found)
            seeds = set(found["state"]) if "state" in found else set()
            ended = "diverged" if seeds == {"diverged"} else "pending"
            states[index] = "running" if "running" in seeds else ended
    return {"runs": runs, "states": states}


def label(name: str) -> str:
    """A column as a printed table names it."""
    return LABELS.get(name, name.replace("_", " ").capitalize())
