"""The ledger of claims: what the paper says, what our records say, and whether it held.

The claims stand in ``params/published/ledger.yaml``. Each names a check (``ledger_*.py``), which
reads the records and the transcribed tables and nothing else. Below the paper's budget absolute
numbers can neither hold nor fail; orderings and effects are judged, provisionally. On data that
are not CIFAR-10 no claim is judged.
"""

import inspect
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pandas as pd
import pydantic
from pydantic import Field

from cifarlib import paths
from cifarlib.checking import Strict, read_yaml, suggest, validate
from cifarlib.display import Links
from cifarlib.ledger import (  # noqa: F401
    CHECKS,
    Case,
    NotJudged,
    Outcome,
    Verdict,
    Waiting,
    accuracy,
    behaviour,
    settings,
)
from cifarlib.records import Results

LEDGER = paths.PUBLISHED / "ledger.yaml"

REDUCED = "needs the paper's budget"
UNDECIDED = ("pending", "not judged")
"""Verdicts that decide nothing."""

Kind = Literal["absolute", "ordering", "effect", "relation", "equality"]


class Claim(Strict):
    """One claim of the paper, and how it is checked."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    where: str = Field(min_length=1)  # section, table or figure
    text: str = Field(min_length=1)  # the claim, in our words
    kind: Kind
    check: str  # name of a check
    arguments: dict[str, Any] = Field(alias="with")
    tolerance: float | None = Field(default=None, ge=0)
    links: tuple[Annotated[str, Field(pattern=r"^(table|figure)-\w+$")], ...] = Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _checkable(self) -> "Claim":
        if self.check not in CHECKS:
            raise ValueError(f"there is no check {self.check!r}; {suggest(self.check, CHECKS)}")
        given = set(self.settings)
        known = set(inspect.signature(CHECKS[self.check]).parameters) - {"case"}
        if extra := sorted(given - known):
            hint = suggest(extra[0], known)
            raise ValueError(f"the check {self.check} takes no {extra[0]!r}; {hint}")
        if lacking := sorted(known - given):
            raise ValueError(f"the check {self.check} needs {lacking[0]!r}; add it")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The check's arguments, the tolerance among them if there is one."""
        own = {} if self.tolerance is None else {"tolerance": self.tolerance}
        return self.arguments | own


class Ledger(Strict):
    """All claims."""

    claims: tuple[Claim, ...] = Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _distinct(self) -> "Ledger":
        for name, times in Counter(claim.id for claim in self.claims).items():
            if times > 1:
                raise ValueError(f"the id {name!r} stands {times} times; rename one")
        return self


@dataclass(frozen=True)
class Finding:
    """A claim and what became of it."""

    claim: Claim
    paper: str  # what the paper says and prints
    ours: str
    interval: str  # 95 %, of what ``ours`` says; may be empty
    verdict: Verdict
    provisional: bool  # judged on incomplete runs or at a reduced scale
    reason: str  # one sentence
    links: tuple[tuple[str, str], ...]  # (text, anchor) in the report
    runs: tuple[str, ...]  # run ids behind the verdict, done or pending
    contradicted: bool = False  # by the paper's own tables


def load_claims(path: Path = LEDGER) -> tuple[Claim, ...]:
    """Read and check the ledger.

    Raises ``ConfigError`` for an unknown key, a check that does not exist or gets wrong
    arguments, and an id that stands there twice.
    """
    return validate(Ledger, read_yaml(path), path.name).claims


def judge(results: Results) -> list[Finding]:
    """Every claim of the ledger before the records, in the ledger's order."""
    return [judge_claim(claim, results) for claim in load_claims()]


def judge_claim(claim: Claim, results: Results) -> Finding:
    """One claim before the records."""
    case = Case(results)
    try:
        outcome = CHECKS[claim.check](case, **claim.settings)
    except Waiting as waiting:
        outcome = Outcome("pending", "–", str(waiting))
    except NotJudged as other:
        outcome = Outcome("not judged", "–", str(other))
    verdict, reason = outcome.verdict, outcome.reason
    judged = verdict not in UNDECIDED
    if claim.kind == "absolute" and judged and results.scale.reduced:
        verdict, reason, judged = "pending", REDUCED, False
    if case.agrees is False:
        reason += "; the paper's own tables contradict it"
    missing = any(run not in results.records for run in case.runs)
    return Finding(
        claim=claim,
        paper=_bind(case.paper),
        ours=_bind(outcome.ours),
        interval=outcome.interval,
        verdict=verdict,
        provisional=judged and bool(case.runs) and (missing or results.scale.reduced),
        reason=_bind(f"{reason[0].upper()}{reason[1:]}."),
        links=tuple((_name(anchor), anchor) for anchor in claim.links),
        runs=case.runs,
        contradicted=case.agrees is False,
    )


def _bind(text: str) -> str:
    """No line break between a number and its sign."""
    for sign in (" %", " = ", " < "):
        text = text.replace(sign, sign.replace(" ", "\N{NO-BREAK SPACE}"))
    return text


def _name(anchor: str) -> str:
    kind, _, number = anchor.partition("-")
    return f"{kind.capitalize()} {number}"


# ---------------------------------------------------------------------------------------------
# As tables
# ---------------------------------------------------------------------------------------------


def tabulate_claims(findings: list[Finding]) -> pd.DataFrame:
    """The ledger, a row for each claim; its number leads to the runs."""
    rows = [
        {
            "No.": number,
            "Claim": f"{finding.claim.text} ({finding.claim.where})",
            "Paper": finding.paper,
            "Ours": finding.ours,
            "95 % interval": finding.interval or "–",
            "Verdict": say_verdict(finding),
            "Why": finding.reason,
            "See": Links(finding.links),
        }
        for number, finding in enumerate(findings, start=1)
    ]
    frame = pd.DataFrame(rows)
    frame.attrs["runs"] = [finding.runs for finding in findings]
    return frame


def say_verdict(finding: Finding) -> str:
    """The verdict, and whether it is provisional."""
    return f"{finding.verdict}, provisionally" if finding.provisional else finding.verdict


def count_verdicts(findings: list[Finding]) -> pd.DataFrame:
    """Claims by kind and verdict, with a row of sums; the last column is of the paper's tables.

    Where no claim is judged, that is the only verdict.
    """
    known = get_args(Verdict)
    others = any(finding.verdict == "not judged" for finding in findings)
    verdicts = [verdict for verdict in known if (verdict == "not judged") == others]
    rows = []
    for kind in (*get_args(Kind), "all"):
        members = [f for f in findings if kind in (f.claim.kind, "all")]
        row: dict[str, object] = {"Kind of claim": kind, "Claims": len(members)}
        row |= {v.capitalize(): sum(f.verdict == v for f in members) for v in verdicts}
        row["Contradicted by the paper's tables"] = sum(f.contradicted for f in members)
        rows.append(row)
    return pd.DataFrame(rows)
