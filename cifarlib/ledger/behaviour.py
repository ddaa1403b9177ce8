"""Checks of the ledger on how runs behave: overfitting, dropout, confusions, starts; data."""

from itertools import combinations, pairwise

import numpy as np
import pandas as pd

from cifarlib import contrasts, published
from cifarlib.config import DATASETS
from cifarlib.contrasts import STEPS
from cifarlib.display import signed
from cifarlib.ledger import (
    NO_LABELS,
    Case,
    Choice,
    Outcome,
    Verdict,
    Waiting,
    check,
    judge_sign,
    p_is,
    printed,
)
from cifarlib.records import RunRecord
from cifarlib.statistics import ALPHA, adjust_holm, gap_test, two_proportions
from cifarlib.study import Condition

GAPS = "normal approximation for one seed, t test for several"

# ---------------------------------------------------------------------------------------------
# Training against test accuracy
# ---------------------------------------------------------------------------------------------


@check
def smallest_gaps(case: Case, *, stage: str, order: list[int], table: str) -> Outcome:
    """Some runs have the smallest differences of training and test accuracy, in this order."""
    theirs = published.read_table(table).set_index("run")["train_test_difference"].to_dict()
    first = sorted(theirs, key=lambda run: theirs[run])[: len(order)]
    case.note("; ".join(f"run {run}: {theirs[run]:g}" for run in first), first == order)
    runs = case.stage(stage)
    gaps = {run: _gap(case, conditions) for run, conditions in runs.items()}
    ranked = sorted(gaps, key=lambda run: gaps[run])
    found = ranked[: len(order)]
    if found == order:  # then each must be told from the next
        rivals = list(pairwise(ranked[: len(order) + 1]))
    else:
        rivals = [(a, b) for a, b in zip(found, order, strict=True) if a != b]
    p = adjust_holm([_gap_p(case, runs[a], runs[b]) for a, b in rivals])
    verdict: Verdict = "not distinguishable"
    if found == order and max(p) < ALPHA:
        verdict = "held"
    elif found != order and min(p) < ALPHA:
        verdict = "failed"
    tests = ", ".join(f"{a} and {b} {p_is(q)}" for (a, b), q in zip(rivals, p, strict=True))
    return Outcome(
        verdict,
        "; ".join(f"run {run}: {gaps[run]:.1f}" for run in found).replace("-", "−"),
        f"Runs {tests} (Holm; {GAPS})",
    )


@check
def overfits_more(case: Case, *, first: Choice, second: Choice, rows: list[str]) -> Outcome:
    """One run's training accuracy exceeds its test accuracy by more than another's."""
    one, other = (printed(row, "train_test_difference") for row in rows)
    case.note(f"{one:g} against {other:g} points", one > other)
    sets = case.pick(first, second)
    gaps, p = [_gap(case, conditions) for conditions in sets], _gap_p(case, *sets)
    return Outcome(
        judge_sign(gaps[0] - gaps[1], p),
        f"{gaps[0]:.1f} against {gaps[1]:.1f} points".replace("-", "−"),
        f"{GAPS}: {p_is(p)}",
    )


@check
def dropout_regularizes(case: Case, *, run: int, expected: bool) -> Outcome:
    """Every dropout narrows (or, where not ``expected``, none narrows) the train–test gap."""
    theirs = _dropout_table(run)["train_test_difference"]
    narrower = sum(theirs[step] < theirs[0] for step in STEPS)
    case.note(
        ", ".join(f"{gap:g}" for gap in theirs) + " points",
        narrower == (len(STEPS) if expected else 0),
    )
    base, *others = _need_dropout(case, run)
    gaps = [_gap(case, conditions) for conditions in (base, *others)]
    p = adjust_holm([_gap_p(case, base, conditions) for conditions in others])
    separate = [gap for gap, q in zip(gaps[1:], p, strict=True) if q < ALPHA]
    down, up = sum(gap < gaps[0] for gap in separate), sum(gap > gaps[0] for gap in separate)
    verdict: Verdict = "not distinguishable"
    if up if expected else down:
        verdict = "failed"
    elif down == len(STEPS) if expected else up == len(STEPS):
        verdict = "held"
    return Outcome(
        verdict,
        ", ".join(f"{gap:.1f}" for gap in gaps).replace("-", "−") + " points",
        f"By rising dropout, first none; {down} of {len(STEPS)} gaps are narrower and {up} wider "
        f"(Holm; {GAPS})",
    )


