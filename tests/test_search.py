"""Cheaper searches, replayed: over made-up courses, and over records of the study."""

import dataclasses
import logging

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import make_record
from scipy import stats

from cifarlib.beyond import replay, search
from cifarlib.records import Results, open_results


def steady(runs: int = 27, epochs: int = 30) -> replay.Grid:
    """Runs that keep their order from the first epoch to the last."""
    return replay.Grid("steady", np.add.outer(np.arange(runs), np.arange(epochs)).astype(float))


def misleading(runs: int = 27, epochs: int = 30) -> replay.Grid:
    """Runs of which the best at the first epoch is the worst at the end."""
    courses = np.add.outer(-np.arange(runs, dtype=float), np.zeros(epochs))
    courses[:, -1] = 100 + np.arange(runs)
    return replay.Grid("misleading", courses)


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Results:
    return open_results("smoke", (), tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def searches(empty) -> list[search.Search]:
    records = {c.run_id: make_record(c) for c in empty.select(*search.STAGES)}
    return search.replay_searches(dataclasses.replace(empty, records=records))


# -- ways ---------------------------------------------------------------------------------------


def test_rungs_are_powers_of_three_below_the_end():
    assert replay.rungs(30) == [1, 3, 9, 27]
    assert replay.rungs(27) == [1, 3, 9]


def test_stopping_all_at_an_epoch_costs_it_for_all_and_the_rest_for_three():
    way = replay.stop_at(steady(), 3)
    assert way.cost == pytest.approx((24 * 3 + 3 * 30) / (27 * 30))
    assert (way.best, way.top, way.regret) == (1, 1, 0)


def test_halving_keeps_a_third_at_each_rung_and_three_to_the_end():
    way = replay.halve(steady())
    epochs = 18 * 1 + 6 * 3 + 3 * 30  # 27 runs, 9 of them past epoch 1, 3 past epoch 3
    assert way.cost == pytest.approx(epochs / (27 * 30))
    assert (way.best, way.top, way.regret) == (1, 1, 0)


def test_a_misleading_start_loses_the_best_run():
    for way in (replay.stop_at(misleading(), 9), replay.halve(misleading())):
        assert (way.best, way.top) == (0, 0)
        assert way.regret == 26 - 2  # the three that are left end as the worst three


def test_of_runs_worth_the_same_any_stands_for_the_others():
    courses = np.full((6, 4), 50.0)
    courses[3:, 0] = 10
    way = replay.stop_at(replay.Grid("equal", courses), 1)
    assert (way.best, way.top, way.regret) == (1, 1, 0)


def test_asha_is_optunas_rule_in_the_order_of_the_runs():
    grid = steady()
    upwards = replay._run_asha(grid, range(27))  # each is better than all before it
    assert (upwards == 30).all()
    downwards = replay._run_asha(grid, range(26, -1, -1))
    assert downwards[26] == 30
    assert (downwards[:26] == 1).all()  # none is among the better third of those until then
    assert replay.halve_asynchronously(grid) == replay.halve_asynchronously(grid)


def test_asha_is_quiet_and_leaves_optunas_logging_as_it_was(capfd):
    import optuna

    optuna.logging.set_verbosity(logging.INFO)
    replay.halve_asynchronously(steady(6, 4))
    assert optuna.logging.get_verbosity() == logging.INFO
    assert capfd.readouterr() == ("", "")


def test_rank_correlation_is_scipys_and_lies_in_its_interval():
    courses = np.random.default_rng(0).normal(size=(20, 5)).cumsum(axis=1)
    grid = replay.Grid("random", courses)
    rho, interval = replay.correlation(grid, 2)
    assert rho == pytest.approx(stats.spearmanr(grid.known[:, 1], grid.worth).statistic)
    assert interval.low < rho < interval.high
    assert replay.correlation(grid, 5)[0] == pytest.approx(1)
    assert replay.correlation(misleading(), 1)[0] == pytest.approx(-1)
    assert replay.correlation(replay.Grid("equal", np.ones((6, 3))), 1)[0] == 0


# -- records ------------------------------------------------------------------------------------


def test_courses_are_the_records_validation_accuracies(empty, searches):
    assert [one.grid.courses.shape for one in searches] == [(36, 4), (32, 4), (32, 4)]
    record = make_record(empty.select("stage1-base")[0])
    history = record.result.history.validation
    row = searches[0].grid.runs.index(record.run_id)
    expected = [100 * right / history.images for right in history.top1[1:]]
    assert searches[0].grid.courses[row] == pytest.approx(expected)


def test_the_table_has_a_row_for_each_way_and_names_its_runs(searches):
    frame = search.tabulate_search(searches)
    assert len(frame) == 3 * 4  # two epochs to stop at, halving, ASHA
    assert [len(runs) for runs in frame.attrs["runs"]] == frame["Runs"].tolist()
    assert frame["Cost, % of epochs"].between(1, 100, inclusive="left").all()
    row = searches[0].ways[0]
    assert frame["Lost, points"].iloc[0] == row.regret


def test_few_runs_are_pending_and_runs_stopped_early_are_left_out(empty):
    conditions = empty.select("stage1-base")
    few = {c.run_id: make_record(c) for c in conditions[: search.LEAST - 1]}
    found = search.replay_searches(dataclasses.replace(empty, records=few))
    assert [one.grid for one in found] == [None] * 3
    assert search.tabulate_search(found)["Lost, points"].isna().all()
    assert search.plot_search(found) is None
    assert search.describe_search(found).count("pending") == 3
    assert search.say_search(found).count("pending") == 3
    mixed = {c.run_id: make_record(c) for c in conditions[:8]}
    short = conditions[0]
    mixed[short.run_id] = make_record(short, trained=2)
    grid = search.read_grid(dataclasses.replace(empty, records=mixed), "stage1-base")
    assert len(grid.runs) == 7
    assert short.run_id not in grid.runs


def test_figure_and_sentences_say_what_the_table_holds(searches):
    figure = search.plot_search(searches)
    left, right = figure.axes
    assert len(left.lines) == 3
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in right.lines}
    assert points == {(100 * way.cost, way.regret) for one in searches for way in one.ways}
    plt.close("all")
    alt = search.describe_search(searches)
    assert all(f"{way.regret:.2f} points lost" in alt for one in searches for way in one.ways)
    told = search.say_search(searches)
    for one in searches:
        safe = [way for way in one.ways if way.best == 1]
        cheapest = min(safe, key=lambda way: way.cost).method if safe else "no way"
        assert f"{one.title}: " in told
        assert cheapest in told
