"""What the checks of the audit have in common: the case before them, and words for findings."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from cifarlib import published
from cifarlib.audit.evidence import IMAGES
from cifarlib.audit.leads import Fact, Lead
from cifarlib.records import Results

Verdict = Literal["confirmed", "refuted", "undecidable", "pending"]
Finding = tuple[Verdict, str]


@dataclass(frozen=True)
class Case:
    """A lead, and everything that its check may look at."""

    lead: Lead
    facts: dict[str, Fact]  # what the listings do
    results: Results

    @property
    def says(self) -> dict[str, Any]:
        """What the paper's prose states, or a source of it."""
        return self.lead.says

    def source(self, name: str) -> str:
        """Where a listing's fact can be read."""
        return self.facts[name].source

    def values(self, name: str) -> dict[str, Any]:
        """A listing's settings."""
        return self.facts[name].values


CHECKS: dict[str, Callable[[Case], Finding]] = {}
"""The check of each lead, by the lead's id in ``params/published/leads.yaml``."""


def check(function: Callable[[Case], Finding]) -> Callable[[Case], Finding]:
    """Enter a function into ``CHECKS``, by its name."""
    CHECKS[function.__name__] = function
    return function


def decide(holds: bool) -> Verdict:
    """Confirmed or refuted."""
    return "confirmed" if holds else "refuted"


def wait_for(what: str) -> Finding:
    """Pending, for want of something that CIFAR-10's record holds."""
    return "pending", f"Needs {what} of CIFAR-10: 0 records are there."


def find_row(number: str, **key: Any) -> pd.Series:
    """The first row of a table of the paper with some values."""
    table = published.read_table(number)
    for name, value in key.items():
        table = table[table[name] == value]
    return table.iloc[0]


def enumerate_words(values: Iterable[Any]) -> str:
    """“1, 2 and 3”."""
    *first, end = map(str, values)
    return f"{', '.join(first)} and {end}" if first else end


def count_batches(size: int) -> int:
    """Steps in an epoch of the paper's training images."""
    return math.ceil(IMAGES["train"] / size)
