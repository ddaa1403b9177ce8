"""Intervals, paired tests and effect sizes; the formulas are scipy's and statsmodels'.

Accuracies and differences are in % and percentage points. A test on the images of one pair of
runs speaks of these two trained networks; only several seeds speak of the settings behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cifarlib.records import DataRecord, RunRecord, SplitName

LEVEL = 0.95  # of confidence
ALPHA = 0.05  # of error, after correction where there are several tests
RESAMPLES = 2000
BOOTSTRAP_SEED = 42


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Paired:
    """Two runs on the same test images: who is right where the other is wrong."""

    images: int
    only_first: int  # images that only the first run has right
    only_second: int
    p: float  # exact McNemar, two-sided

    @property
    def difference(self) -> float:
        """Accuracy of the first less that of the second, in percentage points."""
        return 100 * (self.only_first - self.only_second) / self.images


# ---------------------------------------------------------------------------------------------
# One accuracy
# ---------------------------------------------------------------------------------------------


def wilson_interval(correct: float, images: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of an accuracy in %, from the number of correct images."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(correct, images, alpha=1 - level, method="wilson")
    return Interval(100 * float(low), 100 * float(high))


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, Interval | None]:
    """Mean and Student's t interval of some values, one for each seed; no interval for one."""
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    error = float(stats.sem(values))
    if error == 0:
        return mean, Interval(mean, mean)
    low, high = stats.t.interval(level, len(values) - 1, loc=mean, scale=error)
    return mean, Interval(float(low), float(high))


# ---------------------------------------------------------------------------------------------
# Two runs on the same images
# ---------------------------------------------------------------------------------------------


def correct_images(record: RunRecord, data: DataRecord | None) -> np.ndarray | None:
    """Which test images a run has right, bool (n,), with the weights its predictions come from.

    None where the data set's labels are not on record, or are not those of the run's images:
    they must give the confusion matrix that the run counted for itself.
    """
    from cifarlib.data import stratified_subset

    if data is None or data.data_fingerprint != record.data_fingerprint:
        return None
    labels = data.labels[stratified_subset(data.labels, record.config.data.test_size)]
    predictions = record.result.predictions
    matrix = np.zeros((10, 10), dtype=int)
    np.add.at(matrix, (labels, predictions.classes), 1)
    if matrix.tolist() != [list(row) for row in predictions.confusion["test"]]:
        return None
    return predictions.classes == labels


def mcnemar(first: np.ndarray, second: np.ndarray) -> Paired:
    """McNemar's exact test on which images two runs have right, bool (n,) each."""
    from statsmodels.stats.contingency_tables import mcnemar as test

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    both = int((first & second).sum())
    neither = len(first) - both - only_first - only_second
    p = float(test([[both, only_first], [only_second, neither]], exact=True).pvalue)
    return Paired(len(first), only_first, only_second, min(p, 1.0))


def compare_records(first: RunRecord, second: RunRecord, data: DataRecord | None) -> Paired | None:
    """McNemar's exact test on the test predictions of two runs of the same test images.

    None where correctness cannot be told image by image (see ``correct_images``) or the runs
    saw different images.
    """
    right = correct_images(first, data), correct_images(second, data)
    if right[0] is None or right[1] is None or len(right[0]) != len(right[1]):
        return None
    return mcnemar(right[0], right[1])