@check
def dropout_helps_not(case: Case, *, run: int) -> Outcome:
    """No dropout has a better test accuracy than none on a long run."""
    theirs = _dropout_table(run)["test_top1"]
    most = theirs[list(STEPS)].max()
    case.note(f"{theirs[0]:g} % without, at most {most:g} % with", most <= theirs[0])
    _need_dropout(case, run)
    pairs = [pair for pair in contrasts.dropout_contrasts(case.results, run).values() if pair]
    if len(pairs) < len(STEPS):
        raise Waiting(NO_LABELS)
    up = sum(pair.separate and pair.difference > 0 for pair in pairs)
    down = sum(pair.separate and pair.difference < 0 for pair in pairs)
    return Outcome(
        "failed" if up else "held" if down == len(pairs) else "not distinguishable",
        ", ".join(signed(1)(pair.difference) for pair in pairs) + " points",
        f"By rising dropout against none: {up} better, {down} worse, "
        f"{len(pairs) - up - down} not told apart (Holm; {pairs[0].basis})",
    )


def _dropout_table(run: int) -> pd.DataFrame:
    return published.read_table({9: "XIII", 13: "XIV"}[run]).set_index("dropout")


def _need_dropout(case: Case, run: int) -> list[list[Condition]]:
    others = ({"stage": "stage2-dropout", "run": run, "dropout": step} for step in STEPS)
    return case.pick({"stage": "stage1-long", "run": run}, *others)


def _gap(case: Case, conditions: list[Condition]) -> float:
    return float(np.mean([_gap_of(record) for record in case.records(conditions)]))


def _gap_of(record: RunRecord) -> float:
    return (record.accuracy("train") or 0.0) - (record.accuracy("test") or 0.0)


def _gap_p(case: Case, first: list[Condition], second: list[Condition]) -> float:
    """On the images of one common seed, or over several."""
    one, other = ({r.config.seed: r for r in case.records(c)} for c in (first, second))
    seeds = [seed for seed in one if seed in other]
    if not seeds:
        raise Waiting("No seed is recorded of both")
    if len(seeds) == 1:
        return gap_test(one[seeds[0]], other[seeds[0]])
    return contrasts.t_test([_gap_of(one[seed]) - _gap_of(other[seed]) for seed in seeds])


# ---------------------------------------------------------------------------------------------
# What is mistaken for what
# ---------------------------------------------------------------------------------------------


@check
def most_confused(case: Case, *, run: Choice, pair: list[str]) -> Outcome:
    """Two classes are mistaken for each other more often than any other two."""
    table = published.read_table("XII").set_index("label")
    theirs = {
        (a, b): int(table.loc[a, b] + table.loc[b, a]) for a, b in combinations(table.index, 2)
    }
    top = max(theirs, key=lambda names: theirs[names])
    case.note(", ".join(f"{a}–{b} {n}" for (a, b), n in theirs.items()), set(top) == set(pair))
    matrix, names = _need_confusion(case, run)
    ours = {
        (a, b): int(matrix[i, j] + matrix[j, i])
        for (i, a), (j, b) in combinations(enumerate(names), 2)
    }
    first, second = sorted(ours, key=lambda names: -ours[names])[:2]
    own = next(names for names in ours if set(names) == set(pair))
    rival = second if first == own else first
    p = _even(ours[own], ours[rival])
    return Outcome(
        judge_sign(ours[own] - ours[rival], p),
        ", ".join(f"{a}–{b} {ours[a, b]}" for a, b in (first, second)),
        f"{'–'.join(own)} against {'–'.join(rival)}: {ours[own]} to {ours[rival]} images, "
        f"binomial test {p_is(p)}",
    )


