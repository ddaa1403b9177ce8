"""One claim before the records: what the checks of the ledger have in common.

A check gets a ``Case``. It first notes what the paper says, then asks for conditions, which ends
the check where their runs are missing, and at last gives its finding.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from cifarlib import contrasts, published
from cifarlib.config import DATASETS
from cifarlib.contrasts import Contrast, say_p
from cifarlib.display import signed
from cifarlib.errors import ConfigError
from cifarlib.records import Results, RunRecord
from cifarlib.statistics import ALPHA, Interval, mean_interval, wilson_interval
from cifarlib.study import Condition

Verdict = Literal["held", "failed", "not distinguishable", "pending", "not judged"]

Choice = dict[str, Any]
"""A setting of the study: ``{stage: stage1-long, run: 13}``, with further settings if need be."""

CHECKS: dict[str, Callable[..., "Outcome"]] = {}
"""The checks that a ledger may name."""

NO_LABELS = "The classes of the test images are not on record; a sweep records them"
NOT_CIFAR10 = "These data are not CIFAR-10"


def check(function: Callable[..., "Outcome"]) -> Callable[..., "Outcome"]:
    """Make a function one that the ledger may name."""
    CHECKS[function.__name__] = function
    return function


class Waiting(Exception):
    """A claim cannot be judged yet, for a reason."""


class NotJudged(Exception):
    """The paper's claims cannot be held against these data, for a reason."""


@dataclass(frozen=True)
class Outcome:
    """What a check found."""

    verdict: Verdict
    ours: str
    reason: str  # without a full stop
    interval: str = ""


@dataclass
class Case:
    """The records before which a claim is brought, and what has been noted of it so far."""

    results: Results
    paper: str = ""  # what the paper says and prints
    agrees: bool | None = None  # do its own tables bear the claim out? None: they cannot tell
    runs: tuple[str, ...] = field(default=())  # the run ids behind the verdict

    def note(self, paper: str, agrees: bool | None) -> None:
        """What the paper says, and whether its own tables bear it out.

        This comes first in every check, and on other data than CIFAR-10 it ends it with
        ``NotJudged``.
        """
        self.paper, self.agrees = paper, None if agrees is None else bool(agrees)
        if not DATASETS[self.results.scale.data.name].real:
            raise NotJudged(NOT_CIFAR10)

    def choose(self, choice: Choice) -> list[Condition]:
        """The conditions of a setting, one for each seed; at least one is recorded."""
        settings = {key: value for key, value in choice.items() if key != "stage"}
        found = self.results.select(choice["stage"], **settings)
        if not found:
            raise ConfigError(f"the ledger of claims names {choice}, which is not in the study")
        return found

    def need(self, *sets: Sequence[Condition]) -> None:
        """End the check with ``Waiting`` unless each set has a recorded run."""
        self.runs = tuple(dict.fromkeys(c.run_id for conditions in sets for c in conditions))
        if not all(any(c.run_id in self.results.records for c in group) for group in sets):
            done = sum(run in self.results.records for run in self.runs)
            are = "is" if len(self.runs) == 1 else "are"
            raise Waiting(f"{done} of {_count(len(self.runs), 'run')} behind it {are} recorded")

    def pick(self, *choices: Choice) -> list[list[Condition]]:
        """``choose`` several settings and ``need`` them."""
        sets = [self.choose(choice) for choice in choices]
        self.need(*sets)
        return sets

    def stage(self, stage: str) -> dict[int, list[Condition]]:
        """Run number → conditions of a whole stage, all needed."""
        runs = contrasts.group(self.results, stage)
        if not runs:
            raise ConfigError(f"the ledger of claims names {stage}, which is no stage of the study")
        self.need(*runs.values())
        return runs

    def records(self, conditions: Iterable[Condition]) -> list[RunRecord]:
        """The records there are of some conditions."""
        return [record for c in conditions if (record := self.results.record(c))]

    def contrast(self, first: Sequence[Condition], second: Sequence[Condition]) -> Contrast:
        """The two settings compared; ``Waiting`` where their images cannot be."""
        pair = contrasts.contrast(self.results, first, second)
        if pair is None:
            raise Waiting(NO_LABELS)
        return pair


# ---------------------------------------------------------------------------------------------
# The paper's numbers
# ---------------------------------------------------------------------------------------------


def printed(place: str, column: str = "test_top1") -> float:
    """A printed number: ``IX/13`` is run 13 of Table IX; XIII and XIV go by dropout, XV by model.

    Raises ``ConfigError`` for a row that the paper does not have.
    """
    number, _, row = place.partition("/")
    table = published.read_table(number)
    key = {"XIII": "dropout", "XIV": "dropout", "XV": "model"}.get(number, "run")
    found = table.loc[table[key].astype(str) == row, column]
    if len(found) != 1:
        raise ConfigError(f"the ledger of claims names {place}, a row that the paper has not got")
    return float(found.iloc[0])


def printed_tables(numbers: Iterable[str]) -> pd.DataFrame:
    """Several tables of the paper, one below the other."""
    return pd.concat([published.read_table(number) for number in numbers], ignore_index=True)


# ---------------------------------------------------------------------------------------------
# Judging and saying
# ---------------------------------------------------------------------------------------------


def judge_sign(difference: float, p: float) -> Verdict:
    """Held where a difference is positive, and a test tells it from nothing."""
    if p >= ALPHA or difference == 0:
        return "not distinguishable"
    return "held" if difference > 0 else "failed"


def judge_band(interval: Interval, value: float, low: float, high: float) -> Verdict:
    """Held where a value lies in a band, failed where its whole interval lies outside."""
    if low <= value <= high:
        return "held"
    return "not distinguishable" if interval.low <= high and interval.high >= low else "failed"


def judge_family(pairs: Sequence[Contrast]) -> Verdict:
    """Held where all differences are positive and separate, failed where one is negative so."""
    if any(pair.separate and pair.difference < 0 for pair in pairs):
        return "failed"
    return "held" if all(pair.separate for pair in pairs) else "not distinguishable"


def measure(records: Sequence[RunRecord]) -> tuple[float, Interval, str]:
    """(mean test top-1 in %, its 95 % interval, on how many seeds it rests)."""
    mean, interval = mean_interval([r.accuracy("test") or 0.0 for r in records])
    if interval is None:
        images = records[0].result.history.test.images
        interval = wilson_interval(mean * images / 100, images)
    return mean, interval, seeds(len(records))


def seeds(count: int) -> str:
    """How many seeds, in words."""
    return "one seed" if count == 1 else f"{count} seeds"


def points(value: float, digits: int = 1) -> str:
    """A difference in percentage points."""
    return f"{signed(digits)(value)} points"


def p_is(p: float) -> str:
    """A p value after the letter: “p = 0.034”, “p < 0.001”."""
    return f"p {say_p(p)}" if p < 0.001 else f"p = {say_p(p)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
