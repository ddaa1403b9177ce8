"""Do the judges keep their word? False verdicts on null data, and power at real effects.

The judges are given data of which the truth is known, with normally distributed noise: no effect
at all, an effect exactly at the bound that a claim names, two factors of equal effect. A verdict
that a claim held or did not is then false, and may occur in 5 % of draws. All sizes are multiples
of the noise; its own is arbitrary.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache

import numpy as np
import pandas as pd

from cifarlib.analysis import judges
from cifarlib.analysis import statistics as stats
from cifarlib.analysis.judges import Judgement
from cifarlib.analysis.statistics import ALPHA, Interval, Noise, Pairs

SEEDS = 3  # of each setting where several are drawn
PAIRS = 16  # blocks of matched pairs over a grid
SETTINGS = 12  # of a search whose best run is asked for
NOISE = 0.5  # points, between two runs of which only the seed differs
LEVELS = {"learning_rate": 4, "batch_size": 4, "weight_decay": 2, "augmentation": 2}
"""Factors of a simulated grid, as of the paper's Tables VII and VIII together."""

Draw = Callable[[np.random.Generator, float], Judgement]
"""A judgement of simulated data; the effect is 0 on null data, else in points."""


def _estimated_noise(random: np.random.Generator) -> Noise:
    """The noise floor as it is known from ten seeds of each of two settings."""
    sd = float(NOISE * np.sqrt(random.chisquare(18) / 18))
    return Noise(sd, 18, 2, Interval(sd, sd))


def _seeds(random: np.random.Generator, effect: float) -> Judgement:
    return judges.positive(random.normal(effect, NOISE * 2**0.5, SEEDS))


def _single_pair(random: np.random.Generator, effect: float) -> Judgement:
    one, other = random.normal([effect, 0], NOISE)
    return judges.positive(_estimated_noise(random).pair(one - other))


def _grid_pairs(random: np.random.Generator, effect: float) -> Judgement:
    """Two labels over a grid whose blocks differ by far more than the labels do."""
    blocks = random.normal(70, 8, PAIRS)[:, None]
    scores = blocks + random.normal(0, NOISE, (PAIRS, 2)) + [effect, 0]
    return judges.positive(scores[:, 0] - scores[:, 1])


def _two_noises(random: np.random.Generator, effect: float) -> Judgement:
    """A single pair of runs of two settings, of which one is twice as noisy and known from five
    seeds."""
    sd = 2 * NOISE * float(np.sqrt(random.chisquare(4) / 4))
    floors = _estimated_noise(random), Noise(sd, 4, 1, Interval(sd, sd))
    runs = random.normal([effect, 0], [NOISE, 2 * NOISE])
    first, second = (pd.DataFrame({"seed": [42], "test_top1": [run]}) for run in runs)
    return judges.positive(stats.contrast(first, second, noise=floors))


def _both(random: np.random.Generator, effect: float) -> Judgement:
    """A claim of two differences, of which one is large; the effect is on the other."""
    parts = {"large": _seeds(random, 5 + effect), "none": _seeds(random, effect)}
    return judges.every(parts)


def _at_margin(random: np.random.Generator, effect: float) -> Judgement:
    """A difference that lies exactly on the margin; the effect moves it inwards."""
    margin = 4.0
    return judges.equal(random.normal(margin - effect, NOISE * 2**0.5, SEEDS), margin)


def _best(random: np.random.Generator, effect: float) -> Judgement:
    noise = _estimated_noise(random)
    scores = random.normal(0, NOISE, SETTINGS)
    scores[0] += effect
    return judges.best(dict(enumerate(scores)), 0, noise)


def _largest(random: np.random.Generator, effect: float) -> Judgement:
    """Gains of which the largest are exactly at the bound; the effect raises them all."""
    gains = _draw_gains(random, 12 - np.linspace(0, 8, PAIRS) + effect)
    return judges.largest(gains, 0, 12, _estimated_noise(random))


def _nearly_all(random: np.random.Generator, effect: float) -> Judgement:
    """Two gains of none, where one may be; the effect is on all of them."""
    gains = _draw_gains(random, np.where(np.arange(PAIRS) < 2, 0, 5) + effect)
    return judges.nearly_all(gains, 1, _estimated_noise(random))


def _draw_gains(random: np.random.Generator, true: np.ndarray) -> Pairs:
    """Matched pairs of single runs whose true differences are known."""
    found = true + random.normal(0, NOISE * 2**0.5, len(true))
    return Pairs(stats.estimate(found, "pairs"), (), pd.DataFrame({"difference": found}))


def _trend(random: np.random.Generator, effect: float) -> Judgement:
    """A slope that lies exactly on the margin, from one run a step; the effect moves it inwards."""
    steps, margin = np.array([0.0, 0.1, 0.2, 0.5, 0.7]) / 0.7, 2 * NOISE
    found = (margin - effect) * steps + random.normal(0, NOISE, len(steps))
    return judges.within(stats.slope(steps, found, _estimated_noise(random)), high=margin)


