"""The paper's tables, with the columns of ``results.runs``."""

import pandas as pd

from cifarlib.published import TITLES, read_normalization, read_table

__all__ = ["MODELS", "TITLES", "read_normalization", "table"]

COLUMNS = {"best_epoch": "epoch", "train_test_difference": "gap", "model": "printed"}

MODELS = ("residual", "published", "resnet18", "resnet18_imagenet", "densenet121_imagenet")
"""The rows of Table XV by the study's names; “published” is a result that the paper cites."""


def table(number: int | str) -> pd.DataFrame:
    """A table of the paper by its number, ``"VII"`` or 7; a row for each printed row.

    Settings and outcomes have the names that they have in ``results.runs``. Accuracies are in %,
    ``gap`` (training less test) in points, ``time_s`` in seconds, channel statistics on pixels of
    0 to 1, Table XII in images. Table XV names a row as ``printed`` and by its ``model`` in the
    study. Raises ``ConfigError`` for a number that the paper does not have.
    """
    frame = read_table(number).rename(columns=COLUMNS)
    return frame.assign(model=list(MODELS)) if "printed" in frame else frame
