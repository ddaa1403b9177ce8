"""Intervals, tests and effect sizes; the distributions are scipy's.

Accuracies and differences are in % and percentage points. What is estimated over seeds, or over
matched pairs of settings, is an ``Estimate``: it speaks of the settings. A test on the images of
two runs (``mcnemar``, ``bootstrap_images``) speaks of these two trained networks.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from cifarlib.checking import suggest
from cifarlib.formatting import decimals_of, fixed, say_p, say_range, say_setting, signed

__all__ = [
    "ALPHA", "ENOUGH", "LEVEL", "PAIRED", "Disagreement", "Estimate", "Interval", "Noise",
    "Pairs", "Sample", "adjust", "bootstrap_images", "contrast", "ended", "estimate", "mcnemar",
    "means", "noise_floor", "odd_pair", "omega", "outcome", "paired", "say_shares", "slope",
    "student", "two_proportions", "variance_explained", "wilson",
]  # fmt: skip
__dir__ = __all__.copy  # what a notebook completes

LEVEL = 0.95  # of confidence
ALPHA = 0.05  # of error, after correction where there are several tests
RESAMPLES = 2000
BOOTSTRAP_SEED = 42

Values: TypeAlias = "Sequence[float] | np.ndarray | pd.Series"


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def say(self, decimals: int = 1, *, sign: bool = False) -> str:
        """In words: “89.2 to 90.4”, of differences “−0.12 to +0.85”; only 0 reads as 0."""
        decimals = decimals_of([self.low, self.high], decimals)
        return say_range(self.low, self.high, signed(decimals) if sign else fixed(decimals))


@dataclass(frozen=True, repr=False)
class Estimate:
    """A mean, with what a t distribution says about it."""

    mean: float
    error: float | None  # standard error; None: not estimable, so that nothing can be judged
    df: float
    n: int  # independent values behind it
    of: str  # what these are: “seeds”, “matched pairs”
    missing: int = 0  # values that are pending
    identical: bool = False  # every difference is exactly 0: the treatment did not occur
    by: str = ""  # what the error comes from, where it is not the values' own spread

    def __repr__(self) -> str:
        """“<Estimate +5.6 (95 %: +4.3 to +7.0); 12 matched pairs>”."""
        interval = self.interval()
        near = f" (95 %: {interval.say(2, sign=True)})" if interval else ""
        return f"<{type(self).__name__} {signed(2)(self.mean)}{near}; {self.say()}>"

    def say(self) -> str:
        """What it rests on: “16 blocks”, “one seed, seed noise 0.39 points (σ̂ of 9 seeds)”."""
        count = f"one {self.of.removesuffix('s')}" if self.n == 1 else f"{self.n} {self.of}"
        return f"{count}, {self.by}" if self.by else count

    def interval(self, tests: int = 1) -> Interval | None:
        """Student's 95 % interval of the mean; of several ``tests``, by Bonferroni's method."""
        from scipy import stats

        if self.error is None:
            return None
        reach = stats.t.ppf(1 - (1 - LEVEL) / 2 / tests, self.df) * self.error
        return Interval(self.mean - float(reach), self.mean + float(reach))

    def p_above(self, value: float) -> float:
        """One-sided p against the mean being ``value`` or less; NaN where nothing is estimable."""
        from scipy import stats

        if self.error is None:
            return math.nan
        return float(stats.t.sf((self.mean - value) / self.error, self.df))


NO_SPREAD = 1e-12  # a standard deviation up to which values are equal


def estimate(values: Values, of: str = "seeds", *, missing: int = 0) -> Estimate:
    """Mean of independent values, with Student's standard error from their own spread.

    Values that are all equal, or a single one, have no spread to judge by.
    """
    sample = np.asarray(values, float)
    n = len(sample)
    identical = n > 0 and not sample.any()
    mean = float(sample.mean()) if n else math.nan
    spread = float(sample.std(ddof=1)) if n > 1 else 0.0
    error = spread / math.sqrt(n) if spread > NO_SPREAD else None
    return Estimate(mean, error, max(n - 1, 1), n, of, missing, identical)


def means(values: "pd.DataFrame | pd.api.typing.SeriesGroupBy") -> pd.DataFrame:
    """Means over independent values such as seeds: of each column, or of each group.

    Columns ``n``, ``mean`` and ``±``, half of the mean's 95 % interval (Student's), which a single
    value does not have, nor do equal values.
    """
    from scipy import stats

    n, spread = values.count(), values.std()
    error = spread.where(spread > NO_SPREAD) / np.sqrt(n)
    reach = stats.t.ppf((1 + LEVEL) / 2, (n - 1).clip(lower=1))
    return pd.DataFrame({"n": n, "mean": values.mean(), "±": error * reach})


def student(values: Values) -> tuple[float, float]:
    """The ends of the mean's 95 % interval, as seaborn's ``errorbar`` takes them."""
    interval = estimate(values).interval()
    return (interval.low, interval.high) if interval else (math.nan, math.nan)


# ---------------------------------------------------------------------------------------------
# Noise of one setting's seeds
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """By how much runs of one setting differ of which only the seed differs."""

    sd: float  # pooled over settings, in ``unit``
    df: int  # seeds less settings
    settings: int
    interval: Interval  # of the standard deviation
    where: str = ""  # “ at another budget”, where that is so
    unit: str = " points"

    def difference(self, level: float = LEVEL) -> float:
        """What two single runs of one setting differ by at most, at a level of confidence."""
        from scipy import stats

        return float(stats.t.ppf((1 + level) / 2, self.df) * math.sqrt(2) * self.sd)

    def pair(self, difference: float) -> Estimate:
        """The difference of two single runs, against the noise of two runs of one setting."""
        found = estimate([difference], "pairs of runs")
        return replace(found, error=math.sqrt(2) * self.sd, df=self.df, by=self.say())

    def say(self) -> str:
        """In words: “seed noise 0.39 points (σ̂ of 20 runs of 2 settings)”, or “of 10 seeds”."""
        runs = self.df + self.settings
        said = f"{runs} seeds" if self.settings == 1 else f"{runs} runs of {self.settings} settings"
        return f"seed noise {self.sd:.2f}{self.unit} (σ̂ of {said}{self.where})"


def noise_floor(
    runs: pd.DataFrame,
    value: str = "test_top1",
    by: Sequence[str] = (),
    *,
    unit: str = " points",
) -> Noise | None:
    """Pooled standard deviation of an outcome over the seeds of each setting.

    ``by`` names the columns that make a setting: stage and name unless given. None without a
    setting of two recorded seeds.
    """
    from scipy import stats

    groups = runs.dropna(subset=[value]).groupby(list(by) or ["stage", "name"])[value]
    sizes, variances = groups.size(), groups.var()
    several = sizes > 1
    df = int((sizes[several] - 1).sum())
    squares = float(((sizes - 1) * variances)[several].sum())
    if df == 0 or squares == 0:
        return None
    low, high = (squares / stats.chi2.ppf(q, df) for q in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    interval = Interval(math.sqrt(low), math.sqrt(high))
    return Noise(math.sqrt(squares / df), df, int(several.sum()), interval, unit=unit)


# ---------------------------------------------------------------------------------------------
# Outcomes of settings, and matched pairs
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Sample:
    """An estimate, and the ids of the runs behind it."""

    estimate: Estimate
    runs: tuple[str, ...]

    def __repr__(self) -> str:
        """That of the estimate, and how many runs are behind it."""
        return f"<{type(self).__name__} of {len(self.runs)} runs: {self.estimate!r}>"


@dataclass(frozen=True, repr=False)
class Pairs(Sample):
    """Matched pairs of settings, and the difference of each."""

    frame: pd.DataFrame  # a row a pair: what it is matched on, first, second, difference

    @property
    def difference(self) -> "pd.Series[float]":
        """First less second of each complete pair."""
        return self.frame["difference"].dropna()


def outcome(runs: pd.DataFrame, value: str = "test_top1", noise: Noise | None = None) -> Sample:
    """The mean outcome of one setting's runs, one for each seed.

    Fewer than three seeds are judged by the ``noise`` of other settings' seeds, if it is known.
    """
    known = runs[value].dropna()
    found = estimate(known, missing=int(ended(runs)[value].isna().sum()))
    if noise and 0 < len(known) < ENOUGH:
        error = noise.sd / math.sqrt(len(known))
        found = replace(found, error=error, df=noise.df, identical=False, by=noise.say())
    return Sample(found, run_ids(runs))


def contrast(
    first: pd.DataFrame,
    second: pd.DataFrame,
    value: str = "test_top1",
    noise: Noise | tuple[Noise | None, Noise | None] | None = None,
) -> Sample:
    """The mean difference of an outcome between the runs of two settings, seed by seed.

    Fewer than three common seeds are judged by the ``noise`` of a single run, if it is known, or of
    each setting's where they are two (Welch); without it a single pair decides nothing. Raises
    ``ValueError`` where a side has several rows of one seed.
    """
    for side in (first, second):
        _require_columns(side, ["seed", value])
        if (twice := side["seed"][side["seed"].duplicated()]).size:
            raise ValueError(
                f"several rows of one side have seed {twice.iloc[0]}; choose one condition, or "
                "match rows by their settings with stats.paired"
            )
    both = ended(first).merge(ended(second), on="seed", suffixes=("_first", "_second"))
    differences = both[f"{value}_first"] - both[f"{value}_second"]
    found = estimate(differences.dropna(), missing=int(differences.isna().sum()))
    one, two = noise if isinstance(noise, tuple) else (noise, noise)
    if one and two and 0 < found.n < ENOUGH:
        variance, df, by = one.sd**2 + two.sd**2, float(one.df), one.say()
        if two is not one:
            df = variance**2 / (one.sd**4 / one.df + two.sd**4 / two.df)
            by += f", and {two.say()}"
        found = replace(found, error=math.sqrt(variance / found.n), df=df, by=by)
    return Sample(found, run_ids(pd.concat([first, second])))


ENOUGH = 3  # seeds from which on their own spread is used


def ended(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs without those that diverged, of which nothing more comes."""
    return runs[~_lost(runs)]


