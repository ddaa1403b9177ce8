"""Ways to search that stop runs early, replayed over recorded courses of validation accuracy.

A run is worth its best validation top-1; after epoch k it is known by the best one until then.
Costs are epochs trained, as a share of training every run to its end. Accuracies are in %, what is
lost in percentage points.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cifarlib.statistics import BOOTSTRAP_SEED, LEVEL, Interval

REDUCTION = 3  # of three runs, one goes on
ORDERS = 20  # in which the runs come to ASHA
KEPT = 3  # runs that every way but ASHA trains to the end, so that all can keep the best three
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Grid:
    """The courses of one search: validation top-1 in % after each epoch, (runs, epochs)."""

    title: str
    courses: np.ndarray
    runs: tuple[str, ...] = ()  # ids

    @property
    def known(self) -> np.ndarray:
        """The best validation top-1 until each epoch, (runs, epochs)."""
        return np.maximum.accumulate(self.courses, axis=1)

    @property
    def worth(self) -> np.ndarray:
        """What each run is worth at its end, (runs,)."""
        return self.known[:, -1]

    @property
    def epochs(self) -> int:
        return self.courses.shape[1]


@dataclass(frozen=True)
class Replay:
    """What one way to search cost and kept; means over orders where these matter."""

    method: str
    cost: float  # share of all epochs
    best: float  # how often the best run was trained to its end
    top: float  # how often the best three all were
    regret: float  # the best run's worth less that of the best one kept, in points


def rungs(epochs: int) -> list[int]:
    """Epochs at which halving decides: 1, 3, 9, … below the last."""
    return [REDUCTION**rung for rung in range(epochs) if REDUCTION**rung < epochs]


def replay(grid: Grid) -> list[Replay]:
    """Every way to search over one grid."""
    found = [stop_at(grid, epoch) for epoch in rungs(grid.epochs)]
    return [*found, halve(grid), halve_asynchronously(grid)]


def stop_at(grid: Grid, epoch: int) -> Replay:
    """Every run until one epoch, and the three that are best then to the end."""
    order = np.argsort(-grid.known[:, epoch - 1], kind="stable")
    trained = np.full(len(grid.courses), epoch)
    trained[order[:KEPT]] = grid.epochs
    return _judge(grid, f"all to epoch {epoch}, then the best {KEPT}", [trained])


def halve(grid: Grid) -> Replay:
    """Successive halving: at each rung the better third of the runs goes on, three at least.

    Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
    Optimization", 2016.
    """
    left = np.arange(len(grid.courses))
    trained = np.zeros(len(grid.courses), dtype=int)
    for epoch in rungs(grid.epochs):
        trained[left] = epoch
        count = max(KEPT, len(left) // REDUCTION)
        left = left[np.argsort(-grid.known[left, epoch - 1], kind="stable")[:count]]
    trained[left] = grid.epochs
    return _judge(grid, "successive halving", [trained])


def halve_asynchronously(grid: Grid) -> Replay:
    """ASHA: each run is held against those before it, and is not taken up again once stopped.

    Optuna's pruner, over several orders of the runs. Li and others, "A System for Massively
    Parallel Hyperparameter Tuning", 2020.
    """
    random = np.random.default_rng(BOOTSTRAP_SEED)
    orders = [random.permutation(len(grid.courses)) for _ in range(ORDERS)]
    return _judge(grid, "ASHA", [_run_asha(grid, order) for order in orders])


def _run_asha(grid: Grid, order: Iterable[int]) -> np.ndarray:
    """Epochs that each run is trained for, (runs,)."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            direction="maximize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(1, REDUCTION, 0),
            sampler=optuna.samplers.RandomSampler(seed=BOOTSTRAP_SEED),
        )
        trained = np.full(len(grid.courses), grid.epochs)
        for run in order:
            trial = study.ask()
            for epoch in rungs(grid.epochs):
                trial.report(float(grid.known[run, epoch - 1]), epoch)
                if trial.should_prune():
                    trained[run] = epoch
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    break
            else:
                study.tell(trial, float(grid.worth[run]))
    finally:
        optuna.logging.set_verbosity(before)
    return trained


def _judge(grid: Grid, method: str, trials: Sequence[np.ndarray]) -> Replay:
    """``trials`` are the epochs that each run was trained for, one array (runs,) an order.

    Of runs that are worth the same, any stands for the others.
    """
    best = np.sort(grid.worth)[::-1][:KEPT]
    kept = [np.sort(grid.worth[t == grid.epochs])[::-1][:KEPT] for t in trials]
    return Replay(
        method,
        cost=float(np.mean([trained.mean() / grid.epochs for trained in trials])),
        best=float(np.mean([worth[0] == best[0] for worth in kept])),
        top=float(np.mean([np.array_equal(worth, best) for worth in kept])),
        regret=float(np.mean([best[0] - worth[0] for worth in kept])),
    )


def correlation(grid: Grid, epoch: int) -> tuple[float, Interval]:
    """Spearman's ρ of the runs' order after an epoch and at the end; percentile bootstrap of runs.

    Where all are equal there is no order: 0.
    """
    early, late = grid.known[:, epoch - 1], grid.worth
    random = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = random.integers(0, len(late), (RESAMPLES, len(late)))
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(_spearman(early[drawn], late[drawn]), [tail, 100 - tail])
    return float(_spearman(early, late)), Interval(float(low), float(high))


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Along the last axis; scipy's ``spearmanr`` takes no stack of samples."""
    from scipy.stats import rankdata

    one, two = rankdata(first, axis=-1), rankdata(second, axis=-1)
    one -= one.mean(axis=-1, keepdims=True)
    two -= two.mean(axis=-1, keepdims=True)
    spread = np.sqrt((one**2).sum(axis=-1) * (two**2).sum(axis=-1))
    return np.divide((one * two).sum(axis=-1), spread, out=np.zeros_like(spread), where=spread > 0)
