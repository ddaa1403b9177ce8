"""Searches that stop runs early, replayed over recorded curves of validation accuracy.

Nothing is trained. A run is worth its best validation top-1; after epoch k it is known by its best
one until then. ``courses`` are frames of validation top-1 in %, a row a run and a column an epoch.
Costs are epochs trained, as a share of training every run to its end.
"""

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from tqdm import TqdmWarning

from cifarlib.analysis.statistics import BOOTSTRAP_SEED, LEVEL

REDUCTION = 3  # one of three runs continues
ORDERS = 20  # in which the runs arrive at ASHA
KEPT = 3  # runs that every method but ASHA trains to the end, so that all can keep the best three
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
    epochs = known.shape[1]
    ways = {
        f"all to epoch {epoch}, then the best {KEPT}": [stop_at(known, epoch)]
        for epoch in rungs(epochs)
    }
    ways |= {"successive halving": [halve(known)], "ASHA": halve_asynchronously(known)}
    rows = [{"method": method} | _judge(known, trials) for method, trials in ways.items()]
    return pd.DataFrame(rows)


def stop_at(known: np.ndarray, epoch: int) -> np.ndarray:
    """Every run until one epoch, and the three that are best then to the end: epochs, (runs,)."""
    order = np.argsort(-known[:, epoch - 1], kind="stable")
    trained = np.full(len(known), epoch)
    trained[order[:KEPT]] = known.shape[1]
    return trained


def halve(known: np.ndarray) -> np.ndarray:
    """Successive halving: at each rung the best third of the runs continues, three at least.

    Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
    Optimization", 2016.
    """
    left = np.arange(len(known))
    trained = np.zeros(len(known), dtype=int)
    for epoch in rungs(known.shape[1]):
        trained[left] = epoch
        count = max(KEPT, len(left) // REDUCTION)
        left = left[np.argsort(-known[left, epoch - 1], kind="stable")[:count]]
    trained[left] = known.shape[1]
    return trained


def halve_asynchronously(known: np.ndarray) -> list[np.ndarray]:
    """ASHA: each run is compared with those before it, and never resumed once stopped.

    Optuna's pruner, over several orders of the runs. Li and others, "A System for Massively
    Parallel Hyperparameter Tuning", 2020.
    """
    random = np.random.default_rng(BOOTSTRAP_SEED)
    return [_run_asha(known, random.permutation(len(known))) for _ in range(ORDERS)]


def _run_asha(known: np.ndarray, order: Iterable[int]) -> np.ndarray:
    with warnings.catch_warnings(category=TqdmWarning, action="ignore"):
        import optuna  # whose progress bars miss ipywidgets, in a kernel without: we show none

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    epochs = known.shape[1]
    try:
        study = optuna.create_study(
            direction="maximize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(1, REDUCTION, 0),
            sampler=optuna.samplers.RandomSampler(seed=BOOTSTRAP_SEED),
        )
        trained = np.full(len(known), epochs)
        for run in order:
            trial = study.ask()
            for epoch in rungs(epochs):
                trial.report(float(known[run, epoch - 1]), epoch)
                if trial.should_prune():
                    trained[run] = epoch
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    break
            else:
                study.tell(trial, float(known[run, -1]))
    finally:
        optuna.logging.set_verbosity(before)
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


def correlate(courses: pd.DataFrame) -> pd.DataFrame:
    """Spearman's ``rho`` of the runs' order after each ``epoch`` with that at the end.

    ``low`` and ``high`` are a 95 % percentile bootstrap of the runs. Where all runs are equal there
    is no order: 0.
    """
    known = np.maximum.accumulate(courses.to_numpy(), axis=1)
    random = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = random.integers(0, len(known), (RESAMPLES, len(known)))
    late, tail = known[:, -1], 50 * (1 - LEVEL)
    rows = []
    for epoch, early in enumerate(known.T, start=1):
        low, high = np.percentile(_spearman(early[drawn], late[drawn]), [tail, 100 - tail])
        rows.append((epoch, float(_spearman(early, late)), float(low), float(high)))
    return pd.DataFrame(rows, columns=["epoch", "rho", "low", "high"])


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Along the last axis; scipy's ``spearmanr`` takes no stack of samples."""
    from scipy.stats import rankdata

    one, two = rankdata(first, axis=-1), rankdata(second, axis=-1)
    one -= one.mean(axis=-1, keepdims=True)
    two -= two.mean(axis=-1, keepdims=True)
    spread = np.sqrt((one**2).sum(axis=-1) * (two**2).sum(axis=-1))
    return np.divide((one * two).sum(axis=-1), spread, out=np.zeros_like(spread), where=spread > 0)
