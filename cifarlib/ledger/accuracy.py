"""Checks of the ledger on single accuracies and on which of several runs is better."""

from itertools import combinations
from typing import Any

from cifarlib import contrasts
from cifarlib.contrasts import say_interval, say_range
from cifarlib.ledger import (
    NO_LABELS,
    Case,
    Choice,
    Outcome,
    Waiting,
    check,
    judge_band,
    judge_family,
    judge_sign,
    measure,
    p_is,
    points,
    printed,
    printed_tables,
    seeds,
)
from cifarlib.statistics import two_proportions

LEVELS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}

ROUNDING = 0.051  # points by which one printed decimal may differ from the exact number


@check
def accuracy(case: Case, *, run: Choice, row: str, stated: float, tolerance: float) -> Outcome:
    """A test accuracy equals the stated one, ± ``tolerance`` points."""
    case.note(f"{stated:g} %", abs(stated - printed(row)) < ROUNDING)
    (conditions,) = case.pick(run)
    mean, interval, how_many = measure(case.records(conditions))
    return Outcome(
        judge_band(interval, mean, stated - tolerance, stated + tolerance),
        f"{mean:.1f} %",
        f"{points(mean - stated)} from the paper's, {how_many}; allowed is ± {tolerance:g}",
        say_range(interval),
    )


@check
def near(case: Case, *, run: Choice, row: str, reference: str, tolerance: float) -> Outcome:
    """A test accuracy falls short of a printed one by at most ``tolerance`` points."""
    theirs, goal = printed(row), printed(reference)
    case.note(f"{theirs:g} against {goal:g} %", round(goal - theirs, 6) <= tolerance)
    (conditions,) = case.pick(run)
    mean, interval, how_many = measure(case.records(conditions))
    return Outcome(
        judge_band(interval, mean, goal - tolerance, 100.0),
        f"{mean:.1f} %",
        f"{points(mean - goal)} from {goal:g} %, {how_many}; it may fall short by {tolerance:g}",
        say_range(interval),
    )


@check
def reaches(case: Case, *, stage: str, tables: list[str], least: float) -> Outcome:
    """The largest training accuracy of a stage is at least ``least`` %."""
    theirs = printed_tables(tables)["train_top1"].max()
    case.note(f"up to {theirs:.1f} % on the training images", theirs >= least)
    runs = case.stage(stage)
    ours = case.results.stage(stage)["train_top1"].max()
    return Outcome(
        "held" if ours >= least else "failed",
        f"up to {ours:.1f} %",
        f"The largest of {len(runs)} runs; at least {least:g} % is asked for",
    )


@check
def better(case: Case, *, first: Choice, second: Choice, rows: list[str]) -> Outcome:
    """One setting has a higher test accuracy than another."""
    one, other = map(printed, rows)
    p = two_proportions(one, other, contrasts.PUBLISHED_IMAGES)
    case.note(f"{one:g} against {other:g} % ({p_is(p)})", one > other)
    pair = case.contrast(*case.pick(first, second))
    return Outcome(
        judge_sign(pair.difference, pair.p),
        points(pair.difference),
        f"{pair.basis}: {p_is(pair.p)}",
        say_interval(contrasts.difference_interval(case.results, pair)),
    )


@check
def close(
    case: Case, *, first: Choice, second: Choice, rows: list[str], tolerance: float
) -> Outcome:
    """Two settings' test accuracies differ by at most ``tolerance`` points."""
    one, other = map(printed, rows)
    case.note(f"{one:g} and {other:g} %", abs(one - other) <= tolerance)
    pair = case.contrast(*case.pick(first, second))
    interval = contrasts.difference_interval(case.results, pair)
    if -tolerance <= interval.low and interval.high <= tolerance:
        verdict, lies = "held", "inside"
    elif interval.low > tolerance or interval.high < -tolerance:
        verdict, lies = "failed", "outside"
    else:
        verdict, lies = "not distinguishable", "partly outside"
    return Outcome(
        verdict,
        points(pair.difference),
        f"The interval lies {lies} ± {tolerance:g} points; {seeds(pair.seeds)}",
        say_interval(interval),
    )


@check
def best_run(case: Case, *, stage: str, run: int, tables: list[str]) -> Outcome:
    """A run has the highest test accuracy of its stage."""
    theirs = printed_tables(tables).set_index("run")["test_top1"]
    case.note(_say_best(theirs.to_dict(), run), theirs.idxmax() == run)
    runs = case.stage(stage)
    ranked = contrasts.rank(case.results, runs)
    pairs = contrasts.against_best(case.results, runs, run)
    if len(pairs) < len(runs) - 1:
        raise Waiting(NO_LABELS)
    place = 1 + sum(value > ranked[run] for value in ranked.values())
    beaten_by = [other for other, pair in pairs.items() if pair.separate and pair.difference < 0]
    ties = sum(not pair.separate for pair in pairs.values())
    reason = f"Run {run} is number {place} of {len(runs)}, and {ties} cannot be told from it"
    if beaten_by:
        reason += f"; {len(beaten_by)} are better, such as run {beaten_by[0]}"
    return Outcome(
        judge_family(list(pairs.values())),
        _say_best(ranked, run),
        f"{reason} (Holm; {next(iter(pairs.values())).basis})",
    )


def _say_best(accuracies: dict[int, float], run: int) -> str:
    top = max(accuracies, key=lambda name: accuracies[name])
    said = f"run {top}: {accuracies[top]:.1f} %"
    return said if top == run else f"{said}; run {run}: {accuracies[run]:.1f} %"


@check
def best_setting(case: Case, *, stage: str, setting: str, value: Any, tables: list[str]) -> Outcome:
    """The best run with a setting's value beats the best run with any other value."""
    theirs = printed_tables(tables).groupby(setting, sort=False)["test_top1"].max()
    case.note(_say_each(theirs.to_dict()), theirs.idxmax() == value)
    case.stage(stage)
    best = {}
    for name in theirs.index:
        runs = contrasts.group(case.results, stage, **{setting: name})
        best[name] = runs[next(iter(contrasts.rank(case.results, runs)))]
    ours = {name: contrasts.accuracy(case.results, run) for name, run in best.items()}
    others = [run for name, run in best.items() if name != value]
    pairs = contrasts.adjust([case.contrast(best[value], other) for other in others])
    said = ", ".join(p_is(pair.adjusted or 0.0) for pair in pairs)
    return Outcome(
        judge_family(pairs),
        _say_each(ours),
        f"The best run of each, chosen by these accuracies; {said} (Holm; {pairs[0].basis})",
    )


def _say_each(values: dict[Any, float | None]) -> str:
    said = (f"{LEVELS.get(name, name)} {value:.1f}" for name, value in values.items())
    return ", ".join(said) + " %"


@check
def no_differences(case: Case, *, stage: str) -> Outcome:
    """No two runs of a stage can be told apart by their test accuracy."""
    case.note("no accuracy is printed, and no test named", None)
    runs = case.stage(stage)
    pairs = contrasts.adjust([case.contrast(a, b) for a, b in combinations(runs.values(), 2)])
    apart = sum(pair.separate for pair in pairs)
    accuracies = contrasts.rank(case.results, runs).values()
    return Outcome(
        "failed" if apart else "held" if not case.results.scale.reduced else "not distinguishable",
        f"{min(accuracies):.1f} to {max(accuracies):.1f} %",
        f"{apart} of {len(pairs)} pairs are told apart (Holm; {pairs[0].basis}); "
        "that none is would not make them equal",
    )
