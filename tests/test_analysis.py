"""Statistics on frames, against formulas by hand and against statsmodels."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from cifarlib.analysis import calibration
from cifarlib.analysis import statistics as stats


def test_estimate_is_students():
    values = [1.0, 2.0, 4.0]
    found = stats.estimate(values)
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(values), scipy_stats.sem(values))
    assert (found.interval().low, found.interval().high) == pytest.approx((low, high))
    assert 2 * found.p_above(0) == pytest.approx(scipy_stats.ttest_1samp(values, 0).pvalue)


@pytest.mark.parametrize("values", [[], [2.0], [2.0, 2.0, 2.0]])
def test_estimate_without_spread_says_nothing(values):
    found = stats.estimate(values)
    assert found.interval() is None
    assert math.isnan(found.p_above(0))


@pytest.mark.parametrize(("correct", "images"), [(0, 50), (50, 50), (8997, 10_000)])
def test_wilson_is_its_formula(correct, images):
    z, p = scipy_stats.norm.ppf(0.975), correct / images
    middle = (p + z**2 / (2 * images)) / (1 + z**2 / images)
    reach = z * math.sqrt(p * (1 - p) / images + z**2 / (4 * images**2)) / (1 + z**2 / images)
    found = stats.wilson(correct, images)
    assert (found.low, found.high) == pytest.approx(
        (100 * (middle - reach), 100 * (middle + reach))
    )


def test_noise_floor_pools_the_variance_within_settings():
    runs = pd.DataFrame({
        "stage": "a", "name": [*"xxxyyz"], "test_top1": [1.0, 2.0, 3.0, 10.0, 12.0, 50.0],
    })  # fmt: skip
    noise = stats.noise_floor(runs)
    assert noise.sd == pytest.approx(math.sqrt((2 + 2) / 3))
    assert (noise.df, noise.settings) == (3, 2)
    assert noise.sd in noise.interval
    assert noise.difference() == pytest.approx(scipy_stats.t.ppf(0.975, 3) * 2**0.5 * noise.sd)
    assert stats.noise_floor(runs, by=["stage"]).df == 5
    assert stats.noise_floor(runs.query("name == 'z'")) is None
    assert stats.noise_floor(runs.assign(test_top1=5.0)) is None


NOISE = stats.Noise(1.5, 18, 2, stats.Interval(1, 2))


def test_outcome_of_fewer_than_three_seeds_has_the_error_of_the_noise():
    runs = pd.DataFrame({"run_id": list("abc"), "test_top1": [60.0, 62.0, 64.0]})
    for seeds in (1, 2):
        found = stats.outcome(runs[:seeds], noise=NOISE).estimate
        assert (found.mean, found.n, found.df) == (59 + seeds, seeds, 18)
        assert found.error == pytest.approx(1.5 / math.sqrt(seeds))
    assert stats.outcome(runs, noise=NOISE).estimate == stats.estimate(runs["test_top1"])
    assert stats.outcome(runs[:1]).estimate.error is None
    assert stats.outcome(runs).runs == ("a", "b", "c")
    assert not stats.outcome(runs[:1].assign(test_top1=0.0), noise=NOISE).estimate.identical


def test_outcome_counts_pending_runs_and_leaves_out_diverged_ones():
    runs = pd.DataFrame({
        "test_top1": [60.0, None, None], "state": ["recorded", "pending", "diverged"],
    })  # fmt: skip
    found = stats.outcome(runs, noise=NOISE).estimate
    assert (found.n, found.missing) == (1, 1)


def grid(*values, name="r", **columns):
    frame = pd.DataFrame({"batch": [1, 1, 2, 2], "decay": [0, 1, 0, 1], "test_top1": values})
    return frame.assign(run_id=[f"{name}{i}" for i in range(4)], state="recorded", **columns)


def test_contrast_with_two_noises_is_welchs():
    calm, wild = [10.0, 10.4, 9.9, 10.1], [20.0, 23.0, 18.0]
    noises = tuple(
        stats.noise_floor(pd.DataFrame({"stage": "a", "name": "x", "test_top1": values}))
        for values in (calm, wild)
    )
    first, second = (pd.DataFrame({"seed": [42], "test_top1": [mean]}) for mean in (17.0, 9.0))
    found = stats.contrast(first, second, noise=noises).estimate
    spread = [np.std(values, ddof=1) * math.sqrt(len(values)) for values in (calm, wild)]
    welch = scipy_stats.ttest_ind_from_stats(17, spread[0], 4, 9, spread[1], 3, equal_var=False)
    assert 2 * found.p_above(0) == pytest.approx(welch.pvalue)
    assert stats.contrast(first, second, noise=(noises[0], None)).estimate.error is None
    same = stats.contrast(first, second, noise=noises[1]).estimate
    assert (same.df, same.error) == (2, pytest.approx(noises[1].sd * math.sqrt(2)))


def test_contrast_is_taken_seed_by_seed():
    first = pd.DataFrame({"seed": [1, 2, 3], "test_top1": [17.0, 19.0, 18.0]})
    second = pd.DataFrame({"seed": [3, 2, 1], "test_top1": [12.0, 10.0, 9.0]})
    found = stats.contrast(first, second, noise=NOISE).estimate
    assert found == stats.estimate([8.0, 9.0, 6.0])  # three have a spread of their own
    two = stats.contrast(first[:2], second, noise=NOISE).estimate
    assert (two.mean, two.n, two.error) == (8.5, 2, pytest.approx(1.5 * math.sqrt(2 / 2)))
    pending = stats.contrast(first.assign(test_top1=[17.0, None, 18.0]), second).estimate
    assert (pending.n, pending.missing) == (2, 1)


def test_paired_takes_differences_of_equal_settings():
    one, other = grid(1, 2, 3, 4), grid(0, 0, 0, 0, name="s").iloc[::-1]
    pairs = stats.paired(one, other, ["batch", "decay"])
    assert pairs.difference.tolist() == [1, 2, 3, 4]
    assert (pairs.estimate.mean, pairs.estimate.n) == (2.5, 4)
    assert set(pairs.runs) == {"r0", "r1", "r2", "r3", "s0", "s1", "s2", "s3"}


def test_paired_averages_seeds_and_within_blocks():
    one = pd.concat([grid(1, 2, 3, 4, seed=1), grid(3, 4, 5, 6, seed=2)])
    pairs = stats.paired(one, grid(0, 0, 0, 0), ["batch", "decay"], blocks=["batch"])
    assert pairs.difference.tolist() == [2, 3, 4, 5]
    assert (pairs.estimate.mean, pairs.estimate.n) == (3.5, 2)
    alone = stats.paired(one, grid(0, 0, 0, 0), ["batch", "decay"], blocks="batch")
    assert alone.estimate == pairs.estimate


def test_paired_counts_pending_pairs_and_leaves_out_diverged_ones():
    one, other = grid(1, 2, None, 4), grid(0, 0, 0, 0)
    assert stats.paired(one, other, ["batch", "decay"]).estimate.missing == 1
    one.loc[2, "state"] = "diverged"
    found = stats.paired(one, other, ["batch", "decay"]).estimate
    assert (found.missing, found.n) == (0, 3)
    more = pd.concat([one, grid(1, 2, 3, None, seed=2)])  # of one cell a seed is still to come
    pairs = stats.paired(more, other, ["batch", "decay"])
    assert pairs.difference.tolist() == [1, 2, 3]
    assert (pairs.estimate.missing, pairs.estimate.n) == (1, 3)
    half = pd.concat([one, grid(1, 2, None, 4, seed=2)])  # one seed diverged, the other is to come
    assert stats.paired(half, other, ["batch", "decay"]).estimate.missing == 1


def test_paired_is_never_surer_than_the_noise_of_seeds():
    alike = grid(1.0, 1.1, 0.9, 1.0), grid(0, 0, 0, 0), ["batch", "decay"]
    found = stats.paired(*alike, noise=NOISE).estimate
    assert (found.error, found.df) == (pytest.approx(1.5 * math.sqrt(2 / 4)), 18)
    assert found.say() == "4 matched pairs, seed noise 1.50 points (σ̂ of 20 runs of 2 settings)"
    wide = grid(-9, 9, -8, 8), grid(0, 0, 0, 0), ["batch", "decay"]
    assert stats.paired(*wide, noise=NOISE).estimate == stats.paired(*wide).estimate


def test_paired_refuses_frames_that_share_no_row():
    with pytest.raises(ValueError, match="no two rows are equal in batch; match on other columns"):
        stats.paired(grid(1, 2, 3, 4), grid(1, 2, 3, 4).assign(batch=9), ["batch"])


def test_mcnemar_is_exact():
    first = np.array([True] * 8 + [False] * 12)
    second = np.array([False] * 7 + [True] * 3 + [False] * 10)
    found = stats.mcnemar(first, second)
    assert (found.only_first, found.only_second) == (7, 2)
    assert found.p == pytest.approx(scipy_stats.binomtest(7, 9).pvalue)
    assert found.difference == pytest.approx(25)
    assert stats.mcnemar(first, first).p == 1


def test_mcnemar_names_the_better_network_where_it_is_shown():
    one, other = np.arange(40) < 30, np.arange(40) < 10
    said = stats.mcnemar(one, other).say("a", "b")
    assert said.startswith("Of these two trained networks a is better: a is right")
    assert "(+50.00 points, p < 0.001" in said
    assert "networks b is better: a is right on 0 of 40" in stats.mcnemar(other, one).say("a", "b")
    assert "neither is shown to be better" in stats.mcnemar(one, one).say("a", "b")


def test_two_proportions_is_the_pooled_z_test_of_their_difference():
    share = (0.8997 + 0.894) / 2
    z = (0.8997 - 0.894) / math.sqrt(2 * share * (1 - share) / 10_000)
    p = pytest.approx(2 * scipy_stats.norm.sf(z))
    assert stats.two_proportions(89.97, 89.4, 10_000) == p
    assert stats.two_proportions(89.4, 89.97, 10_000) == p
    assert stats.two_proportions(100.0, 100.0, 10_000) == 1


def test_bootstrap_images_holds_the_difference():
    random = np.random.default_rng(0)
    first, second = random.random(2000) < 0.7, random.random(2000) < 0.6
    interval = stats.bootstrap_images(first, second)
    assert 100 * (first.mean() - second.mean()) in interval
    assert 3 < interval.high - interval.low < 10


def test_adjust_knows_holm_and_false_discoveries_and_skips_missing():
    assert stats.adjust([0.01, math.nan, 0.04, 0.03])[[0, 2, 3]] == pytest.approx(
        [0.03, 0.06, 0.06]
    )
    assert stats.adjust([0.01, 0.04, 0.03], "fdr") == pytest.approx([0.03, 0.04, 0.04])
    assert np.isnan(stats.adjust([math.nan])).all()
    assert stats.adjust([0.6, 0.7]).tolist() == [1, 1]


def test_slope_is_least_squares():
    x, y = [0, 0.1, 0.2, 0.5, 0.7], [1, 2, 2, 4, 6]
    found, theirs = stats.slope(x, y), scipy_stats.linregress(x, y)
    assert (found.mean, found.error) == pytest.approx((theirs.slope, theirs.stderr))
    assert found.df == 3
    assert stats.slope([0, 1], [0, 1]).error is None
    assert stats.slope([0, 1, 2], [0, 1, 2]).error is None  # no residual
    assert math.isnan(stats.slope([1, 1, 1], [0, 1, 2]).mean)
    assert stats.slope(x, [1, 2, 2, 4, None]).missing == 1
    noise = stats.Noise(2.0, 5, 1, stats.Interval(1, 3))
    known = stats.slope(x, y, noise=noise)
    assert known.error == pytest.approx(2 / math.sqrt(5 * np.var(x)))
    assert (known.mean, known.df) == (found.mean, 5)


def test_variance_explained_is_statsmodels_type_two():
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    frame = calibration.simulate_grid(
        np.random.default_rng(1), {"learning_rate": 3, "batch_size": 1}
    ).drop(index=[0, 9, 22, 35, 50])  # not balanced
    names = [name for name in calibration.LEVELS if name != stats.PAIRED]
    ours = stats.variance_explained(frame, "test_top1", names, "learning_rate:batch_size")
    formula = " + ".join(f"C({name})" for name in names) + " + C(learning_rate):C(batch_size)"
    theirs = anova_lm(ols(f"test_top1 ~ {formula}", frame).fit(), typ=2)
    assert ours["sum_of_squares"].to_numpy() == pytest.approx(theirs["sum_sq"].to_numpy())
    assert ours["df"].tolist() == theirs["df"].tolist()
    assert ours["p"].to_numpy()[:-1] == pytest.approx(theirs["PR(>F)"].to_numpy()[:-1])
    assert ours["share"].sum() == pytest.approx(100)


def test_variance_explained_takes_two_weight_decays_as_one_observation():
    from scipy.stats import ttest_rel

    grid = calibration.simulate_grid(np.random.default_rng(1), {"learning_rate": 0.2})
    names = list(calibration.LEVELS)
    others = [name for name in names if name != "weight_decay"]
    found = stats.variance_explained(grid, "test_top1", names, "learning_rate:batch_size")
    # between the pairs: the analysis of their means; within them: the paired t-test
    means = grid.groupby(others, as_index=False)["test_top1"].mean()
    between = stats.variance_explained(means, "test_top1", others, "learning_rate:batch_size")
    same = [*others, "learning_rate:batch_size"]
    assert found.loc[same, "p"].to_numpy() == pytest.approx(between.loc[same, "p"].to_numpy())
    assert found.loc[same, "error_df"].tolist() == [32 - 1 - 3 - 3 - 1 - 9] * 4
    pairs = grid.pivot(index=others, columns="weight_decay", values="test_top1")
    assert found.loc["weight_decay", "p"] == pytest.approx(ttest_rel(pairs[0], pairs[1]).pvalue)
    assert found.loc["weight_decay", "error_df"] == 31
    assert set(found["n"]) == {32}


def test_variance_explained_counts_seeds_and_leaves_out_runs_without_a_partner():
    grid = calibration.simulate_grid(np.random.default_rng(1), {"learning_rate": 5})
    names = list(calibration.LEVELS)
    seeds = pd.concat([grid.assign(seed=42), grid.assign(seed=43)])
    assert set(stats.variance_explained(seeds, "test_top1", names)["n"]) == {64}
    alone = stats.variance_explained(grid.drop(index=0), "test_top1", names)
    partner = grid.query("learning_rate == 0 and batch_size == 0 and augmentation == 0").index
    pd.testing.assert_frame_equal(
        alone, stats.variance_explained(grid.drop(index=partner), "test_top1", names)
    )
    assert set(alone["n"]) == {31}


def test_variance_explained_has_no_noise_where_the_factors_fill_the_grid():
    grid = calibration.simulate_grid(np.random.default_rng(1), {"learning_rate": 5})
    grid = grid.query("augmentation == 0 and batch_size == 0")
    shares = stats.variance_explained(grid, "test_top1", ["learning_rate", "weight_decay"])
    assert shares["share"].sum() == pytest.approx(100)
    assert np.isnan(shares.loc["learning_rate", "omega"])
    assert stats.omega(shares, "learning_rate").interval() is None
    assert stats.omega(shares, "weight_decay").df == 3


def test_omega_is_the_share_without_noise_and_its_interval_covers_it():
    random, hits, excess = np.random.default_rng(2), 0, 0
    names, total = list(calibration.LEVELS), 25 + 9 + calibration.NOISE**2
    for _ in range(100):
        grid = calibration.simulate_grid(random, {"learning_rate": 5, "batch_size": 3})
        shares = stats.variance_explained(grid, "test_top1", names)
        found = stats.omega(shares, "learning_rate")
        more = stats.omega(shares, "learning_rate", "batch_size")
        decay = stats.omega(shares, "learning_rate", "weight_decay")
        hits += 100 * 25 / total in found.interval()
        excess += 100 * (25 - 9) / total in more.interval()
    assert (found.n, found.df) == (32, 24)
    assert (shares["error_df"]["weight_decay"], decay.df) == (31, 24)  # the smaller of the two
    assert found.mean == shares["omega"]["learning_rate"]
    assert more.mean == pytest.approx(found.mean - shares["omega"]["batch_size"])
    assert hits >= 90
    assert excess >= 90


def test_say_shares_says_0_for_a_share_below_0():
    shares = pd.DataFrame({"omega": {"learning_rate": 59.4, "weight_decay": -0.7}})
    said = stats.say_shares(shares, ["learning_rate", "weight_decay"])
    assert said == "learning rate 59, weight decay 0 %"


def test_means_have_half_of_students_interval():
    table = pd.DataFrame({"a": [1.0, 2.0, 4.0], "b": [5.0, np.nan, np.nan]})
    found = stats.means(table)
    interval = stats.estimate(table["a"]).interval()
    assert found.loc["a"].tolist() == pytest.approx([3, 7 / 3, (interval.high - interval.low) / 2])
    assert found.loc["b", ["n", "mean"]].tolist() == [1, 5]
    assert np.isnan(found.loc["b", "±"])
    grouped = stats.means(table.melt().groupby("variable")["value"])
    assert grouped.to_numpy() == pytest.approx(found.to_numpy(), nan_ok=True)
    assert stats.student(table["a"]) == (interval.low, interval.high)
    assert np.isnan(stats.student([5.0])).all()
    assert stats.means(pd.DataFrame({"equal": [4.7] * 3})).loc["equal"].isna().tolist() == [
        False, False, True,
    ]  # fmt: skip


def test_noise_floor_says_seeds_of_one_setting_and_runs_of_several():
    runs = pd.DataFrame({"stage": "s", "name": list("aabb"), "test_top1": [50.0, 51, 60, 61]})
    sd = "0.71 points"
    assert stats.noise_floor(runs).say() == f"seed noise {sd} (σ̂ of 4 runs of 2 settings)"
    assert stats.noise_floor(runs[:2]).say() == f"seed noise {sd} (σ̂ of 2 seeds)"


def test_rows_of_several_conditions_are_no_seeds_and_no_pair():
    """Each is one seed and one setting of what is compared, or the number is of neither."""
    first = pd.DataFrame({"seed": [42, 42], "rate": [1, 1], "dropout": [0.0, 0.5], "run_id": "ab"})
    first["test_top1"], second = [60.0, 50.0], first.head(1).assign(test_top1=40.0)
    with pytest.raises(ValueError, match="several rows of one side have seed 42; choose one"):
        stats.contrast(first, second)
    with pytest.raises(ValueError, match="are equal in rate and differ in dropout; choose rows"):
        stats.paired(first, second, on="rate")
    assert stats.paired(first, second, on=["rate", "dropout"]).estimate.mean == 20
    assert repr(stats.contrast(first.head(1), second).estimate) == "<Estimate +20.00; one seed>"


def test_odd_pair_lies_more_than_twice_as_far_apart_as_any_other():
    frame = pd.DataFrame({"run": range(6), "rate": [1, 1, 2, 2, 3, 3]})
    frame["test_top1"] = [50.0, 51.0, 60.0, 62.0, 23.0, 40.0]
    two, apart, most = stats.odd_pair(frame, ["rate"])
    assert (list(two["run"]), apart, most) == ([4, 5], 17.0, 2.0)
    assert stats.odd_pair(frame[:4], ["rate"]) is None  # twice as far, not more
    assert stats.odd_pair(frame[:2], ["rate"]) is None
    assert stats.odd_pair(frame.assign(test_top1=[*frame["test_top1"][:5], None]), ["rate"]) is None
