"""Judges: the five verdicts, and that noise cannot win one."""

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t

from cifarlib.analysis import calibration, judges
from cifarlib.analysis import statistics as stats
from cifarlib.analysis.statistics import Estimate, Interval, Noise
from cifarlib.formatting import format_p

NOISE = Noise(0.5, 18, 2, Interval(0.4, 0.7))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1.0, 1.1, 0.9], "held"),
        ([-1.0, -1.1, -0.9], "did not hold"),
        ([1.0, -1.1, 0.3], "not distinguishable"),
        ([0.0, 0.0, 0.0], "not tested"),
        ([1.0, math.nan, 1.1], "pending"),
        ([], "pending"),
        ([3.0], "pending"),
        ([3.0, 3.0], "not distinguishable"),
    ],
)
def test_positive_has_five_verdicts(values, verdict):
    assert judges.positive(values).verdict == verdict


def test_positive_does_not_decide_by_one_seed_without_the_noise_of_seeds():
    alone = judges.positive([3.0])
    assert (alone.ours, alone.reason) == ("+3.0 points", judges.UNDECIDABLE)
    assert judges.positive(NOISE.pair(3.0)).verdict == "held"
    assert judges.positive(NOISE.pair(1.0)).verdict == "not distinguishable"
    assert judges.positive(NOISE.pair(0.0)).verdict == "not tested"


def test_within_needs_the_whole_interval_and_not_the_point():
    values = [9.0, 10.0, 11.0]  # 10 ± 2.5
    assert judges.within(values, 7, 13).verdict == "held"
    assert judges.within(values, 9.9, 10.1).verdict == "not distinguishable"
    assert judges.within(values, 13, 20).verdict == "did not hold"


def test_within_says_where_no_outcome_could_have_held():
    assert "and is wider than that" in judges.within([9, 10, 11], 9, 11).reason
    assert "wider" not in judges.within([9, 10, 11], 9, 20).reason


def test_an_interval_reads_as_0_only_where_it_is():
    assert Interval(-0.63, -0.049).say(sign=True) == "−0.63 to −0.05"
    assert Interval(-0.6, 0.0).say(sign=True) == "−0.6 to 0.0"
    assert Interval(0.0001, 2.0).say() == "0.000 to 2.000"  # two further decimals at most


def test_a_p_below_5_percent_does_not_read_as_5_percent():
    assert [format_p(p) for p in (0.0496, 0.04998, 0.0501)] == ["0.0496", "0.0499", "0.050"]


@pytest.mark.parametrize("bounds", [(0, math.inf), (-5, 5), (8, 12), (-math.inf, 3), (11, 30)])
def test_within_has_a_p_below_5_percent_where_it_decides(bounds):
    random = np.random.default_rng(3)
    for _ in range(100):
        found = judges.within(random.normal(9, 3, 6), *bounds)
        assert (found.p < 0.05) == (found.verdict != "not distinguishable")


def test_equal_holds_inside_a_margin_only():
    assert judges.equal([0.1, -0.1, 0.05], 1.0).verdict == "held"
    assert judges.equal([0.5, -1.5, 1.0], 1.0).verdict == "not distinguishable"
    assert judges.equal([5.0, 5.1, 4.9], 1.0).verdict == "did not hold"


