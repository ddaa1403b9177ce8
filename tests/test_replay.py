"""Searches that stop runs early, replayed over made-up curves."""

import numpy as np
import pandas as pd
import pytest
from conftest import make_record, write_records
from scipy import stats

from cifarlib.analysis import replay
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore


def steady(runs: int = 27, epochs: int = 30) -> pd.DataFrame:
    """Runs that keep their order from the first epoch to the last."""
    return pd.DataFrame(np.add.outer(np.arange(runs), np.arange(epochs)).astype(float))


def misleading(runs: int = 27, epochs: int = 30) -> pd.DataFrame:
    """Runs of which the best at the first epoch is the worst at the end."""
    courses = np.add.outer(-np.arange(runs, dtype=float), np.zeros(epochs))
    courses[:, -1] = 100 + np.arange(runs)
    return pd.DataFrame(courses)


def way(courses: pd.DataFrame, method: str) -> dict:
    """One row of the replayed searches."""
    return replay.replay(courses).set_index("method").loc[method].to_dict()


def test_rungs_are_powers_of_three_below_the_end():
    assert replay.rungs(30) == [1, 3, 9, 27]
    assert replay.rungs(27) == [1, 3, 9]


def test_stopping_all_at_an_epoch_costs_it_for_all_and_the_rest_for_three():
    found = way(steady(), "all to epoch 3, then the best 3")
    cost = 100 * (24 * 3 + 3 * 30) / (27 * 30)
    assert found == {"cost": pytest.approx(cost), "best": 100, "top": 100, "lost": 0}


def test_halving_keeps_a_third_at_each_rung_and_three_to_the_end():
    found = way(steady(), "successive halving")
    cost = 100 * (18 * 1 + 6 * 3 + 3 * 30) / (27 * 30)  # 9 runs past epoch 1, 3 past epoch 3
    assert found == {"cost": pytest.approx(cost), "best": 100, "top": 100, "lost": 0}


def test_a_misleading_start_loses_the_best_run():
    for method in ("all to epoch 9, then the best 3", "successive halving"):
        found = way(misleading(), method)
        assert (found["best"], found["top"]) == (0, 0)
        assert found["lost"] == 26 - 2  # the three that are left end as the worst three


def test_runs_of_equal_worth_are_interchangeable():
    courses = pd.DataFrame(np.full((6, 4), 50.0))
    courses.loc[3:, 0] = 10
    found = way(courses, "all to epoch 1, then the best 3")
    assert (found["best"], found["top"], found["lost"]) == (100, 100, 0)


def test_asha_compares_a_run_with_those_before_it():
    known = steady().to_numpy()
    upwards = replay.halve_asynchronously(known, range(27))  # each is better than all before it
    assert (upwards == 30).all()
    downwards = replay.halve_asynchronously(known, range(26, -1, -1))
    assert downwards[26] == 30
    assert (downwards[:26] == 1).all()  # none is among the best third of those until then


def test_asha_is_optunas_rule():
    """What ``SuccessiveHalvingPruner(1, 3, 0)`` of Optuna 5.0 makes of these runs."""
    known = np.random.default_rng(3).integers(0, 9, (12, 10)).astype(float)
    known = np.maximum.accumulate(known, axis=1)
    found = replay.halve_asynchronously(known, range(12)).tolist()
    assert found == [10, 1, 1, 1, 10, 1, 1, 1, 1, 10, 10, 1]


def test_rank_correlation_is_scipys_and_lies_in_its_interval():
    courses = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 5)).cumsum(axis=1))
    known = np.maximum.accumulate(courses.to_numpy(), axis=1)
    found = replay.correlate(courses).set_index("epoch")
    assert found["rho"][2] == pytest.approx(stats.spearmanr(known[:, 1], known[:, -1]).statistic)
    assert found["low"][2] < found["rho"][2] < found["high"][2]
    assert found["rho"][5] == pytest.approx(1)
    assert replay.correlate(misleading())["rho"][0] == pytest.approx(-1)
    twins = pd.concat([courses[:10], courses[:10] + 1e-9], ignore_index=True)
    once, paired = replay.correlate(twins), replay.correlate(twins, pd.Series(2 * [*range(10)]))
    wider = (paired["high"] - paired["low"]) / (once["high"] - once["low"])
    assert (wider[:4] > 1.2).all()  # ten observations, not twenty
    uneven = replay.correlate(twins, [*range(10), *range(9), 3])
    assert uneven.equals(once)
    assert replay.correlate(pd.DataFrame(np.ones((6, 3))))["rho"][0] == 0


def test_courses_are_the_records_validation_accuracies_without_runs_stopped_early(tmp_path):
    conditions = open_results("smoke", (), tmp_path).select("stage1-base")
    store = RecordStore(tmp_path)
    write_records(store, conditions[: replay.LEAST])
    courses = replay.tabulate_courses(open_results("smoke", (), tmp_path).curves)
    assert courses.shape == (replay.LEAST, conditions[0].config.epochs)
    history = store.read_run(conditions[2].run_id).result.history.validation
    expected = [100 * right / history.images for right in history.top1[1:]]
    assert courses.loc[conditions[2].run_id].tolist() == pytest.approx(expected)
    store.write(make_record(conditions[2], trained=2))
    assert replay.tabulate_courses(open_results("smoke", (), tmp_path).curves).empty  # too few
