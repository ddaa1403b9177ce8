"""Searches that stop runs early, replayed over recorded curves of validation accuracy.

Nothing is trained. A run is worth its best validation top-1; after epoch k it is known by its best
one until then. ``courses`` are frames of validation top-1 in %, a row a run and a column an epoch.
Costs are epochs trained, as a share of training every run to its end.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from cifarlib.analysis.statistics import BOOTSTRAP_SEED, LEVEL

REDUCTION = 3  # one of three runs continues
ORDERS = 20  # in which the runs arrive at ASHA
KEPT = 3  # runs that every method but ASHA trains to the end
LEAST = 2 * KEPT  # runs below which nothing is replayed
RESAMPLES = 1000


def tabulate_courses(curves: pd.DataFrame) -> pd.DataFrame:
    """Validation top-1 by run and epoch, of the first seed of each condition.

    ``curves`` are rows of ``results.curves``. Runs that stopped early are left out; empty where
    too few are left, or where there is one epoch only.
    """
    known = curves[(curves["split"] == "validation") & (curves["epoch"] > 0)]
    first = known.drop_duplicates("name")["run_id"]
    courses = known.drop_duplicates(["run_id", "epoch"]).pivot(
        index="run_id", columns="epoch", values="top1"
    )
    courses = courses.reindex(first).dropna()
    return courses if len(courses) >= LEAST and courses.shape[1] > 1 else courses.iloc[:0]


def rungs(epochs: int) -> list[int]:
    """Epochs at which halving decides: 1, 3, 9, … below the last."""
    return [REDUCTION**rung for rung in range(epochs) if REDUCTION**rung < epochs]


def replay(courses: pd.DataFrame) -> pd.DataFrame:
    """Every way to search: a row each, with its ``method``, ``cost``, ``best``, ``top``, ``lost``.

    ``cost`` in % of all epochs; how often, in %, the ``best`` run and all of the ``top`` three were
    trained to their ends; and ``lost``, the best run's accuracy less that of the best one kept, in
    points. Means over orders where these matter.
    """
    known = np.maximum.accumulate(courses.to_numpy(), axis=1)
    random = np.random.default_rng(BOOTSTRAP_SEED)
    orders = [random.permutation(len(known)) for _ in range(ORDERS)]
    ways = {
        f"all to epoch {epoch}, then the best {KEPT}": [halve(known, [epoch], len(known))]
        for epoch in rungs(known.shape[1])
    }
    ways["successive halving"] = [halve(known, rungs(known.shape[1]), REDUCTION)]
    ways["ASHA"] = [halve_asynchronously(known, order) for order in orders]
    rows = [{"method": method} | _judge(known, trials) for method, trials in ways.items()]
    return pd.DataFrame(rows)


def halve(known: np.ndarray, stops: Sequence[int], reduction: int) -> np.ndarray:
    """Successive halving: at each stop one of ``reduction`` runs continues, three at least.

    Gives the epochs that each run is trained for, (runs,). Jamieson and Talwalkar, "Non-stochastic
    Best Arm Identification and Hyperparameter Optimization", 2016.
    """
    left = np.arange(len(known))
    trained = np.zeros(len(known), dtype=int)
    for epoch in stops:
        trained[left] = epoch
        count = max(KEPT, len(left) // reduction)
        left = left[np.argsort(-known[left, epoch - 1], kind="stable")[:count]]
    trained[left] = known.shape[1]
    return trained


def halve_asynchronously(known: np.ndarray, order: Iterable[int]) -> np.ndarray:
    """ASHA: each run is compared with those before it, and never resumed once stopped.

    Li and others, "A System for Massively Parallel Hyperparameter Tuning", 2020, as Optuna's
    ``SuccessiveHalvingPruner`` does it.
    """
    trained = np.full(len(known), known.shape[1])
    seen: dict[int, list[float]] = {epoch: [] for epoch in rungs(known.shape[1])}
    for run in order:
        for epoch, values in seen.items():
            values.append(known[run, epoch - 1])
            better = sum(value > values[-1] for value in values)
            if better >= max(1, len(values) // REDUCTION):
                trained[run] = epoch
                break
    return trained


def _judge(known: np.ndarray, trials: Sequence[np.ndarray]) -> dict[str, float]:
    """``trials`` are the epochs that each run was trained for, one array (runs,) an order.

    Runs of equal worth are interchangeable.
    """
    epochs, worth = known.shape[1], known[:, -1]
    best = np.sort(worth)[::-1][:KEPT]
    kept = [np.sort(worth[trained == epochs])[::-1][:KEPT] for trained in trials]
    return {
        "cost": 100 * float(np.mean([trained.mean() / epochs for trained in trials])),
        "best": 100 * float(np.mean([found[0] == best[0] for found in kept])),
        "top": 100 * float(np.mean([np.array_equal(found, best) for found in kept])),
        "lost": float(np.mean([best[0] - found[0] for found in kept])),
    }


def correlate(courses: pd.DataFrame, blocks: Sequence[int] | None = None) -> pd.DataFrame:
    """Spearman's ``rho`` of the runs' order after each ``epoch`` with that at the end.

    ``low`` and ``high`` are a 95 % percentile bootstrap of the runs; of the ``blocks`` of runs that
    are one observation, where all are of one size. Where all runs are equal there is no order: 0.
    """
    known = np.maximum.accumulate(courses.to_numpy(), axis=1)
    random = np.random.default_rng(BOOTSTRAP_SEED)
    members = np.arange(len(known))[:, None]
    if blocks is not None and len(set(sizes := np.unique(blocks, return_counts=True)[1])) == 1:
        members = np.argsort(np.asarray(blocks), kind="stable").reshape(-1, sizes[0])
    drawn = members[random.integers(0, len(members), (RESAMPLES, len(members)))]
    drawn = drawn.reshape(RESAMPLES, -1)
    late, tail = known[:, -1], 50 * (1 - LEVEL)
    rows = []
    for epoch, early in enumerate(known.T, start=1):
        low, high = np.percentile(_spearman(early[drawn], late[drawn]), [tail, 100 - tail])
        rows.append((epoch, _spearman(early, late)[0], low, high))
    return pd.DataFrame(rows, columns=["epoch", "rho", "low", "high"])


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Along the last axis; scipy's ``spearmanr`` takes no stack of samples."""
    one, two = pd.DataFrame(first.T).rank(), pd.DataFrame(second.T).rank()
    return one.corrwith(two).fillna(0).to_numpy()