def odd_pair(
    runs: pd.DataFrame, by: Sequence[str], value: str = "test_top1"
) -> tuple[pd.DataFrame, float, float] | None:
    """The runs of one setting that lie more than twice as far apart as those of any other.

    ``by`` are the columns that make a setting. Gives these runs, the smallest first, how far apart
    they lie, and how far at most those of any other setting; None where there is no such setting,
    or one is not recorded.
    """
    settings = runs.groupby(list(by))[value]
    spread = settings.agg(np.ptp)
    if spread.isna().any() or len(spread) < 2:
        return None
    most, apart = np.sort(spread)[-2:]
    chosen = runs[settings.transform(np.ptp) == apart]
    return (chosen.sort_values(value), float(apart), float(most)) if apart > 2 * most else None


def _lost(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Which runs diverged: nothing more comes of them."""
    return runs["state"].eq("diverged") if "state" in runs else pd.Series(False, runs.index)


APART = (
    "model", "resize", "optimizer", "augmentation", "dropout", "schedule", "epochs", "protocol"
)  # fmt: skip
"""Settings over which ``paired`` takes no mean."""


def list_columns(names: str | Sequence[str]) -> list[str]:
    """Names of columns as a list, which one name alone may stand for, as in pandas."""
    return [names] if isinstance(names, str) else list(names)


def _require_columns(runs: pd.DataFrame, names: Sequence[str]) -> None:
    """``ValueError`` for a column that is not there."""
    if lacking := [name for name in names if name not in runs]:
        raise ValueError(f"{lacking[0]!r} is no column of the runs; {suggest(lacking[0], runs)}")


def run_ids(runs: pd.DataFrame) -> tuple[str, ...]:
    """The ids of runs, where they have any."""
    return tuple(dict.fromkeys(runs["run_id"])) if "run_id" in runs else ()


def paired(
    first: pd.DataFrame,
    second: pd.DataFrame,
    on: str | Sequence[str],
    value: str = "test_top1",
    *,
    blocks: str | Sequence[str] = (),
    noise: Noise | None = None,
) -> Pairs:
    """The difference of an outcome over pairs of rows that are equal in the columns ``on``.

    Seeds that did not diverge are averaged first, unless ``on`` names them. ``blocks``, some of
    ``on``, says which pairs count as independent: differences are averaged within each block, as
    two weight decays are one observation. Rows of a side that are equal in ``on`` may differ in
    seed, batch size, rate or decay, over which their mean is taken, and in nothing else
    (``ValueError``). A pair lacking a run is pending, unless a side diverged:
    then the pair is left out. Where a few differences happen to agree better than seeds of one
    setting do, the standard error is that of the ``noise`` of a single run, if it is given.
    """
    on, blocks = list_columns(on), list_columns(blocks)
    for side in (first, second):
        _require_columns(side, [*on, *blocks, value])
        for name in (name for name in APART if name in side and name not in on):
            if side.groupby(on)[name].nunique(dropna=False).gt(1).any():
                raise ValueError(
                    f"rows of one side are equal in {', '.join(on)} and differ in {name}; choose "
                    f"rows, or match on {name}, too"
                )
    sides = {}
    for name, side in (("first", first), ("second", second)):
        lost = side.assign(lost=_lost(side)).groupby(on)["lost"].all()
        means = ended(side).groupby(on)[value].agg(lambda seeds: seeds.mean(skipna=False))
        sides[name] = pd.DataFrame({"lost": lost, value: means}).reset_index()
    frame = sides["first"].merge(sides["second"], on=on, suffixes=("_first", "_second"))
    if frame.empty:
        raise ValueError(f"no two rows are equal in {', '.join(on)}; match on other columns")
    lost = frame[["lost_first", "lost_second"]].any(axis=1)
    frame = frame.rename(columns={f"{value}_first": "first", f"{value}_second": "second"})
    frame["difference"] = frame["first"] - frame["second"]
    complete = frame.dropna(subset="difference")
    means = complete.groupby(blocks or on)["difference"].mean()
    missing = int((frame["difference"].isna() & ~lost).sum())
    found = estimate(means, "blocks of pairs" if blocks else "matched pairs", missing=missing)
    if noise and found.error and found.error < (least := noise.sd * math.sqrt(2 / found.n)):
        found = replace(found, error=least, df=noise.df, by=noise.say())
    runs = tuple(run for side in (first, second) for run in run_ids(side.merge(frame[on], on=on)))
    return Pairs(found, tuple(dict.fromkeys(runs)), frame[[*on, "first", "second", "difference"]])


# ---------------------------------------------------------------------------------------------
# Images of one or two networks
# ---------------------------------------------------------------------------------------------


def wilson(correct: float, images: int) -> Interval:
    """Wilson's 95 % interval of an accuracy in %, from the number of correct images."""
    from scipy import stats

    found = stats.binomtest(round(correct), images).proportion_ci(LEVEL, method="wilson")
    return Interval(100 * float(found.low), 100 * float(found.high))


@dataclass(frozen=True)
class Disagreement:
    """Two networks on the same images: who is right where the other is wrong."""

    images: int
    only_first: int  # images that only the first has right
    only_second: int
    p: float  # exact McNemar, two-sided

    @property
    def difference(self) -> float:
        """Accuracy of the first less that of the second, in percentage points."""
        return 100 * (self.only_first - self.only_second) / self.images

    def say(self, first: str, second: str) -> str:
        """Which of two trained networks is better, in words; it says nothing of their settings."""
        better = first if self.difference > 0 else second
        verdict = f"{better} is better" if self.p < ALPHA else "neither is shown to be better"
        return (
            f"Of these two trained networks {verdict}: {first} is right on {self.only_first:,} of "
            f"{self.images:,} test images that {second} gets wrong, and wrong on "
            f"{self.only_second:,} that {second} gets right ({signed(2)(self.difference)} points, "
            f"{say_p(self.p)}, McNemar's exact test). Other seeds of the same settings may differ."
        )


def mcnemar(first: np.ndarray, second: np.ndarray) -> Disagreement:
    """McNemar's exact test on which images two networks have right, bool (n,) each."""
    from scipy import stats

    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(stats.binomtest(one, one + other).pvalue) if one + other else 1.0
    return Disagreement(len(first), one, other, p)


def bootstrap_images(first: np.ndarray, second: np.ndarray) -> Interval:
    """95 % bootstrap interval of the difference of two accuracies, in points.

    Percentiles over resampled images. ``first`` and ``second`` are bool (n,): which images each
    network has right. Seeded.
    """
    random = np.random.default_rng(BOOTSTRAP_SEED)
    n = len(first)
    shares = [(first & ~second).mean(), (second & ~first).mean()]
    drawn = random.multinomial(n, [*shares, 1 - sum(shares)], size=RESAMPLES)
    differences = 100 * (drawn[:, 0] - drawn[:, 1]) / n
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def two_proportions(first: float, second: float, images: int) -> float:
    """Two-sided p of two accuracies in %, each on ``images``, as if of different images.

    For printed accuracies, whose images nobody can pair any more.
    """
    from statsmodels.stats.proportion import proportions_ztest

    correct = [first * images / 100, second * images / 100]
    return 1.0 if first == second else float(proportions_ztest(correct, [images] * 2)[1])


# ---------------------------------------------------------------------------------------------
# Families of tests
# ---------------------------------------------------------------------------------------------


def adjust(p_values: Values, method: Literal["holm", "fdr"] = "holm") -> np.ndarray:
    """Holm's correction of a family of p values, or Benjamini and Hochberg's for a rate of false
    discoveries; in the order given. NaN stays NaN and does not count."""
    from scipy import stats

    if method not in ("holm", "fdr"):
        raise ValueError(f"there is no correction {method!r}; known are holm and fdr")
    p = np.array(p_values, float)
    known = np.flatnonzero(~np.isnan(p))
    if method == "fdr":
        p[known] = stats.false_discovery_control(p[known]) if len(known) else []
    else:  # not by statsmodels, whose multipletests collects garbage at every call: 0.1 s
        order = known[np.argsort(p[known])]
        p[order] = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return p


# ---------------------------------------------------------------------------------------------
# Trends
# ---------------------------------------------------------------------------------------------


def slope(x: Values, y: Values, noise: Noise | None = None) -> Estimate:
    """Least-squares slope of y over x, with its standard error; not estimable from two points.

    The error is that of the ``noise`` of a single run, if it is known, else of the residuals.
    """
    from scipy import stats

    x, y = np.asarray(x, float), np.asarray(y, float)
    missing = int(np.isnan(y).sum())
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    if len(np.unique(x)) < 2:
        return Estimate(math.nan, None, 1, len(x), "runs", missing)
    found: Any = stats.linregress(x, y)
    mean = float(found.slope)
    if noise:
        known = noise.sd / math.sqrt(((x - x.mean()) ** 2).sum())
        return Estimate(mean, known, noise.df, len(x), "runs", missing, by=noise.say())
    error = float(found.stderr) if len(x) > 2 and found.stderr > NO_SPREAD else None
    return Estimate(mean, error, max(len(x) - 2, 1), len(x), "runs", missing)


# ---------------------------------------------------------------------------------------------
# A grid of runs
# ---------------------------------------------------------------------------------------------


PAIRED = "weight_decay"
"""It hardly matters, and two runs that differ in it alone have first weights and order of images
in common: no two observations."""


def variance_explained(
    grid: pd.DataFrame, outcome: str, factors: Sequence[str], term: str = ""
) -> pd.DataFrame:
    """How much of an outcome's variance over a grid each factor explains.

    Analysis of variance, type II, of main effects and, where ``term`` names two factors as “a:b”,
    their interaction; every factor is categorical. Rows are the factors, the term, and ``rest``;
    columns ``sum_of_squares``, ``df``, ``share`` (η², in %), ``n`` (independent values), ``error``
    and ``error_df`` (the mean square that counts as noise, and its degrees of freedom), ``omega``
    (ω², in %: the share less what noise would explain), ``f`` and ``p``. With one run for each cell
    the rest holds interactions and noise alike.

    Where ``PAIRED`` is a factor, this is a split-plot design: that factor is compared within pairs
    of runs, everything else between their means, each with a noise of its own; a run that lacks its
    partner, because that diverged, is left out. NaN where nothing is left to tell the noise from.
    """
    from scipy import stats

    _require_columns(grid, [*factors, outcome])
    grid, pairs = _pair(grid, outcome, factors)
    table = _decompose(grid, outcome, [*factors, *([term] if term else [])])
    squares, df = table["sum_of_squares"], table["df"]
    total, pooled = squares.sum(), squares["rest"] / df["rest"] if df["rest"] else math.nan
    table["share"] = 100 * squares / total
    table["n"], table["error"], table["error_df"] = len(pairs), squares["rest"], df["rest"]
    if len(pairs) < len(grid):
        within = np.array([PAIRED in name.split(":") for name in table.index])
        rest = _decompose(pairs, outcome, table.index[~within].drop("rest")).loc["rest"]
        noise = [rest["sum_of_squares"] * len(grid) / len(pairs), rest["df"]]
        table.loc[within, ["error", "error_df"]] -= noise
        table.loc[~within, ["error", "error_df"]] = noise
    table["error"] = (table["error"] / table["error_df"]).where(table["error_df"] > 0)
    table["omega"] = 100 * (squares - df * table["error"]) / (total + pooled)
    table["f"] = squares / df / table["error"]
    table["p"] = stats.f.sf(table["f"], df, table["error_df"])
    table.loc["rest", ["omega", "f", "p"]] = math.nan
    return table


def _decompose(grid: pd.DataFrame, outcome: str, terms: Sequence[str]) -> pd.DataFrame:
    """``sum_of_squares`` and ``df`` of each term beside those that lack it, and of ``rest``."""
    outcomes = grid[outcome].to_numpy(float)
    dummies = {name: _indicate(grid, name) for name in terms}
    rows = {}
    for name in dummies:
        others = [d for t, d in dummies.items() if not set(name.split(":")) <= set(t.split(":"))]
        fits = _fit(outcomes, others), _fit(outcomes, [*others, dummies[name]])
        rows[name] = [fits[0][0] - fits[1][0], fits[1][1] - fits[0][1]]
    residual, parameters = _fit(outcomes, dummies.values())
    rows["rest"] = [residual, len(grid) - parameters]
    return pd.DataFrame.from_dict(rows, "index", float, ["sum_of_squares", "df"])


def _pair(
    grid: pd.DataFrame, outcome: str, factors: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs that have their partners in ``PAIRED``, and their means; else the grid, twice."""
    others = [name for name in (*factors, "seed") if name != PAIRED and name in grid]
    if PAIRED not in factors or not others or (size := grid[PAIRED].nunique()) < 2:
        return grid, grid
    whole = grid[grid.groupby(others, dropna=False)[PAIRED].transform("nunique") == size]
    if whole.empty:
        return grid, grid
    return whole, whole.groupby(others, dropna=False, as_index=False)[outcome].mean()


def say_shares(shares: pd.DataFrame, factors: Sequence[str]) -> str:
    """ω² of some factors in words: “learning rate 59, optimiser 26 %”."""
    said = (f"{say_setting(f)} {max(0.0, shares['omega'][f]):.0f}" for f in factors)
    return f"{', '.join(said)} %"


def _indicate(grid: pd.DataFrame, term: str) -> np.ndarray:
    """A column of zeros and ones for each level of a factor, or of a combination “a:b”."""
    levels = [pd.factorize(grid[name])[0] for name in term.split(":")]
    _, cells = np.unique(np.stack(levels), axis=1, return_inverse=True)
    return np.eye(cells.max() + 1)[cells.ravel()]


def _fit(outcomes: np.ndarray, columns: Iterable[np.ndarray]) -> tuple[float, int]:
    """(residual sum of squares, parameters) of a least-squares fit with an intercept."""
    design = np.hstack([np.ones((len(outcomes), 1)), *columns])
    found, _, rank, _ = np.linalg.lstsq(design, outcomes, rcond=None)
    return float(((outcomes - design @ found) ** 2).sum()), int(rank)


def omega(shares: pd.DataFrame, factor: str, less: str = "") -> Estimate:
    """ω² of a factor of a grid, or by how much it exceeds another's, in percentage points.

    ``shares`` are those of ``variance_explained``. The standard error is the delta method's: a sum
    of squares has the variance 2σ⁴df + 4σ²·(what it holds beyond noise) of a noncentral χ²
    distribution, and those of different factors are independent. Not estimable where no degree of
    freedom is left for the noise.
    """
    squares, df, noise = shares["sum_of_squares"], shares["df"], shares["error"]
    weights = pd.Series(0.0, shares.index)
    weights[factor] = 1
    if less:
        weights[less] = -1
    slope = (weights - (weights * squares).sum() / squares.sum()) / squares.sum()
    variance = 2 * noise**2 * df + 4 * noise * (squares - df * noise).clip(lower=0)
    variance["rest"] = 2 * squares["rest"] ** 2 / max(df["rest"], 1)
    error = 100 * math.sqrt((slope**2 * variance).sum(skipna=False))
    return Estimate(
        float((weights * shares["omega"]).drop("rest").sum(skipna=False)),
        error if error > 0 else None,  # not if it is NaN
        max(float(shares.loc[weights != 0, "error_df"].min()), 1),
        int(shares["n"].iloc[0]),
        "runs of the grid",
    )
