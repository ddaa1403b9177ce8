"""Checks of the ledger on what the settings do: augmentation, and effects over whole grids."""

from typing import Any

import pandas as pd

from cifarlib import contrasts, effects, published
from cifarlib.contrasts import say_interval
from cifarlib.display import signed
from cifarlib.ledger import (
    Case,
    Outcome,
    Verdict,
    Waiting,
    check,
    judge_band,
    judge_sign,
    p_is,
    points,
    printed_tables,
    seeds,
)
from cifarlib.statistics import ALPHA, Interval, interaction, mean_interval

# ---------------------------------------------------------------------------------------------
# Augmentation, row by row
# ---------------------------------------------------------------------------------------------


@check
def largest_gain(case: Case, *, stated: float, tolerance: float) -> Outcome:
    """The largest gain from DAA-1 over matching rows is ``stated`` points, ± ``tolerance``."""
    gains = contrasts.tabulate_augmentation_gain(case.results)
    theirs = gains["DAA-1", "paper"]
    case.note(
        f"up to {stated:g}; its tables: {theirs.min():.1f} to {theirs.max():.1f} points",
        abs(theirs.max() - stated) <= tolerance,
    )
    ours = _need_gains(case, gains)
    return Outcome(
        "held" if abs(ours.max() - stated) <= tolerance else "failed",
        f"{signed(1)(ours.min())} to {signed(1)(ours.max())} points",
        f"The largest of {len(ours)} matching rows; allowed is {stated:g} ± {tolerance:g}",
    )


@check
def mean_gain(case: Case, *, least: float) -> Outcome:
    """DAA-1 adds on average at least ``least`` points over matching rows."""
    gains = contrasts.tabulate_augmentation_gain(case.results)
    theirs = gains["DAA-1", "paper"].mean()
    case.note(f"{points(theirs)} on average", theirs >= least)
    mean, interval = mean_interval(_need_gains(case, gains).tolist())
    interval = interval or Interval(mean, mean)
    return Outcome(
        judge_band(interval, mean, least, 100.0),
        points(mean),
        f"The mean of {len(gains)} matching rows and its t interval; claimed is {least:g} or more",
        say_interval(interval, 1),
    )


@check
def gains_everywhere(case: Case, *, tolerance: float) -> Outcome:
    """DAA-1 improves all matching rows but ``tolerance`` of them."""
    gains = contrasts.tabulate_augmentation_gain(case.results)
    total, better = len(gains), int((gains["DAA-1", "paper"] > 0).sum())
    case.note(f"{better} of {total} matching rows improve", better >= total - tolerance)
    ours = _need_gains(case, gains)
    separate = gains["DAA-1", "p (Holm)"].astype(float) < ALPHA
    up, down = int((separate & (ours > 0)).sum()), int((separate & (ours < 0)).sum())
    verdict: Verdict = "not distinguishable"
    if up >= total - tolerance:
        verdict = "held"
    elif down > tolerance:
        verdict = "failed"
    return Outcome(
        verdict,
        f"{(ours > 0).sum()} of {total} matching rows",
        f"By tests (Holm) {up} improve, {down} worsen, and {total - up - down} cannot be told",
    )


def _need_gains(case: Case, gains: pd.DataFrame) -> "pd.Series[float]":
    case.runs = tuple(dict.fromkeys(run for row in gains.attrs["runs"] for run in row))
    ours = gains["DAA-1", "ours"].astype(float)
    if ours.isna().any():
        raise Waiting(f"{ours.notna().sum()} of {len(ours)} matching rows can be compared")
    return ours


@check
def better_by_rows(case: Case, *, first: str, second: str, tables: list[str]) -> Outcome:
    """One stage has the higher test accuracy over rows of equal settings."""
    one, other = (published.read_table(n).set_index("run")["test_top1"] for n in tables)
    theirs = (one - other).tolist()
    mean, interval = _spread(theirs)
    up = sum(difference > 0 for difference in theirs)
    case.note(
        f"{points(mean)} ({say_interval(interval)}), better in {up} of {len(theirs)} rows", mean > 0
    )
    groups = [contrasts.group(case.results, stage) for stage in (first, second)]
    case.need(*(conditions for runs in groups for conditions in runs.values()))
    ranked = [contrasts.rank(case.results, runs) for runs in groups]
    ours = [ranked[0][run] - ranked[1][run] for run in sorted(ranked[0])]
    mean, interval = _spread(ours)
    return Outcome(
        judge_sign(mean, 1.0 if 0 in interval else 0.0),
        points(mean),
        f"Better in {sum(d > 0 for d in ours)} of {len(ours)} rows; t interval over the rows",
        say_interval(interval),
    )


