"""The audit: the paper checked against itself, its listings and the data set, without training.

A lead is something noticed (``params/published/leads.yaml``). ``listings`` and
``tables`` have one function for each, which computes the evidence and gives the verdict:
*confirmed*, what was noticed is so; *refuted*, it is not; *undecidable* from what the paper
prints; *pending*, a record is missing.
"""

from dataclasses import dataclass

import pandas as pd

from cifarlib.audit import (
    leads,
    listings,  # noqa: F401 - enters its checks
    tables,  # noqa: F401 - enters its checks
)
from cifarlib.audit.case import CHECKS, Case, Verdict
from cifarlib.errors import ConfigError
from cifarlib.records import Results

VERDICTS: tuple[Verdict, ...] = ("confirmed", "refuted", "undecidable", "pending")


@dataclass(frozen=True)
class NumberedLead:
    """What was noticed, and where in the paper."""

    number: int
    text: str
    where: str


@dataclass(frozen=True)
class Examined:
    """A lead with what code found."""

    lead: NumberedLead
    evidence: str  # one sentence, its numbers computed
    verdict: Verdict


def examine(results: Results) -> list[Examined]:
    """Every lead with its evidence and verdict, in order.

    Of all records only that of CIFAR-10 is needed: without it the leads about the data are
    pending. Raises ``ConfigError`` where leads and checks do not belong together.
    """
    facts, known = leads.read_facts(), leads.read_leads()
    names = {lead.id for lead in known}
    if names != set(CHECKS):
        odd = ", ".join(sorted(names ^ set(CHECKS)))
        raise ConfigError(
            f"leads.yaml and cifarlib/audit/*.py do not name the same leads: {odd}; "
            "give each lead one check"
        )
    examined = []
    for number, lead in enumerate(known, start=1):
        verdict, evidence = CHECKS[lead.id](Case(lead, facts, results))
        numbered = NumberedLead(number, lead.text, lead.where)
        examined.append(Examined(numbered, evidence, verdict))
    return examined


def tabulate_leads(examined: list[Examined]) -> pd.DataFrame:
    """The summary: a row for each lead."""
    return pd.DataFrame(
        [
            {
                "No.": one.lead.number,
                "Noticed": one.lead.text,
                "Verdict": one.verdict,
                "Evidence": one.evidence,
                "Where": one.lead.where,
            }
            for one in examined
        ]
    )


def count_verdicts(examined: list[Examined]) -> str:
    """“47 leads: 40 confirmed, 3 refuted, 4 undecidable, 0 pending.”"""
    verdicts = [one.verdict for one in examined]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in VERDICTS)
    return f"{len(examined)} leads: {counts}."
