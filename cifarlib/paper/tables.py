"""The paper's tables, normalisation constants and conditions, as printed.

They are transcribed in ``params/published/``: Tables I–XV, the constants of Listing 4, and what the
text says of settings that no table has. Settings stand in them as numbers (0.001, not a power of
ten) and by the names that ``params/study.yaml`` uses; results keep the printed digits. What the
paper got wrong is kept.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import Field

from cifarlib import paths
from cifarlib.checking import Strict, read_bytes, read_yaml, shown, validate
from cifarlib.config import Channels
from cifarlib.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {"best_epoch": "epoch", "train_test_difference": "gap", "model": "printed"}

MODELS = ("residual", "published", "resnet18", "resnet18_imagenet", "densenet121_imagenet")
"""The rows of Table XV by the study's names; “published” is a result that the paper cites."""

_CHANNELS = "mean_r mean_g mean_b std_r std_g std_b"
_SETTINGS = "batch_size learning_rate weight_decay epochs best_epoch"
_TOP1 = "train_top1 validation_top1 test_top1"
_BASE = f"run optimizer augmentation {_SETTINGS} time_s {_TOP1}"
_BROAD = f"run optimizer augmentation {_SETTINGS} {_TOP1} train_test_difference"
_DROPOUT = f"run optimizer augmentation dropout {_SETTINGS} {_TOP1} train_test_difference"
_TOP_K = "run top_k train validation test"

LAYOUTS = {  # by the paper's number: rows, columns
    "I": (1, f"method {_CHANNELS}"),
    "II": (6, f"method {_CHANNELS}"),
    "III": (3, "stage task"),
    "IV": (12, _BASE),
    "V": (12, _BASE),
    "VI": (12, _BASE),
    "VII": (32, _BROAD),
    "VIII": (32, _BROAD),
    "IX": (2, _BROAD),
    "X": (3, _TOP_K),
    "XI": (3, _TOP_K),
    "XII": (3, "label number cat deer dog"),
    "XIII": (5, _DROPOUT),
    "XIV": (5, _DROPOUT),
    "XV": (5, f"model {_TOP1}"),
}
_CONDITION = (
    *("optimizer", "augmentation", "dropout"),
    *("batch_size", "learning_rate", "weight_decay", "epochs"),
)  # columns that say what was trained
_TEXT = {"method", "task", "optimizer", "augmentation", "label", "model"}
_METHODS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "32")


def table(number: int | str) -> "pd.DataFrame":
    """A table of the paper by its number, ``4`` or ``"IV"``, with the columns of ``results.runs``.

    One row for each printed row. Accuracies (``train_top1``, …) are in %; ``gap`` is training less
    test, in percentage points, ``epoch`` the best one. ``time_s`` is in seconds, channel statistics
    are on pixels of 0 to 1, Table XII is in images. Only Table XV has blanks (NaN), what the paper
    does not give; it names a row as ``printed`` and by its ``model`` in the study. Raises
    ``ConfigError`` for a number that the paper does not have and for a missing or damaged file.
    """
    import pandas as pd  # here, so that training, which only needs settings, does without

    frame = pd.DataFrame(_read_columns(number)).rename(columns=COLUMNS)
    return frame.assign(model=list(MODELS)) if "printed" in frame else frame


def _read_columns(number: int | str) -> dict[str, list[Any]]:
    """Column → its values, numbers where it holds no text."""
    roman = _roman(number)
    path = paths.PUBLISHED / f"table_{list(LAYOUTS).index(roman) + 1:02d}.csv"
    rows, columns = LAYOUTS[roman]
    cells = _read_cells(path, columns.split(), rows)
    return {
        name: cells[name] if name in _TEXT else _numbers(path, cells[name], roman == "XV")
        for name in columns.split()
    }


# ---------------------------------------------------------------------------------------------
# Conditions
# ---------------------------------------------------------------------------------------------


Presets = dict[str, dict[str, dict[str, Any]]]
"""Setting → name → what the name stands for."""


@dataclass(frozen=True)
class PaperCondition:
    """A condition of the paper: what it trained once."""

    run: int  # the paper's number within its stage
    settings: dict[str, Any]  # all of them, by the names of the presets


class _Stage(Strict):
    tables: tuple[str, ...] = ()
    without: dict[str, Any] = Field(default={})  # rows of the tables that are another stage's
    settings: dict[str, Any] = Field(default={})
    rows: tuple[dict[str, Any], ...] = ()


