"""Pairs of settings: differences, families of tests, and the tables made of them."""

import numpy as np
import pytest
from conftest import make_data_record, make_record
from scipy import stats

from cifarlib import contrasts, published
from cifarlib.records import RecordStore, open_results
from cifarlib.statistics import adjust_holm, correct_images, mcnemar, two_proportions


def recorded(folder, overrides=(), only=lambda condition: True):
    store = RecordStore(folder)
    store.write(make_data_record("synthetic"))
    for condition in open_results("smoke", overrides, folder).conditions:
        if only(condition):
            store.write(make_record(condition))
    return open_results("smoke", overrides, folder)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("complete"))


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return open_results("smoke", [], tmp_path_factory.mktemp("empty"))


def right(results, condition):
    return correct_images(results.record(condition), results.data)


def test_one_seed_is_compared_on_its_images(complete):
    first, second = (complete.select("stage1-daa1", run=run) for run in (9, 13))
    pair = contrasts.contrast(complete, first, second)
    expected = mcnemar(right(complete, first[0]), right(complete, second[0]))
    assert (pair.difference, pair.p, pair.seeds) == (expected.difference, expected.p, 1)
    assert pair.runs == (first[0].run_id, second[0].run_id)
    assert pair.basis == "exact McNemar, one seed"
    assert pair.difference in contrasts.difference_interval(complete, pair)


def test_three_seeds_are_compared_by_their_differences(tmp_path):
    results = recorded(tmp_path, ["seeds=[1, 2, 3]"], lambda c: c.stage == "stage1-long")
    first, second = (results.select("stage1-long", run=run) for run in (9, 13))
    pair = contrasts.contrast(results, first, second)
    differences = [
        100 * (right(results, a).mean() - right(results, b).mean())
        for a, b in zip(first, second, strict=True)
    ]
    assert pair.difference == pytest.approx(np.mean(differences))
    assert pair.seeds == 3
    assert pair.basis == "t test, 3 seeds"
    interval = contrasts.difference_interval(results, pair)
    assert (0 in interval) == (pair.p >= 0.05)  # the test and its interval agree


def test_two_seeds_are_compared_as_more_are(tmp_path):
    results = recorded(tmp_path, ["seeds=[1, 2]"], lambda c: c.stage == "stage1-long")
    first, second = (results.select("stage1-long", run=run) for run in (9, 13))
    pair = contrasts.contrast(results, first, second)
    differences = [
        100 * (right(results, a).mean() - right(results, b).mean())
        for a, b in zip(first, second, strict=True)
    ]
    assert pair.difference == pytest.approx(np.mean(differences))
    assert pair.p == pytest.approx(stats.ttest_rel(differences, [0, 0]).pvalue)
    assert pair.basis == "t test, 2 seeds"
    interval = contrasts.difference_interval(results, pair)
    assert (interval.low + interval.high) / 2 == pytest.approx(pair.difference)
    assert (0 in interval) == (pair.p >= 0.05)


def test_only_common_seeds_are_compared(tmp_path):
    def only(condition):
        return condition.stage == "stage1-long" and (condition.run, condition.config.seed) != (9, 2)

    results = recorded(tmp_path, ["seeds=[1, 2]"], only)
    pair = contrasts.contrast(results, *(results.select("stage1-long", run=run) for run in (9, 13)))
    assert pair.seeds == 1


def test_nothing_recorded_is_no_contrast(empty):
    sets = (empty.select("stage1-long", run=run) for run in (9, 13))
    assert contrasts.contrast(empty, *sets) is None


def test_a_family_is_corrected_together(complete):
    pairs = contrasts.against_best(complete, contrasts.group(complete, "stage1-daa1"), 13)
    assert len(pairs) == 31
    raw = [pair.p for pair in pairs.values()]
    assert [pair.adjusted for pair in pairs.values()] == pytest.approx(adjust_holm(raw))
    assert all(pair.separate == (pair.adjusted < 0.05) for pair in pairs.values())


def test_runs_are_ranked_by_their_mean(complete):
    ranked = contrasts.rank(complete, contrasts.group(complete, "stage1-daa1"))
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
    assert ranked[13] == complete.record(complete.find("stage1-daa1", 13)).accuracy("test")