def bootstrap_difference(
    first: np.ndarray, second: np.ndarray, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """Percentile interval of the difference of two accuracies in points, images resampled in pairs.

    ``first`` and ``second`` are bool (n,): which images each run has right. Seeded.
    """
    from scipy import stats

    difference = first.astype(np.float32) - second
    if not difference.any():
        return Interval(0.0, 0.0)
    found = stats.bootstrap(
        (100 * difference,),  # a pair is resampled as a whole, and so may be its difference
        np.mean,
        n_resamples=resamples,
        batch=100,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of a family of p values, in the order given."""
    from statsmodels.stats.multitest import multipletests

    if not len(p_values):
        return []
    return [float(p) for p in multipletests(p_values, alpha=ALPHA, method="holm")[1]]


def two_proportions(first: float, second: float, images: int) -> float:
    """Two-sided p of two accuracies in %, each on ``images``, as if of different images.

    For printed accuracies, whose images nobody can pair any more.
    """
    from statsmodels.stats.proportion import proportions_ztest

    counts = [first * images / 100, second * images / 100]
    if counts[0] == counts[1]:
        return 1.0
    return float(proportions_ztest(counts, [images, images])[1])


def gap_test(first: RunRecord, second: RunRecord) -> float:
    """Two-sided p of two runs' differences between training and test top-1 being equal.

    Normal approximation, the four accuracies taken as independent: the test images are shared,
    but training images are recorded as counts only, which nobody can pair.
    """
    from scipy import stats

    gap, variance = 0.0, 0.0
    sides: tuple[tuple[SplitName, int], ...] = (("train", 1), ("test", -1))
    for record, sign in ((first, 1), (second, -1)):
        for split, direction in sides:
            share = (record.accuracy(split) or 0.0) / 100
            gap += sign * direction * share
            variance += share * (1 - share) / record.result.history.split(split).images
    if variance == 0:
        return 1.0 if gap == 0 else 0.0
    return float(2 * stats.norm.sf(abs(gap) / variance**0.5))


# ---------------------------------------------------------------------------------------------
# A grid of runs
# ---------------------------------------------------------------------------------------------


def variance_explained(frame: pd.DataFrame, outcome: str, factors: Sequence[str]) -> pd.DataFrame:
    """How much of an outcome's variance over a grid each factor explains.

    Analysis of variance, type II, of a model with main effects only (statsmodels); every factor
    is categorical. Rows are the factors in the order given, then ``interactions`` and ``rest``;
    columns ``sum_of_squares``, ``df``, ``share`` (η², of the total sum of squares), ``partial``
    (partial η²), ``omega`` (ω²), ``f`` and ``p``.

    Interactions count towards the error of the factors' tests: with one run for each cell they
    cannot be told from noise. The row ``interactions`` says what all pairs of factors explain
    beyond the main effects; ``rest`` is what is left then.
    """
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    terms = [f"C({name})" for name in factors]
    main = ols(f"{outcome} ~ {' + '.join(terms)}", frame).fit()
    table = anova_lm(main, typ=2)
    squares, df = table["sum_sq"], table["df"]
    error = squares["Residual"] / df["Residual"]
    total = squares.sum()
    rows = pd.DataFrame(
        {
            "sum_of_squares": squares,
            "df": df,
            "share": squares / total,
            "partial": squares / (squares + squares["Residual"]),
            "omega": (squares - df * error) / (total + error),
            "f": table["F"],
            "p": table["PR(>F)"],
        }
    ).loc[terms]
    rows.index = list(factors)
    if len(factors) > 1:
        pairs = ols(f"{outcome} ~ ({' + '.join(terms)})**2", frame).fit()
        rows.loc["interactions", ["sum_of_squares", "df"]] = (
            main.ssr - pairs.ssr,
            main.df_resid - pairs.df_resid,
        )
        rows.loc["rest", ["sum_of_squares", "df"]] = pairs.ssr, pairs.df_resid
    else:
        rows.loc["rest", ["sum_of_squares", "df"]] = main.ssr, main.df_resid
    rows["share"] = rows["sum_of_squares"] / total
    return rows


def interaction(
    frame: pd.DataFrame, outcome: str, factors: Sequence[str], pair: tuple[str, str]
) -> tuple[float, float]:
    """(share of the total variance, p) of one pair's interaction, beside all main effects."""
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    term = ":".join(f"C({name})" for name in pair)
    terms = " + ".join(f"C({name})" for name in factors)
    table = anova_lm(ols(f"{outcome} ~ {terms} + {term}", frame).fit(), typ=2)
    return (
        float(table.loc[term, "sum_sq"] / table["sum_sq"].sum()),
        float(table.loc[term, "PR(>F)"]),
    )