@check
def weakest_classes(case: Case, *, run: Choice, classes: list[str]) -> Outcome:
    """Some classes are those that are recognised least often."""
    table = published.read_table("XII").set_index("label")
    share = {name: table.loc[name, name] / 10 for name in classes}  # of 1,000 images a class
    case.note(", ".join(f"{name} {value:.1f}" for name, value in share.items()) + " %", None)
    matrix, names = _need_confusion(case, run)
    images = matrix.sum(axis=1)
    recall = dict(zip(names, 100 * matrix.diagonal() / images.clip(min=1), strict=True))
    lowest = sorted(recall, key=lambda name: recall[name])[: len(classes)]
    inside = max(classes, key=lambda name: recall[name])
    outside = min(set(names) - set(classes), key=lambda name: (recall[name], name))
    p = two_proportions(recall[outside], recall[inside], int(images.min()))
    return Outcome(
        judge_sign(recall[outside] - recall[inside], p),
        ", ".join(f"{name} {recall[name]:.1f}" for name in lowest) + " %",
        f"The lowest; {outside} {recall[outside]:.1f} % against {inside} {recall[inside]:.1f} %: "
        f"{p_is(p)}, two proportions",
    )


def _need_confusion(case: Case, run: Choice) -> tuple[np.ndarray, tuple[str, ...]]:
    """(test images by true and predicted class, over all recorded seeds; class names)."""
    (conditions,) = case.pick(run)
    records = case.records(conditions)
    matrices = np.array([r.result.predictions.confusion["test"] for r in records])
    return matrices.sum(axis=0), DATASETS[case.results.scale.data.name].classes


def _even(first: int, second: int) -> float:
    """Two-sided p of two counts being equally likely."""
    from scipy import stats

    return float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0


# ---------------------------------------------------------------------------------------------
# Starts, data and design
# ---------------------------------------------------------------------------------------------


@check
def equal_first_losses(case: Case, *, stage: str, tolerance: float) -> Outcome:
    """Before training, runs of one batch size and seed have the same loss, relatively."""
    case.note("equal for equal batch sizes (Fig. 5)", None)
    runs = case.stage(stage)
    groups: dict[tuple[int, int], list[float]] = {}
    for record in case.records(c for conditions in runs.values() for c in conditions):
        loss = record.result.history.validation.loss[0]
        key = (record.config.batch_size, record.config.seed)
        groups.setdefault(key, []).append(float("nan") if loss is None else loss)
    spread = max(max(losses) / min(losses) - 1 for losses in groups.values())
    means = sorted({f"{np.mean(losses):.3f}" for losses in groups.values()})
    return Outcome(
        "held" if spread <= tolerance else "failed",
        f"{', '.join(means)}; spread {spread:.1g}",
        f"Validation loss before training, {len(groups)} groups; the largest relative spread "
        f"within one may be {tolerance:g}",
    )


@check
def same_statistics(case: Case, *, decimals: int) -> Outcome:
    """Six resize methods give the same channel statistics to some decimals."""
    columns = [f"{statistic}_{channel}" for statistic in ("mean", "std") for channel in "rgb"]
    theirs = np.ptp(published.read_table("II")[columns].to_numpy(), axis=0)
    allowed = 0.5 * 10.0**-decimals
    case.note(_say_spread(theirs), theirs.max() <= allowed)
    data = case.results.data
    if data is None:
        raise Waiting("The data set is not described yet")
    ours = np.ptp(np.array([[*s.mean, *s.std] for s in data.resized.values()]), axis=0)
    return Outcome(
        "held" if ours.max() <= allowed else "failed",
        _say_spread(ours),
        f"The largest spread over {len(data.resized)} methods; numbers that are equal to "
        f"{decimals} decimals differ by {allowed:g} at most",
    )


def _say_spread(spread: np.ndarray) -> str:
    return f"means differ by {spread[:3].max():.4f}, deviations by {spread[3:].max():.4f}"


@check
def count_conditions(case: Case, *, stated: int, apart: list[str]) -> Outcome:
    """The paper has as many conditions as stated, with or without some stages ``apart``."""
    stages = {name: len(members) for name, members in published.read_conditions().stages.items()}
    total = sum(stages.values())
    count = total - sum(stages[name] for name in apart)
    case.note(f"{stated}; its tables have {count}", stated == count)
    return Outcome(
        "held" if stated in (count, total) else "failed",
        f"{count} or {total}",
        f"The tables list {count}; with what is only mentioned ({', '.join(apart)}) it is {total}",
    )