class _Settings(Strict):
    presets: Presets
    shared: dict[str, Any]
    stages: dict[str, _Stage]


def read_conditions() -> tuple[Presets, dict[str, tuple[PaperCondition, ...]]]:
    """The paper's presets, and its conditions by stage, in its order: 114 in its tables, and 6 of
    Section II.A.2.

    Raises ``ConfigError`` for a missing or damaged file.
    """
    path = paths.PUBLISHED / "settings.yaml"
    content = validate(_Settings, read_yaml(path), shown(path))
    stages = {}
    for name, stage in content.stages.items():
        rows = [row for number in stage.tables for row in _read_rows(number)]
        if stage.without:
            rows = [row for row in rows if not stage.without.items() <= row.items()]
        stages[name] = tuple(
            PaperCondition(row.pop("run"), content.shared | stage.settings | row)
            for row in [*rows, *stage.rows]
        )
    return content.presets, stages


def _read_rows(number: str) -> list[dict[str, Any]]:
    """Run number and settings of each row of a table."""
    columns = _read_columns(number)
    names = ("run", *(name for name in _CONDITION if name in columns))
    rows = zip(*(columns[name] for name in names), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


# ---------------------------------------------------------------------------------------------
# Constants, and reading
# ---------------------------------------------------------------------------------------------


def read_normalization() -> dict[str, tuple[Channels, Channels]]:
    """The constants of Listing 4: method → (mean, standard deviation) of red, green and blue.

    Methods are the six of resizing to 256 × 256 and cropping to 224 × 224 pixels, and ``"32"``
    for the images as they are; pixels are of 0 to 1. Raises ``ConfigError`` for a missing or
    damaged file.
    """
    path = paths.PUBLISHED / "normalization.csv"
    names = _CHANNELS.split()
    cells = _read_cells(path, ["method", *names], len(_METHODS))
    if sorted(cells["method"]) != sorted(_METHODS):
        _damaged(path, f"its methods must be {', '.join(_METHODS)}")
    rows: Any = zip(*(_numbers(path, cells[name]) for name in names), strict=True)
    return {name: (row[:3], row[3:]) for name, row in zip(cells["method"], rows, strict=True)}


def _roman(number: int | str) -> str:
    by_arabic = {str(arabic): roman for arabic, roman in enumerate(LAYOUTS, start=1)}
    name = str(number).strip().upper()
    roman = by_arabic.get(name, name)
    if roman not in LAYOUTS:
        raise ConfigError(f"the paper has no table {number!r}; write I to XV, or 1 to 15")
    return roman


def _read_cells(path: Path, columns: list[str], rows: int) -> dict[str, list[str]]:
    """Column → its cells as text, once the file has the shape that it must have."""
    try:
        lines = read_bytes(path).decode().splitlines(keepends=True)
        header, *body = list(csv.reader(lines, strict=True)) or [[]]
    except OSError as error:
        raise ConfigError(
            f"{shown(path)} cannot be read ({error.strerror}); restore it from the repository"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        _damaged(path, f"it is not CSV ({error})")
    if header != columns:
        _damaged(path, f"its columns must be {', '.join(columns)}")
    if len(body) != rows:
        _damaged(path, f"it has {len(body)} rows instead of {rows}")
    for line, row in enumerate(body, start=2):
        if len(row) != len(columns):
            _damaged(path, f"line {line} has {len(row)} cells instead of {len(columns)}")
    return dict(zip(columns, map(list, zip(*body, strict=True)), strict=True))


def _numbers(path: Path, cells: list[str], blanks: bool = False) -> list[int] | list[float]:
    """Whole numbers where all cells are; a blank, where one may be, becomes NaN."""
    try:
        if all(cell.isdecimal() for cell in cells):
            return [int(cell) for cell in cells]
        values = [math.nan if blanks and not cell else float(cell) for cell in cells]
    except ValueError as error:
        _damaged(path, str(error))
    for cell, value in zip(cells, values, strict=True):
        if cell and not math.isfinite(value):
            _damaged(path, f"{cell!r} is not a finite number")
    return values


def _damaged(path: Path, reason: str) -> NoReturn:
    raise ConfigError(f"{shown(path)} is damaged: {reason}; restore it from the repository")