def test_how_many_printed_runs_tie_with_the_best():
    assert contrasts.published_ties("VII") == (5, 4, 31)
    assert contrasts.published_ties("IX") == (13, 0, 1)
    best, *others = sorted(published.read_table("VII")["test_top1"], reverse=True)
    p = adjust_holm([two_proportions(best, other, 10_000) for other in others])
    assert sum(value >= 0.05 for value in p) == 4


def test_the_best_runs_are_tabulated(complete, empty):
    table = contrasts.tabulate_best(complete)
    assert table["", "Table"].tolist() == ["IV", "V", "VI", "VII", "VIII", "IX"]
    assert table["Best run", "paper"].tolist() == [1, 13, 26, 5, 12, 13]
    stage = complete.stage("stage1-daa1").set_index("run")["test_top1"]
    assert table["Ours", "top-1, %"].iloc[3] == stage.max()
    low, high = map(float, table["Ours", "95 % interval"].iloc[3].split(" to "))
    assert low < stage.max() < high
    assert len(table.attrs["runs"][3]) == 32
    waiting = contrasts.tabulate_best(empty)
    assert waiting["Best run", "paper"].notna().all()
    assert waiting["Best run", "ours"].isna().all()


def test_gains_match_rows_of_equal_settings(complete, empty):
    table = contrasts.tabulate_augmentation_gain(complete)
    assert len(table) == 12
    assert table["DAA-1", "paper"].min() == pytest.approx(9.4)
    assert table["DAA-1", "paper"].max() == pytest.approx(19.6)
    settings = {"batch_size": 32, "learning_rate": 0.001, "weight_decay": 0.001}
    plain = complete.select("stage1-base", optimizer="adamw", **settings)[0]
    augmented = complete.select("stage1-daa1", **settings)[0]
    expected = right(complete, augmented).mean() - right(complete, plain).mean()
    assert table["DAA-1", "ours"].iloc[0] == pytest.approx(100 * expected)
    assert plain.run_id in table.attrs["runs"][0]
    assert contrasts.tabulate_augmentation_gain(empty)["DAA-1", "ours"].isna().all()


def test_dropout_is_tested_against_none(complete, empty):
    table = contrasts.tabulate_dropout_tests(complete)
    assert table["", "Dropout"].tolist() == [0.1, 0.2, 0.5, 0.7] * 2
    assert table["Paper", "difference"].iloc[4] == pytest.approx(88.44 - 89.4)
    pairs = contrasts.dropout_contrasts(complete, 13)
    assert table["Ours", "p (Holm)"].iloc[4:].tolist() == [p.adjusted for p in pairs.values()]
    assert all(len(runs) == 2 for runs in table.attrs["runs"])
    assert contrasts.tabulate_dropout_tests(empty)["Ours", "difference"].isna().all()


def test_models_are_tested_in_one_family(complete, empty):
    table = contrasts.tabulate_model_tests(complete)
    assert table["Paper", "difference"].tolist() == pytest.approx([0.57, -0.31, 0.38, 6.12])
    raw = [
        two_proportions(a, b, 10_000)
        for a, b in ((89.97, 89.4), (89.97, 90.28), (90.28, 89.9), (89.97, 83.85))
    ]
    assert table["Paper", "p (Holm)"].tolist() == pytest.approx(adjust_holm(raw))
    improved, long = complete.select("stage2-improved")[0], complete.find("stage1-long", 13)
    expected = 100 * (right(complete, improved).mean() - right(complete, long).mean())
    assert table["Ours", "difference"].iloc[0] == pytest.approx(expected)
    assert contrasts.tabulate_model_tests(empty)["Ours", "difference"].isna().all()


def test_numbers_are_said_in_words():
    assert contrasts.say_p(0.0004) == "< 0.001"
    assert contrasts.say_p(0.034) == "0.034"
    assert contrasts.say_interval(contrasts.Interval(-0.123, 0.5)) == "−0.12 to +0.50"
    assert contrasts.say_range(contrasts.Interval(89.23, 90.4)) == "89.2 to 90.4"
