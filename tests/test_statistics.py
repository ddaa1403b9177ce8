"""Intervals, tests and effect sizes against identities and formulas worked out by other means."""

from itertools import product
from math import comb

import numpy as np
import pandas as pd
import pytest
from conftest import make_data_record, make_record, tiny_conditions
from scipy import stats

from cifarlib import statistics
from cifarlib.records import pack_classes
from cifarlib.statistics import Interval

# ---------------------------------------------------------------------------------------------
# One accuracy
# ---------------------------------------------------------------------------------------------


def test_wilson_is_its_formula():
    correct, images, z = 8_997, 10_000, stats.norm.ppf(0.975)
    share = correct / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    spread = share * (1 - share) / images + z**2 / (4 * images**2)
    half = z * np.sqrt(spread) / (1 + z**2 / images)
    found = statistics.wilson_interval(correct, images)
    assert (found.low, found.high) == pytest.approx((100 * (centre - half), 100 * (centre + half)))
    assert 89.97 in found
    assert found.high - found.low == pytest.approx(1.18, abs=0.01)


def test_wilson_stays_inside_at_the_ends():
    assert statistics.wilson_interval(0, 50).low == pytest.approx(0, abs=1e-9)
    assert statistics.wilson_interval(50, 50).high == pytest.approx(100)
    assert statistics.wilson_interval(50, 50).low < 95


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_wilson_covers_the_true_share_as_often_as_it_says(share):
    images = 200
    inside = [
        stats.binom.pmf(k, images, share)
        for k in range(images + 1)
        if 100 * share in statistics.wilson_interval(k, images)
    ]
    assert sum(inside) == pytest.approx(0.95, abs=0.02)  # exact coverage, no simulation


def test_mean_and_t_interval_of_seeds():
    values = [89.4, 89.9, 90.1, 89.6, 89.8]
    mean, found = statistics.mean_interval(values)
    half = stats.t.ppf(0.975, 4) * np.std(values, ddof=1) / np.sqrt(5)
    assert mean == pytest.approx(89.76)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))


def test_one_seed_has_no_interval_and_equal_seeds_a_point():
    assert statistics.mean_interval([90.0]) == (90.0, None)
    assert statistics.mean_interval([90.0, 90.0]) == (90.0, Interval(90.0, 90.0))


# ---------------------------------------------------------------------------------------------
# Two runs on the same images
# ---------------------------------------------------------------------------------------------