def test_judges_wait_for_no_run_that_diverged():
    """Nothing more comes of it: the others are judged, and it is not the best."""
    grid = pd.DataFrame(
        [
            {"rate": n // 3, "batch": n % 3, "seed": 42, "run_id": f"{n // 3}{n % 3}"}
            for n in range(9)
        ]
    ).assign(test_top1=[50.0, 51.0, 50.5, 60.0, 61.0, 60.7, 70.0, 71.0, None])
    for state, verdict in (("pending", "pending"), ("diverged", "held")):
        ended = grid["test_top1"].notna()
        runs = grid.assign(state=ended.map({True: "recorded", False: state}))
        assert judges.effect(runs, "test_top1", ["rate", "batch"], "rate").verdict == verdict
    scores = stats.ended(runs).groupby("run_id")["test_top1"].apply(list)
    assert judges.best(scores, "21", NOISE).verdict == "not distinguishable"
    assert judges.best(scores, "22", NOISE).verdict == "did not hold"
    lost, other = runs[runs["run_id"] == "22"], runs[runs["run_id"] == "21"]
    assert stats.contrast(lost, other).estimate.missing == 0


def test_best_beats_every_other_one():
    scores = {26: 80.0, 1: 70.0, 2: 75.0}
    assert judges.best(scores, 26, NOISE).verdict == "held"
    assert judges.best(scores, 1, NOISE).verdict == "did not hold"
    close = judges.best(scores | {2: 79.5}, 26, NOISE)
    assert close.verdict == "not distinguishable"
    assert "1 of 3; pairwise, 1 other cannot be distinguished from it; seed noise" in close.reason
    assert (
        "3 of 3; pairwise, 0 others cannot" in judges.best(scores, 1, NOISE).reason
    )  # both are better
    alone = judges.best(scores, 26, None)
    assert (alone.verdict, alone.ours) == ("pending", "run 26: 80.0 %")
    assert alone.reason == "Run 26 is number 1 of 3. One seed: not decidable."
    assert judges.best(scores | {2: math.nan}, 26, NOISE).verdict == "pending"
    assert judges.best(scores, 1, NOISE, smallest=True).verdict == "held"
    assert "run 26: 80.0 %; run 1: 70.0 %" in judges.best(scores, 1, NOISE).ours
    assert f"{NOISE.sd:.2f} points" in judges.best(scores, 1, NOISE).reason
    doublings = replace(NOISE, unit=" doublings")
    said = judges.best(scores, 1, doublings, unit=" doublings").reason
    assert f"{NOISE.sd:.2f} doublings" in said


def test_best_uses_the_seeds_there_are():
    scores = {1: [80.0, 81.0], 2: [79.0, 80.0]}
    single = judges.best({1: 80.5, 2: 79.5}, 1, NOISE)
    assert judges.best(scores, 1, NOISE).p < single.p
    assert judges.best({1: 80.5}, 1, NOISE).verdict == "not tested"  # all others diverged
    assert judges.best(scores | {2: [79.0]}, 1, NOISE).n == 1  # of the setting with the fewest


def test_best_is_a_test_of_two_means_with_as_many_seeds_as_each_has():
    found = judges.best({1: [80.0, 81.0, 80.4, 80.6], 2: 80.0}, 1, NOISE)
    error = NOISE.sd * math.sqrt(1 / 4 + 1)
    assert found.p == pytest.approx(2 * student_t.sf(0.5 / error, NOISE.df))


def test_decide_needs_every_p_to_be_small_and_to_refute_one_large_by_holm():
    decided = {
        (0.024, 0.01): ("held", 0.048),
        (0.026, 0.01): ("not distinguishable", 0.052),
        (0.98, 0.5): ("not distinguishable", 0.08),  # one of two: doubled
        (0.99, 0.5): ("did not hold", 0.04),
    }
    for more, (verdict, p) in decided.items():
        assert judges._decide(np.array(more)) == (verdict, pytest.approx(p))


def test_largest_allows_for_the_noise_of_the_largest():
    frame = pd.DataFrame({"row": range(4), "test_top1": [80.0, 81.0, 82.0, 92.0]})
    pairs = stats.paired(frame, frame.assign(test_top1=80.0), ["row"])
    assert judges.largest(pairs, 9, 15, NOISE).verdict == "held"
    assert judges.largest(pairs, 9, 15, NOISE).ours == "up to +12.0 points"
    assert judges.largest(pairs, 11.9, 12.1, NOISE).verdict == "not distinguishable"
    assert judges.largest(pairs, 0, 8, NOISE).verdict == "did not hold"
    assert judges.largest(pairs, 9, 15, None).verdict == "pending"
    for low in np.linspace(0, 20, 50):
        found = judges.largest(pairs, low, low + 5, NOISE)
        assert (found.p < 0.05) == (found.verdict != "not distinguishable")


def test_all_above_needs_every_pair_of_columns():
    random = np.random.default_rng(9)
    table = pd.DataFrame(random.normal([60, 70, 90, 90.1], 1, (8, 4)), columns=list("abcd"))
    assert judges.all_above(table, ["c", "d"], ["a", "b"]).verdict == "held"
    assert judges.all_above(table, ["a", "d"], ["b"]).verdict == "did not hold"
    assert judges.all_above(table, ["d"], ["c"]).verdict == "not distinguishable"
    assert judges.all_above(table[:1], ["d"], ["a"]).verdict == "pending"
    assert judges.all_above(table[:0], ["d"], ["a"]).verdict == "pending"
    table.loc[0, "a"] = math.nan
    waits = judges.all_above(table, ["d"], ["a"])
    assert (waits.verdict, waits.reason) == ("pending", "Not all runs are recorded: 1 missing.")
    assert judges.all_above(table, ["c"], ["b"]).verdict == "held"  # which are complete


def test_all_above_shows_the_pair_that_decides():
    """The one least in favour of the claim, not the one with the smallest mean."""
    noisy = pd.DataFrame({"a": [0.0] * 4, "b": [-2, -2.1, -1.9, -2], "c": [-9, 3.0, -4, -2]})
    found = judges.all_above(noisy, ["a"], ["b", "c"])
    assert found.verdict == "not distinguishable"
    assert found.ours == "a less c: +3.0 points"
    assert found.reason == (
        "Shown is the least favourable of 2 differences, its interval and p corrected for all; "
        "4 runs."
    )
    difference = noisy["a"] - noisy["c"]
    reach = student_t.ppf(1 - 0.05 / 2 / 2, 3) * difference.sem()
    assert found.interval == f"{3 - reach:+.1f} to {3 + reach:+.1f}".replace("-", "−")
    noisy["c"] -= 4  # now less than b in the mean, and still not clearly below a
    assert judges.all_above(noisy, ["a"], ["b", "c"]).ours == "a less c: +7.0 points"


def test_nearly_all_allows_for_some():
    frame = pd.DataFrame({"row": range(5), "test_top1": [5.0, 6.0, 7.0, 8.0, 0.1]})
    pairs = stats.paired(frame, frame.assign(test_top1=0.0), ["row"])
    assert judges.nearly_all(pairs, 1, NOISE).verdict == "held"
    assert judges.nearly_all(pairs, 0, NOISE).verdict == "not distinguishable"
    below = stats.paired(frame.assign(test_top1=0.0), frame, ["row"])
    assert judges.nearly_all(below, 1, NOISE).verdict == "did not hold"
    assert judges.nearly_all(pairs, 1, None).verdict == "pending"
    assert judges.nearly_all(pairs, 5, NOISE).verdict == "not tested"  # all may be below


@pytest.mark.parametrize(
    ("decides", "verdict", "times"),  # one-sided p values count as often as there were choices
    [(1.8, "held", 2), (1.6, "not distinguishable", 2),
     (-2.2, "did not hold", 4), (-1.6, "not distinguishable", 4)],
)  # fmt: skip
def test_nearly_all_is_corrected_for_the_choice_of_those_that_may_be_below(decides, verdict, times):
    frame = pd.DataFrame({"row": range(5), "test_top1": [9.0, 9.0, 9.0, decides, -9.0]})
    pairs = stats.paired(frame, frame.assign(test_top1=0.0), ["row"])
    found = judges.nearly_all(pairs, 1, NOISE)
    p = student_t.sf(abs(decides) / (NOISE.sd * math.sqrt(2)), NOISE.df)
    assert (found.verdict, found.p) == (verdict, pytest.approx(2 * times * p))
    clear = 3 + (decides > 0)
    assert found.reason.startswith(f"Of 5 differences, {clear} are above 0 by themselves (Holm)")


def test_every_needs_each_part_to_hold():
    held, failed = judges.positive([1.0, 1.1, 0.9]), judges.positive([-9.0, -9.1, -8.9])
    open_, missing = judges.positive([1.0, -1.0, 0.2]), judges.pending("No run is recorded.")
    assert judges.every({"a": held, "b": held}).verdict == "held"
    assert judges.every({"a": held, "b": open_}).verdict == "not distinguishable"
    assert judges.every({"a": held, "b": missing}).verdict == "pending"
    assert judges.every({"a": missing, "b": failed}).verdict == "did not hold"
    assert judges.every({"a": held, "b": open_}).p == open_.p
    barely = judges.Judgement("did not hold", p=0.03, n=6)
    assert judges.every({"a": barely}).verdict == "did not hold"
    both = judges.every({"a": barely, "b": held})  # one of two: Holm's method doubles its p
    assert (both.verdict, both.p, both.n) == ("not distinguishable", 0.06, 3)
    assert judges.every({"a": judges.Judgement("did not hold", p=0.6), "b": held}).p == 1
    assert judges.every({"a": held, "b": judges.not_tested("Equal.")}).verdict == "not tested"
    counted = judges.every({"a": judges.fact(False, "diverged"), "b": held})  # no test, so no p
    assert (counted.verdict, counted.p) == ("did not hold", None)
    none = judges.every({"a": missing, "b": missing})
    assert (none.verdict, none.ours) == ("pending", "–")
    assert none.reason == "None of its 2 parts can be judged yet."
    one = judges.every({"a": judges.pending(judges.UNDECIDABLE, ours="+3.0 points"), "b": missing})
    assert (one.verdict, one.ours) == ("pending", "a +3.0 points; b –")


def test_explains_more_tells_a_large_share_from_a_small_one():
    grid = calibration.simulate_grid(
        np.random.default_rng(5), {"learning_rate": 9, "batch_size": 3}
    )
    first, *rest = calibration.LEVELS
    found = judges.explains_more(grid, "test_top1", [first], rest)
    assert (found.verdict, found.n) == ("held", 32)
    assert re.fullmatch(r"learning rate less [a-z ]+, \+\d+ to \+\d+", found.interval)
    found = judges.explains_more(grid, "test_top1", rest, [first])
    assert found.verdict == "did not hold"


def test_explains_more_needs_a_complete_grid_that_varies_and_leaves_noise():
    grid = calibration.simulate_grid(np.random.default_rng(5), {"learning_rate": 9})
    first, *rest = calibration.LEVELS
    lost = grid.assign(state="recorded")
    lost.loc[3, ["state", "test_top1"]] = "diverged", math.nan
    found = judges.explains_more(lost, "test_top1", [first], rest)
    assert (found.verdict, found.n) == ("held", 31)  # without its partner, too
    full = grid.query("augmentation == 0 and batch_size == 0")
    few = judges.explains_more(full, "test_top1", [first], ["weight_decay"])
    assert (few.verdict, few.reason[:12]) == ("not distinguishable", "Too few runs")
    grid.loc[3, "test_top1"] = math.nan
    assert judges.explains_more(grid, "test_top1", [first], rest).verdict == "pending"
    grid["test_top1"] = 10.0
    assert judges.explains_more(grid, "test_top1", [first], rest).verdict == "not tested"


def test_effect_never_refutes_by_finding_nothing():
    grid = calibration.simulate_grid(np.random.default_rng(6), {"learning_rate": 9})
    factors = list(calibration.LEVELS)
    assert judges.effect(grid, "test_top1", factors, "learning_rate").verdict == "held"
    idle = judges.effect(grid, "test_top1", factors, "learning_rate:batch_size")
    assert idle.verdict == "not distinguishable"
    full = grid.query("augmentation == 0 and batch_size == 0")  # which two factors fill
    few = judges.effect(full, "test_top1", ["learning_rate", "weight_decay"], "learning_rate")
    assert (few.verdict, few.p, few.reason[:12]) == ("not distinguishable", None, "Too few runs")


# ---------------------------------------------------------------------------------------------
# Calibration
# ---------------------------------------------------------------------------------------------

DRAWS = 300
MOST = stats.ALPHA * DRAWS + 3 * math.sqrt(DRAWS * stats.ALPHA * (1 - stats.ALPHA))


@pytest.mark.integration
@pytest.mark.parametrize("name", calibration.NULLS)
def test_judges_give_at_most_5_percent_false_verdicts_on_null_data(name):
    held, not_held = calibration.count_verdicts(calibration.NULLS[name], DRAWS, seed=7)
    assert held + not_held <= MOST


def test_judges_give_few_verdicts_on_permuted_labels_of_a_grid():
    random = np.random.default_rng(8)
    grid = calibration.simulate_grid(random, {"learning_rate": 9, "batch_size": 4})
    sides = [grid[grid["augmentation"] == side] for side in (0, 1)]
    pairs = stats.paired(*sides, ["learning_rate", "batch_size", "weight_decay"]).difference
    found = [judges.positive(pairs * random.choice([-1, 1], len(pairs))) for _ in range(DRAWS)]
    assert sum(one.verdict in ("held", "did not hold") for one in found) <= MOST


def test_a_judge_that_reads_one_pair_of_networks_as_settings_would_fail_the_calibration():
    """The rule that was: an accuracy of one network above another's, by the images' noise alone."""

    def naive(random, effect):
        one, other = random.normal([effect, 0], calibration.NOISE)
        return judges.positive(Estimate(one - other, 0.3, 1000, 1, "pair of networks"))

    assert sum(calibration.count_verdicts(naive, DRAWS)) > MOST


def test_power_rises_with_the_effect():
    power = calibration.tabulate_power((0.25, 5.0), draws=40)
    for _, rows in power.groupby("judge"):
        assert rows["power"].is_monotonic_increasing
        assert rows["power"].iloc[-1] > 90


def test_false_verdicts_are_tabulated_with_their_interval():
    table = calibration.tabulate_false_verdicts(draws=20)
    assert table["judge"].tolist() == list(calibration.NULLS)
    assert (table["low"] <= table["rate"]).all()
    assert (table["rate"] <= table["high"]).all()