def _spread(values: list[float]) -> tuple[float, Interval]:
    mean, interval = mean_interval(values)
    return mean, interval or Interval(mean, mean)


# ---------------------------------------------------------------------------------------------
# Effects over a grid
# ---------------------------------------------------------------------------------------------


@check
def explains_more(case: Case, *, grid: str, above: list[str], below: list[str]) -> Outcome:
    """Each of some settings explains more of the variance of a grid than each of others."""
    theirs = effects.published_effects(grid)["share"]
    case.note(_shares(theirs[[*above, *below]]), theirs[above].min() > theirs[below].max())
    ours = effects.variance(_need_grid(case, grid), grid)
    shares, p = ours["share"], ours["p"]
    lowest, highest = shares[above].idxmin(), shares[below].idxmax()
    verdict: Verdict = "not distinguishable"
    if shares[lowest] > shares[highest] and (p[above] < ALPHA).all():
        verdict = "held"
    elif shares[lowest] < shares[highest] and p[highest] < ALPHA:
        verdict = "failed"
    return Outcome(
        verdict,
        _shares(shares[[*above, *below]]),
        f"F tests: {effects.NAMES[lowest]} {p_is(p[lowest])}, "
        f"{effects.NAMES[highest]} {p_is(p[highest])}; {seeds(len(case.results.scale.seeds))}",
    )


@check
def significant(case: Case, *, grid: str, setting: str) -> Outcome:
    """A setting makes a significant difference over a grid (F test, main effects)."""
    p = effects.published_effects(grid)["p"]
    others = [name for name in effects.GRIDS[grid].factors if name != setting and p[name] < ALPHA]
    also = " and ".join(effects.NAMES[name] for name in others)
    case.note(p_is(p[setting]) + (f"; {also} as well" if also else ""), p[setting] < ALPHA)
    ours = effects.variance(_need_grid(case, grid), grid).loc[setting]
    return Outcome(
        "held" if ours["p"] < ALPHA else "not distinguishable",
        p_is(ours["p"]),
        f"F test, main effects: {100 * ours['share']:.0f} % of the variance; "
        f"{seeds(len(case.results.scale.seeds))}",
    )


@check
def interacts(case: Case, *, grid: str, pair: list[str]) -> Outcome:
    """The effect of one setting depends on another (F test of their interaction)."""
    one, other = pair
    factors = effects.GRIDS[grid].factors
    share, p = interaction(effects.published_grid(grid), effects.OUTCOME, factors, (one, other))
    case.note(f"{100 * share:.0f} % of the variance, {p_is(p)}", p < ALPHA)
    share, p = interaction(_need_grid(case, grid), effects.OUTCOME, factors, (one, other))
    return Outcome(
        "held" if p < ALPHA else "not distinguishable",
        f"{100 * share:.0f} % of the variance",
        f"F test beside all main effects: {p_is(p)}; {seeds(len(case.results.scale.seeds))}",
    )


def _shares(shares: "pd.Series[float]") -> str:
    return ", ".join(f"{effects.NAMES[n]} {100 * share:.0f}" for n, share in shares.items()) + " %"


def _need_grid(case: Case, grid: str) -> pd.DataFrame:
    conditions = effects.conditions(case.results, grid)
    case.need(*([condition] for condition in conditions))
    rows = effects.recorded_grid(case.results, grid)
    if rows is None or rows[effects.OUTCOME].nunique() == 1:
        raise Waiting("All accuracies are equal: there is no variance to explain")
    return rows


@check
def top_runs_share(
    case: Case, *, stage: str, setting: str, value: Any, above: float, tables: list[str]
) -> Outcome:
    """The runs above a printed accuracy share a setting; ours: as many of the best runs do."""
    theirs = printed_tables(tables).query("test_top1 > @above")
    count, sharing = len(theirs), int((theirs[setting] == value).sum())
    case.note(f"{sharing} of {count} runs above {above:g} %", sharing == count)
    runs = case.stage(stage)
    ranked = list(contrasts.rank(case.results, runs))
    has = {run: conditions[0].settings[setting] == value for run, conditions in runs.items()}
    others = [run for run in ranked[:count] if not has[run]]
    left_out = [run for run in ranked[count:] if has[run]]
    verdict: Verdict = "held"
    reason = f"The {count} best runs, as many as the paper has above {above:g} %"
    if others and left_out:
        pair = case.contrast(runs[others[0]], runs[left_out[0]])
        verdict = "not distinguishable"
        if judge_sign(pair.difference, pair.p) == "held":
            verdict = "failed"
        reason += f"; run {others[0]} against run {left_out[0]}: {p_is(pair.p)}, {pair.basis}"
    return Outcome(verdict, f"{count - len(others)} of the {count} best runs", reason)