def two_runs(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    one = np.repeat([True, True, False, False], [both, first, second, neither])
    other = np.repeat([True, False, True, False], [both, first, second, neither])
    return one, other


def test_mcnemar_is_an_even_binomial_on_the_images_that_differ():
    found = statistics.mcnemar(*two_runs(70, 12, 4, 14))
    assert (found.images, found.only_first, found.only_second) == (100, 12, 4)
    assert found.difference == pytest.approx(8.0)
    by_hand = 2 * sum(comb(16, k) for k in range(5)) / 2**16
    assert found.p == pytest.approx(by_hand) == pytest.approx(stats.binomtest(4, 16).pvalue)


def test_mcnemar_is_symmetric_and_sees_nothing_in_equal_runs():
    one, other = two_runs(70, 12, 4, 14)
    assert statistics.mcnemar(one, other).p == statistics.mcnemar(other, one).p
    assert statistics.mcnemar(one, one).p == 1.0
    assert statistics.mcnemar(one, one).difference == 0.0


def test_mcnemar_errs_no_more_often_than_it_says():
    differ = 30  # images; under the null each goes either way
    wrong = sum(
        stats.binom.pmf(k, differ, 0.5)
        for k in range(differ + 1)
        if statistics.mcnemar(*two_runs(50, k, differ - k, 20)).p < statistics.ALPHA
    )
    assert 0.02 < wrong <= 0.05


def test_paired_bootstrap_is_seeded_and_near_the_normal_interval():
    one, other = two_runs(800, 60, 40, 100)
    found = statistics.bootstrap_difference(one, other)
    assert found == statistics.bootstrap_difference(one, other)
    error = 100 * np.std(one.astype(float) - other) / np.sqrt(1000)
    assert found.low == pytest.approx(2.0 - 1.96 * error, abs=0.15)
    assert found.high == pytest.approx(2.0 + 1.96 * error, abs=0.15)


def test_pairing_makes_the_bootstrap_narrower_than_independent_images_would():
    one, other = two_runs(800, 60, 40, 100)
    paired = statistics.bootstrap_difference(one, other)
    variance = one.var() / 1000 + other.var() / 1000
    assert paired.high - paired.low < 0.7 * 2 * 1.96 * 100 * np.sqrt(variance)


def test_bootstrap_of_equal_runs_is_a_point():
    one, _ = two_runs(800, 60, 40, 100)
    assert statistics.bootstrap_difference(one, one) == Interval(0.0, 0.0)


def test_holm_is_its_definition():
    p = [0.01, 0.04, 0.03, 0.005]
    by_hand = [0.03, 0.06, 0.06, 0.02]  # 4·0.005, 3·0.01, 2·0.03, max(0.06, 0.04)
    assert statistics.adjust_holm(p) == pytest.approx(by_hand)
    assert statistics.adjust_holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.adjust_holm([]) == []


def test_two_proportions_is_the_chi_squared_test_of_the_table():
    counts = [[8_997, 1_003], [8_940, 1_060]]
    expected = stats.chi2_contingency(counts, correction=False).pvalue
    assert statistics.two_proportions(89.97, 89.40, 10_000) == pytest.approx(expected)
    assert expected > 0.05  # the paper's last step, on its own counts
    assert statistics.two_proportions(100.0, 100.0, 10) == 1.0


def test_gap_test_is_a_z_test():
    first, second = (make_record(c) for c in tiny_conditions("stage1-long/9", "stage1-long/13"))
    gap = variance = 0.0
    for record, sign in ((first, 1), (second, -1)):
        for split, direction in (("train", 1), ("test", -1)):
            share = record.accuracy(split) / 100
            gap += sign * direction * share
            variance += share * (1 - share) / record.result.history.split(split).images
    expected = 2 * (1 - stats.norm.cdf(abs(gap) / np.sqrt(variance)))
    assert statistics.gap_test(first, second) == pytest.approx(expected)
    assert statistics.gap_test(first, first) == 1.0


# ---------------------------------------------------------------------------------------------
# From records
# ---------------------------------------------------------------------------------------------


def test_correct_images_follow_from_the_data_record():
    condition = tiny_conditions("stage1-daa1/13")[0]
    record, data = make_record(condition), make_data_record("synthetic")
    right = statistics.correct_images(record, data)
    confusion = np.array(record.result.predictions.confusion["test"])
    assert right.sum() == confusion.trace()
    labels = np.arange(len(right)) % 10  # as conftest makes them
    assert (right == (record.result.predictions.classes == labels)).all()


def test_correctness_is_not_made_up_without_the_right_labels():
    record = make_record(tiny_conditions("stage1-daa1/13")[0])
    data = make_data_record("synthetic")
    assert statistics.correct_images(record, None) is None
    assert statistics.correct_images(record, make_data_record("cifar10")) is None
    others = data.model_copy(
        update={"test_labels": pack_classes([9 - i % 10 for i in range(2000)])}
    )
    assert statistics.correct_images(record, others) is None


def test_records_are_compared_image_by_image():
    first, second = (make_record(c) for c in tiny_conditions("stage1-daa1/9", "stage1-daa1/13"))
    data = make_data_record("synthetic")
    found = statistics.compare_records(first, second, data)
    right = [statistics.correct_images(record, data) for record in (first, second)]
    assert found.only_first == (right[0] & ~right[1]).sum()
    assert found.difference == pytest.approx(100 * (right[0].mean() - right[1].mean()))
    assert statistics.compare_records(first, second, None) is None


def test_runs_of_different_images_are_not_compared():
    (first,) = tiny_conditions("stage1-daa1/9")
    (other,) = tiny_conditions("stage1-daa1/9", overrides=("data.test_size=20",))
    data = make_data_record("synthetic")
    assert statistics.compare_records(make_record(first), make_record(other), data) is None


# ---------------------------------------------------------------------------------------------
# A grid of runs
# ---------------------------------------------------------------------------------------------

GRID = pd.DataFrame(list(product("abc", [1, 2])), columns=["letter", "digit"])


def test_variance_falls_apart_as_the_squares_of_the_means_say():
    frame = GRID.assign(y=[1.0, 4.0, 2.0, 6.0, 7.0, 7.0])
    table = statistics.variance_explained(frame, "y", ["letter", "digit"])
    mean = frame["y"].mean()
    total = ((frame["y"] - mean) ** 2).sum()
    for factor, per_level in (("letter", 2), ("digit", 3)):
        squares = per_level * ((frame.groupby(factor)["y"].mean() - mean) ** 2).sum()
        assert table.loc[factor, "sum_of_squares"] == pytest.approx(squares)
        assert table.loc[factor, "share"] == pytest.approx(squares / total)
        rest = total - table.loc[["letter", "digit"], "sum_of_squares"].sum()
        assert table.loc[factor, "partial"] == pytest.approx(squares / (squares + rest))
        df = table.loc[factor, "df"]
        f = (squares / df) / (rest / 2)
        assert table.loc[factor, "f"] == pytest.approx(f)
        assert table.loc[factor, "p"] == pytest.approx(stats.f.sf(f, df, 2))
        omega = (squares - df * rest / 2) / (total + rest / 2)
        assert table.loc[factor, "omega"] == pytest.approx(omega)
    assert table["share"].sum() == pytest.approx(1.0)
    assert table.loc["interactions", "df"] == 2
    assert table.loc["rest", "df"] == 0


def test_an_additive_grid_has_no_interactions():
    frame = pd.concat([GRID, GRID]).reset_index(drop=True)
    effect = frame["letter"].map({"a": 0.0, "b": 1.0, "c": 5.0}) + 2.0 * frame["digit"]
    noise = np.tile([0.1, -0.1, 0.05, -0.05, 0.0, 0.0], 2) * np.repeat([1, -1], 6)
    table = statistics.variance_explained(frame.assign(y=effect + noise), "y", ["letter", "digit"])
    assert table.loc["interactions", "share"] == pytest.approx(0, abs=1e-9)
    assert table.loc["letter", "share"] > table.loc["digit", "share"] > 0.1
    share, p = statistics.interaction(
        frame.assign(y=effect + noise), "y", ["letter", "digit"], ("letter", "digit")
    )
    assert share == pytest.approx(0, abs=1e-9)
    assert p > 0.9


def test_one_factor_is_scipys_one_way_analysis():
    frame = pd.concat([GRID, GRID]).assign(y=[1.0, 4.0, 2.0, 6.0, 7.0, 7.0, 2, 3, 3, 5, 8, 6])
    table = statistics.variance_explained(frame, "y", ["letter"])
    groups = [members["y"] for _, members in frame.groupby("letter")]
    expected = stats.f_oneway(*groups)
    assert table.loc["letter", "f"] == pytest.approx(expected.statistic)
    assert table.loc["letter", "p"] == pytest.approx(expected.pvalue)
    assert list(table.index) == ["letter", "rest"]
