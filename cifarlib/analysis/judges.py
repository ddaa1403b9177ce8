"""Judges: what a sample says about a claim, so that noise cannot win.

A claim about settings is judged on independent values: seeds, or matched pairs over a grid. A
single pair of runs is judged against the noise of two runs of one setting only; without that it
is pending, “one seed: not decidable”. Five verdicts:

- *held*: the whole 95 % interval, or every corrected test, lies on the claim's side;
- *did not hold*: it lies on the other side;
- *not distinguishable*: neither, so that the data do not decide;
- *not tested*: the treatment did not occur, or the rule is true by construction;
- *pending*: runs are missing, be it those that tell how much seeds differ.

That nothing is significant never makes a claim hold: that two things are equal is tested against a
stated margin (``equal``). ``calibration`` tries every judge on null data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import pandas as pd

from cifarlib.analysis import statistics as stats
from cifarlib.analysis.statistics import ALPHA, LEVEL, Estimate, Interval, Noise, Pairs, Sample
from cifarlib.formatting import fixed, say_count, say_p, say_range, say_setting, signed

__all__ = [
    "JUDGED", "VERDICTS", "Judgement", "all_above", "best", "effect", "equal", "every",
    "explains_more", "fact", "largest", "nearly_all", "not_tested", "pending", "positive",
    "within",
]  # fmt: skip
__dir__ = __all__.copy  # what a notebook completes

Verdict = Literal["held", "did not hold", "not distinguishable", "not tested", "pending"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
JUDGED = VERDICTS[:3]  # what data can say

UNDECIDABLE = "One seed: not decidable."

Judged: TypeAlias = "Sample | Estimate | Sequence[float] | np.ndarray | pd.Series"


@dataclass(frozen=True, repr=False)
class Judgement:
    """What became of a claim, and why."""

    verdict: Verdict
    ours: str = "–"
    interval: str = ""  # of what ``ours`` says, at 95 %; may be empty
    p: float | None = None  # two-sided, before correction for a family
    n: int = 0  # independent values
    reason: str = ""  # a sentence
    runs: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """“<held: +6.3 points (95 %: +5.1 to +7.5). The interval lies …>”."""
        return f"<{self.verdict}: {self.say()}. {self.reason}>"

    def say(self) -> str:
        """The value with its interval: “+6.3 points (95 %: +5.1 to +7.5)”."""
        return f"{self.ours} (95 %: {self.interval})" if self.interval else self.ours


def fact(holds: bool, ours: str, reason: str = "") -> Judgement:
    """A claim about a count or another number that has no noise."""
    return Judgement("held" if holds else "did not hold", ours, reason=reason)


def pending(reason: str, runs: Sequence[str] = (), ours: str = "–") -> Judgement:
    """Runs are missing."""
    return Judgement("pending", ours, reason=reason, runs=tuple(runs))


def not_tested(reason: str, runs: Sequence[str] = (), ours: str = "–") -> Judgement:
    """The treatment did not occur, or the rule is true by construction."""
    return Judgement("not tested", ours, reason=reason, runs=tuple(runs))


def every(parts: Mapping[str, Judgement]) -> Judgement:
    """A claim that says several things, by name: all of them must hold.

    Its p is the largest of theirs. It did not hold where one part did not, by Holm's method; where
    a part did not, whether or not this suffices, p is that of this method, and none if that part
    is a count.
    """
    judged = list(parts.values())
    runs = tuple(dict.fromkeys(run for part in judged for run in part.runs))
    if all(part.verdict == "pending" and part.ours == "–" for part in judged):
        return pending(f"None of its {len(judged)} parts can be judged yet.", runs)
    verdicts = [part.verdict for part in judged]
    failed = [part.p for part in judged if part.verdict == "did not hold"]
    fails = [len(judged) * p for p in failed if p is not None]
    p = max((part.p for part in judged if part.p is not None), default=None)
    if failed:
        p = None if None in failed else min(1.0, min(fails))
    verdict: Verdict = "not distinguishable"
    if None in failed or (fails and min(fails) < ALPHA):
        verdict = "did not hold"
    elif waiting := [v for v in verdicts if v in ("pending", "not tested")]:
        verdict = waiting[0]
    elif set(verdicts) == {"held"}:
        verdict = "held"
    return Judgement(
        verdict,
        "; ".join(
            f"{name} {part.ours}" + (f" ({part.interval})" if part.interval else "")
            for name, part in parts.items()
        ),
        "",
        p,
        min(part.n for part in judged),
        _capital("; ".join(f"{name}: {part.verdict}" for name, part in parts.items())) + ".",
        runs,
    )


# ---------------------------------------------------------------------------------------------
# One number
# ---------------------------------------------------------------------------------------------


def within(
    sample: Judged,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    unit: str = " points",
    decimals: int = 1,
    claimed: str = "",
) -> Judgement:
    """The mean lies between two bounds: so does its whole interval, or none of it.

    ``claimed`` says the bounds in other words.
    """
    found, runs = _read(sample)
    if waiting := _wait(found, runs):
        return waiting
    form = signed(decimals) if "point" in unit else fixed(decimals)
    ours = f"{form(found.mean)}{unit}"
    claimed = claimed or say_range(low, high, form)
    interval = found.interval()
    if interval is None and found.n < 2:
        return Judgement("pending", ours, n=found.n, reason=UNDECIDABLE, runs=runs)
    if interval is None:
        reason = f"All {found.n} {found.of} are equal: no spread."
        return Judgement("not distinguishable", ours, n=found.n, reason=reason, runs=runs)
    verdict, lies = _place(interval, low, high)
    if interval.high - interval.low > high - low:
        claimed = f"{claimed}, and is wider than that"
    what = "what is claimed" if math.isinf(high - low) else "what counts as equal"
    above, below = found.p_above(low), 1 - found.p_above(high)
    inside, outside = max(above, below), min(1 - above, 1 - below)
    return Judgement(
        verdict,
        ours,
        interval.say(decimals, sign="point" in unit),
        min(1.0, 2 * min(inside, outside)),
        found.n,
        f"The interval lies {lies} {what}, {claimed}; {found.say()}.",
        runs,
    )


def positive(sample: Judged, *, unit: str = " points", decimals: int = 1) -> Judgement:
    """A difference is above 0: the first setting is better."""
    found, runs = _read(sample)
    if not _wait(found, runs) and found.identical:
        return not_tested("The runs compared are the same to the image.", runs, f"0{unit}")
    return within(sample, 0, unit=unit, decimals=decimals, claimed="more than 0")


def equal(sample: Judged, margin: float, *, unit: str = " points", decimals: int = 1) -> Judgement:
    """A difference is no larger than a margin either way: two one-sided tests of 2.5 % each."""
    return within(sample, -margin, margin, unit=unit, decimals=decimals)


def _read(sample: Judged) -> tuple[Estimate, tuple[str, ...]]:
    if isinstance(sample, Sample):
        return sample.estimate, sample.runs
    if isinstance(sample, Estimate):
        return sample, ()
    values = np.asarray(sample, float)
    known = values[~np.isnan(values)]
    return stats.estimate(known, missing=len(values) - len(known)), ()


def _wait(found: Estimate, runs: Sequence[str]) -> Judgement | None:
    """A sample is judged when it is complete: looking earlier would be looking more often."""
    if found.missing:
        return pending(f"Not all {found.of} are recorded: {found.missing} missing.", runs)
    return None if found.n else pending(f"No {found.of} have a result.", runs)


def _place(interval: Interval, low: float, high: float) -> tuple[Verdict, str]:
    if interval.low >= low and interval.high <= high:
        return "held", "inside"
    if interval.high < low or interval.low > high:
        return "did not hold", "outside"
    return "not distinguishable", "partly outside"


# ---------------------------------------------------------------------------------------------
# One setting among several
# ---------------------------------------------------------------------------------------------


def best(
    outcomes: Mapping[object, Sequence[float] | float] | pd.Series,
    chosen: object,
    noise: Noise | None,
    *,
    smallest: bool = False,
    noun: str = "run ",
    unit: str = " %",
) -> Judgement:
    """One setting has the largest outcome of all, or the ``smallest``.

    ``outcomes`` are each setting's values, one for each seed, or one number each, without settings
    that diverged; ``noise`` is that of a single run. Held where it is better than every other one
    by a test of its own; not where one is better than it, by Holm's method over the others.
    """
    values = {key: np.atleast_1d(np.asarray(found, float)) for key, found in outcomes.items()}
    if missing := sum(bool(np.isnan(found).any()) for found in values.values()):
        return pending(f"{len(values) - missing} of {len(values)} settings are recorded.")
    if chosen not in values:
        return fact(False, f"{noun}{chosen} diverged", "A run that diverged has no outcome.")
    if len(values) < 2:
        return not_tested("There is no other setting to compare it with.")
    sign = -1 if smallest else 1
    means = {key: float(found.mean()) for key, found in values.items()}
    ranked = sorted(means, key=lambda key: -sign * means[key])
    named = dict.fromkeys([ranked[0], chosen])
    ours = "; ".join(f"{noun}{key}: {fixed(1)(means[key])}{unit}" for key in named)
    place = f"{noun}{chosen} is number {1 + ranked.index(chosen)} of {len(values)}"
    if noise is None:
        return pending(f"{_capital(place)}. {UNDECIDABLE}", ours=ours)
    others = [found for key, found in values.items() if key != chosen]
    above = np.array([_exceeds(sign * values[chosen], sign * other, noise) for other in others])
    verdict, p = _decide(above)
    ties = int(((above >= ALPHA / 2) & (1 - above >= ALPHA / 2)).sum())
    tied = f"pairwise, {say_count(ties, 'other')} cannot be distinguished from it"
    reason = f"{place}; {tied}; {noise.say()}."
    n = min(map(len, values.values()))
    return Judgement(verdict, ours, p=p, n=n, reason=_capital(reason))


def all_above(table: pd.DataFrame, above: Sequence[object], below: Sequence[object]) -> Judgement:
    """Each of some columns exceeds each of others, over rows that are independent observations.

    The pair of columns least in favour, that of the largest p, decides and is shown.
    """
    table = table[[*above, *below]]
    known = table.dropna()
    missing = len(table) - len(known)
    if waiting := _wait(stats.estimate(known.iloc[:, 0], "runs", missing=missing), ()):
        return waiting
    found = {
        (one, other): stats.estimate(table[one] - table[other], "runs")
        for one in above
        for other in below
    }
    more = np.array([estimate.p_above(0) for estimate in found.values()])
    least = list(found)[int(more.argmax())]  # where one p is NaN, this is its place
    ours = f"{least[0]} less {least[1]}: {signed(1)(found[least].mean)} points"
    if np.isnan(more).any():
        return pending(UNDECIDABLE, ours=ours)
    verdict, p = _decide(more)
    interval = found[least].interval(1 if verdict == "held" else len(found))
    words = interval.say(sign=True) if interval else ""
    how = "and all are above 0" if verdict == "held" else "its interval and p corrected for all"
    reason = f"Shown is the least favourable of {len(found)} differences, {how}; "
    reason += f"{found[least].say()}."
    return Judgement(verdict, ours, words, p, len(table), reason)


def _decide(more: np.ndarray) -> tuple[Verdict, float]:
    """The verdict on a claim that needs several differences to be above 0, and its two-sided p.

    ``more`` are one-sided p values. All must be small for the claim to hold; for it not to hold,
    one must be large, by Holm's method (whose smallest p is Bonferroni's).
    """
    return _side(float(more.max()), len(more) * float(1 - more.max()))


def _side(holds: float, fails: float) -> tuple[Verdict, float]:
    """The verdict of two one-sided p values, and its two-sided p."""
    verdict: Verdict = "did not hold" if fails < ALPHA / 2 else "not distinguishable"
    return "held" if holds < ALPHA / 2 else verdict, min(1.0, 2 * float(min(holds, fails)))


def _exceeds(one: np.ndarray, other: np.ndarray, noise: Noise) -> float:
    """One-sided p against the first setting being no better than the second."""
    error = noise.sd * math.sqrt(1 / len(one) + 1 / len(other))
    return Estimate(float(one.mean() - other.mean()), error, noise.df, 1, "").p_above(0)


def largest(pairs: Pairs, low: float, high: float, noise: Noise | None) -> Judgement:
    """The largest of several differences lies between two bounds, “up to 12 points”.

    The largest of many noisy numbers is too large: all are bounded together (Bonferroni) by the
    noise of two single runs. Held where none can exceed ``high`` and one must reach ``low``.
    """
    if waiting := _wait(pairs.estimate, pairs.runs):
        return waiting
    most, m = float(pairs.difference.max()), len(pairs.difference)
    ours = f"up to {signed(1)(most)} points"
    if noise is None:
        return pending(UNDECIDABLE, pairs.runs, ours)
    reach = noise.difference(1 - (1 - LEVEL) / m)
    interval = Interval(most - reach, most + reach)
    verdict, lies = _place(interval, low, high)
    outside = abs(max(low - most, most - high))
    return Judgement(
        verdict,
        ours,
        interval.say(sign=True),
        min(1.0, 2 * m * noise.pair(outside).p_above(0)),
        pairs.estimate.n,
        f"The largest of {m}; its simultaneous interval lies {lies} {signed(1)(low)} to "
        f"{signed(1)(high)} points.",
        pairs.runs,
    )


def nearly_all(pairs: Pairs, allowed: int, noise: Noise | None) -> Judgement:
    """All differences are above 0 but an ``allowed`` number, by the noise of two single runs.

    Held where enough are each above 0, not where too many are each below it; both are corrected as
    partial conjunctions (Benjamini and Heller, 2008).
    """
    if waiting := _wait(pairs.estimate, pairs.runs):
        return waiting
    found = pairs.difference.to_numpy()
    m, ours = len(found), f"{(found > 0).sum()} of {len(found)}"
    if m <= allowed:
        return not_tested(f"All {m} may be below.", pairs.runs, ours)
    if noise is None:
        return pending(UNDECIDABLE, pairs.runs, ours)
    more = np.sort([noise.pair(value).p_above(0) for value in found])
    less = np.sort(1 - more)
    verdict, p = _side((allowed + 1) * more[m - 1 - allowed], (m - allowed) * less[allowed])
    each = stats.adjust(np.minimum(1, 2 * np.minimum(more, 1 - more)))
    clear = int(((each < ALPHA) & (more < 0.5)).sum())
    return Judgement(
        verdict,
        ours,
        p=p,
        n=pairs.estimate.n,
        reason=f"Of {m} differences, {clear} are above 0 by themselves (Holm), not only by their "
        f"sign, and {m - allowed} must be: the claim allows {say_count(allowed, 'exception')}.",
        runs=pairs.runs,
    )


# ---------------------------------------------------------------------------------------------
# A whole grid
# ---------------------------------------------------------------------------------------------


def explains_more(
    grid: pd.DataFrame, outcome: str, above: Sequence[str], below: Sequence[str]
) -> Judgement:
    """Each of some factors explains more of a grid's variance (ω²) than each of others.

    Together they are the factors of the grid. Held where every difference of two ω² is above 0
    (``statistics.omega``), not where one is below 0 by Holm's method.
    """
    grid = stats.ended(grid)
    if waiting := _wait_for_grid(grid, outcome):
        return waiting
    runs, factors = stats.run_ids(grid), [*above, *below]
    shares = stats.variance_explained(grid, outcome, factors)
    ours = stats.say_shares(shares, factors)
    found = {(a, b): stats.omega(shares, a, b) for a in above for b in below}
    n = min(estimate.n for estimate in found.values())
    if any(estimate.error is None for estimate in found.values()):
        reason = f"Too few runs ({n}) to tell the shares from noise."
        return Judgement("not distinguishable", ours, n=n, reason=reason, runs=runs)
    more = np.array([estimate.p_above(0) for estimate in found.values()])
    verdict, p = _decide(more)
    deciding = list(found)[int(more.argmax())]  # the pair least in favour of the claim
    interval, (one, other) = found[deciding].interval(), map(say_setting, deciding)
    return Judgement(
        verdict,
        ours,
        f"{one} less {other}, {interval.say(0, sign=True)}" if interval else "",
        p,
        n,
        f"ω² of {one} less that of {other}; what no main effect explains counts as noise.",
        runs,
    )


def effect(grid: pd.DataFrame, outcome: str, factors: Sequence[str], term: str) -> Judgement:
    """A factor, or the interaction “a:b” of two, makes a difference over a grid (F test).

    A test that finds nothing does not refute: the claim then is not distinguishable.
    """
    grid = stats.ended(grid)
    if waiting := _wait_for_grid(grid, outcome):
        return waiting
    found = stats.variance_explained(grid, outcome, factors, term if ":" in term else "").loc[term]
    others = len(set(factors) - {term})
    p, n, runs = float(found["p"]), int(found["n"]), stats.run_ids(grid)
    if math.isnan(p):
        reason = f"Too few runs ({n}) to tell the effect from noise."
        return Judgement("not distinguishable", n=n, reason=reason, runs=runs)
    return Judgement(
        "held" if p < ALPHA else "not distinguishable",
        f"ω² = {fixed(0)(found['omega'])} %",
        "",
        p,
        n,
        f"F test in a model with {say_count(others, 'other main effect')}: {say_p(p)}.",
        runs,
    )


def _wait_for_grid(grid: pd.DataFrame, outcome: str) -> Judgement | None:
    """A whole grid is judged, and one whose outcomes differ at all."""
    known = int(grid[outcome].notna().sum())
    if known < len(grid):
        return pending(f"{known} of {len(grid)} runs are recorded.", stats.run_ids(grid))
    if grid[outcome].nunique() == 1:
        reason = "All outcomes are equal: there is no variance to explain."
        return not_tested(reason, stats.run_ids(grid))
    return None


def _capital(sentence: str) -> str:
    return f"{sentence[:1].upper()}{sentence[1:]}"