def simulate_grid(random: np.random.Generator, effects: dict[str, float]) -> pd.DataFrame:
    """Accuracies over a full grid of one run a cell: main effects of given spread, and noise.

    Two runs that differ in ``statistics.PAIRED`` alone share half of the noise's variance.
    """
    grid = _full_grid()
    pair = grid.groupby([name for name in LEVELS if name != stats.PAIRED]).ngroup()
    spread = NOISE / 2**0.5
    scores = random.normal(70, spread, len(grid)) + random.normal(0, spread, len(grid))[pair]
    for name, levels in LEVELS.items():
        shifts = random.normal(size=levels)
        shifts = (shifts - shifts.mean()) / shifts.std() * effects.get(name, 0.0)
        scores += shifts[grid[name]]
    return grid.assign(test_top1=scores)


@cache
def _full_grid() -> pd.DataFrame:
    factors = pd.MultiIndex.from_product([range(n) for n in LEVELS.values()], names=list(LEVELS))
    return factors.to_frame(index=False)


def _equal_shares(random: np.random.Generator, effect: float) -> Judgement:
    """Two factors of equal, large effect; the effect is what the first has more."""
    grid = simulate_grid(random, {"learning_rate": 5 + effect, "batch_size": 5})
    return judges.explains_more(grid, "test_top1", list(LEVELS)[:1], list(LEVELS)[1:])


def _no_shares(random: np.random.Generator, effect: float) -> Judgement:
    """Two factors without any effect: what is left is chance."""
    grid = simulate_grid(random, {"learning_rate": effect})
    return judges.explains_more(grid, "test_top1", list(LEVELS)[:1], list(LEVELS)[1:])


def _factor(random: np.random.Generator, effect: float) -> Judgement:
    grid = simulate_grid(random, {"learning_rate": effect, "batch_size": 5})
    return judges.effect(grid, "test_top1", list(LEVELS), "learning_rate")


def _interaction(random: np.random.Generator, effect: float) -> Judgement:
    grid = simulate_grid(random, {"learning_rate": 5, "batch_size": 5})
    same = (grid["learning_rate"] + grid["batch_size"]) % 2
    grid["test_top1"] += effect * (same - 0.5)
    return judges.effect(grid, "test_top1", list(LEVELS), "learning_rate:batch_size")


def _all_above(random: np.random.Generator, effect: float) -> Judgement:
    table = pd.DataFrame(random.normal(70, NOISE, (6, 10)))
    table[[0, 1, 2]] += effect
    return judges.all_above(table, [0, 1, 2], range(3, 10))


NULLS: dict[str, Draw] = {
    "above 0: one pair of runs": _single_pair,
    f"above 0: {SEEDS} seeds": _seeds,
    f"above 0: {PAIRS} blocks of a grid": _grid_pairs,
    "above 0: one pair of runs, unlike noises": _two_noises,
    "above 0: two differences, one of them none": _both,
    f"equal: {SEEDS} seeds at the margin": _at_margin,
    f"best of {SETTINGS} runs": _best,
    f"largest of {PAIRS} gains, at the bound": _largest,
    f"nearly all of {PAIRS} gains, two of them none": _nearly_all,
    "three of ten classes above the others": _all_above,
    "trend over five dropouts, at the margin": _trend,
    "explains more: two equal factors": _equal_shares,
    "explains more: two factors without effect": _no_shares,
    "effect of a factor without effect": _factor,
    "effect: interaction of two factors": _interaction,
}
"""The judges on data of which no verdict but “not distinguishable” is right."""


def count_verdicts(draw: Draw, draws: int, effect: float = 0.0, seed: int = 42) -> tuple[int, int]:
    """How often a judge says held, and did not hold, in some draws."""
    random = np.random.default_rng(seed)
    found = [draw(random, effect).verdict for _ in range(draws)]
    return found.count("held"), found.count("did not hold")


def tabulate_false_verdicts(draws: int) -> pd.DataFrame:
    """``tabulate_rates`` of the judges on simulated null data."""
    return tabulate_rates(
        {name: (sum(count_verdicts(draw, draws)), draws) for name, draw in NULLS.items()}
    )


def tabulate_rates(found: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    """A row a judge: verdicts given on null data, their rate in %, and its Wilson interval.

    ``found`` are the false verdicts and the draws by the judge's name. ``calibrated`` is whether
    the rate is 5 % or less, within the error of so many draws.
    """
    rows = []
    for name, (false, draws) in found.items():
        interval = stats.wilson(false, draws)
        row = {"judge": name, "draws": draws, "false": false, "rate": 100 * false / draws}
        row |= {"low": interval.low, "high": interval.high}
        rows.append(row | {"calibrated": interval.low <= 100 * ALPHA})
    return pd.DataFrame(rows)


def tabulate_power(effects: Iterable[float], draws: int) -> pd.DataFrame:
    """A row a judge of differences and a true effect in points: how often it says held, in %."""
    chosen = [name for name in NULLS if name.startswith(("above 0", "best"))]
    return pd.DataFrame(
        [
            {
                "judge": name,
                "effect": effect,
                "power": 100 * count_verdicts(NULLS[name], draws, effect)[0] / draws,
            }
            for name in chosen
            for effect in effects
        ]
    )
