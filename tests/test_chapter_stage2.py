"""The chapters on dropout and on costs, executed on made-up records: none, some, all."""

import itertools

import numpy as np
import pytest
from chapters import CIFAR10, run_chapter
from conftest import make_data_record, make_record, with_result, write_records

from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore

pytestmark = pytest.mark.integration

STAGES = ("stage1-base", "stage1-daa1", "stage1-long", "stage2-dropout", "stage2-improved")


def open_made_up(folder, leave_out=()):
    """The study with records of its first two stages, but for some values of dropout."""
    store = RecordStore(folder)
    store.write(make_data_record("cifar10"))
    chosen = open_results("smoke", CIFAR10, folder).select(*STAGES)
    write_records(store, (c for c in chosen if c.config.dropout not in leave_out))
    return open_results("smoke", CIFAR10, folder)


def execute(folder, name="03_stage2.ipynb"):
    return run_chapter(name, folder, overrides=CIFAR10)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    return open_made_up(folder), execute(folder)


def test_stage_2_without_records_is_pending(tmp_path):
    shown = execute(tmp_path)
    verdicts = dict(shown.verdicts)
    answer = verdicts.pop("answer-6")["text"]
    assert answer.startswith(
        "What it gives is pending; in the paper, from none to 0.7, it is −17.05 "
    )
    assert len(verdicts) == 10
    assert {claim["verdict"] for claim in verdicts.values()} == {"pending"}
    assert not any(shown.figures[number]["drawn"] for number in ("8", "9", "10", "S2"))
    assert shown.said == ["The improved run 13 is not recorded yet."]


def test_stage_2_half_recorded_waits_for_the_rest(tmp_path):
    open_made_up(tmp_path, leave_out=(0.5, 0.7))
    shown = execute(tmp_path)
    rows = shown.tables["XIII"]["rows"]
    assert [row[2] == "pending" for row in rows] == [False] * 3 + [True] * 2
    assert shown.verdicts["dropout-no-gain-run-13"]["verdict"] == "pending"
    assert "dropout 0.7: pending" in shown.figures["8"]["alt"]


def test_dropout_tables_hold_the_records_of_their_run(full):
    results, shown = full
    for number, run in (("XIII", 9), ("XIV", 13)):
        conditions = results.select("stage1-long", "stage2-dropout", run=run)
        ours = {c.config.dropout: results.records[c.run_id].accuracy("test") for c in conditions}
        expected = [f"{ours[dropout]:.2f}" for dropout in sorted(ours)]
        assert [row[2] for row in shown.tables[number]["rows"]] == expected


def test_dropout_is_worth_the_largest_less_none(full):
    results, shown = full
    said = []
    for run in (9, 13):
        conditions = results.select("stage1-long", "stage2-dropout", run=run)
        ours = {c.config.dropout: results.records[c.run_id].accuracy("test") for c in conditions}
        said.append(f"{ours[0.7] - ours[0.0]:+.1f} points")
    answer = shown.verdicts["answer-6"]["text"].replace("−", "-")
    assert all(gain in answer for gain in said)
    assert answer.index(said[0]) < answer.index(" in run 9 (") < answer.index(" in run 13 (")
    assert answer.endswith("in the paper -17.05 and -1.24.")


def test_table_xii_is_part_of_the_test_sets_matrix(full):
    results, shown = full
    (condition,) = results.select("stage2-dropout", run=9, dropout=0.2)
    matrix = np.array(results.records[condition.run_id].result.predictions.confusion["test"])
    rows = shown.tables["XII"]["rows"]
    assert [[int(row[k]) for k in (2, 5, 8)] for row in rows] == matrix[3:6, 3:6].tolist()
    assert [row[9] for row in rows] == ["–"] * 3  # 20 images a class are not 1,000


def test_run_9_is_judged_by_the_seeds_of_its_own_rate(tmp_path):
    results = open_made_up(tmp_path)
    beyond = open_results("smoke", CIFAR10, tmp_path, study="beyond")
    write_records(results.store, beyond.select("dropout-question"))
    claims = execute(tmp_path).verdicts
    assert claims["dropout-no-gain-run-9"]["verdict"] == "pending"
    assert claims["dropout-no-gain-run-13"]["verdict"] != "pending"


def test_a_rate_that_never_fell_tests_nothing(full):
    _, shown = full
    (said,) = shown.said
    assert "the learning rate was never lowered" in said
    for name in ("lowered-rate-gains", "scheduling-is-effective"):
        assert shown.verdicts[name]["verdict"] == "not tested"


def lower_the_rate(results, condition=None):
    """The improved run 13, or another run, as one whose learning rate fell in the last epoch."""
    condition = condition or results.select("stage2-improved")[0]
    record = results.records[condition.run_id]
    rates = list(record.result.history.learning_rate)
    rates[-1] = 0.0001
    results.store.write(with_result(record, learning_rate=tuple(rates)))


def test_a_rate_that_fell_is_judged(tmp_path):
    lower_the_rate(open_made_up(tmp_path))
    shown = execute(tmp_path)
    assert shown.said == ["The learning rate was lowered in 1 of 1 recorded run."]
    assert shown.verdicts["lowered-rate-gains"]["reason"] == "One seed: not decidable."
    effects = shown.verdicts["scheduling-is-effective"]
    assert "schedule" in effects["ours"]
    # Table VII: means of 85.55 at 0.001, 77.5625 at 0.1; 82.45 with batches of 32, 79.6625 of 256.
    assert "learning rate with DAA-1 7.99," in effects["paper"]
    assert "batch size with DAA-1 2.79," in effects["paper"]


def test_a_rate_that_fell_is_judged_seed_by_seed(tmp_path):
    lower_the_rate(open_made_up(tmp_path))
    beyond = open_results("smoke", CIFAR10, tmp_path, study="beyond")
    without = [c for c in beyond.select("dropout-question", run=1) if c.config.dropout == 0]
    lowered = beyond.select("lowered-rate")
    write_records(beyond.store, [*without[1:], *lowered])
    results = open_results("smoke", CIFAR10, tmp_path, study="beyond")
    for condition in lowered:
        lower_the_rate(results, condition)
    shown = execute(tmp_path)
    assert shown.said == [
        "The learning rate was lowered in 3 of 3 recorded runs. Without the rule, 0 of 3 long "
        "runs 13 exceed 89 % on validation."
    ]
    claim = shown.verdicts["lowered-rate-gains"]
    assert claim["n"] == 3
    assert claim["verdict"] != "pending"
    lowered += open_results("smoke", CIFAR10, tmp_path).select("stage2-improved")
    one, two = (
        np.mean([make_record(c).accuracy("test") for c in side]) for side in (lowered, without)
    )
    assert claim["ours"] == f"{one - two:+.1f} points".replace("-", "−")


def test_effects_that_nothing_is_recorded_of_are_pending(tmp_path):
    lower_the_rate(open_made_up(tmp_path, leave_out=(0.1, 0.2, 0.5, 0.7)))
    ours = execute(tmp_path).verdicts["scheduling-is-effective"]["ours"]
    assert ", dropout pending, " in ours
    assert "nan" not in ours


def test_costs_are_sums_of_the_runs_times_in_minutes(full):
    results, _ = full
    tables = execute(results.store.folder, "07_cost.ipynb").tables
    rows = {row[0]: row for row in tables["P1"]["rows"]}
    conditions = results.select("stage2-dropout")
    seconds = sum(results.records[condition.run_id].seconds for condition in conditions)
    row = rows[results.study.stages["stage2-dropout"].title]
    assert (row[1], row[2], row[5]) == ("8", "8", f"{seconds / 60:.1f}")
    machine, *_, longest, one, eight, many = tables["P5"]["rows"][0]
    assert machine.endswith("1 thread")
    hours = [float(cell.replace(",", "")) for cell in (one, eight, many, longest)]
    assert hours == sorted(hours, reverse=True)
    assert tables["P5"]["rows"][1][0] == "GPU"


def test_precision_is_compared_seed_by_seed(tmp_path):
    results = open_made_up(tmp_path)
    beyond = open_results("smoke", CIFAR10, tmp_path, study="beyond")
    exact = {c.config.seed: c for c in beyond.select("precision")}
    ours = {c.config.seed: c for c in beyond.select("noise-floor", run=1)}
    del exact[42]
    write_records(results.store, [*exact.values(), *ours.values()])
    table = execute(tmp_path, "07_cost.ipynb").tables["P4"]
    assert [row[0] for row in table["rows"]] == ["42", "43", "44", "45", "46"]
    assert table["rows"][0][1::2] == ["pending", "pending"]
    tops = {s: [make_record(own[s]).accuracy("test") for own in (exact, ours)] for s in exact}
    for row in table["rows"][1:]:
        fp32, bf16 = tops[int(row[0])]
        told = [f"{fp32:.1f}", f"{bf16:.1f}", f"{bf16 - fp32:+.1f}".replace("-", "−")]
        assert row[1:] == told
    mean = np.mean([bf16 - fp32 for fp32, bf16 in tops.values()])
    assert f"Mean difference over 4 seeds {mean:+.1f} points".replace("-", "−") in table["note"]
    assert [len(runs) for runs in table["runs"]] == [1, 2, 2, 2, 2]
    assert "bf16 on a processor; fp32 on a processor;" in table["note"]


def test_confused_classes_are_compared_with_any_other_three(full):
    results, shown = full
    matrices = {
        c.run_id: np.array(results.predictions(c.run_id).confusion("test"))
        for c in results.select("stage1-long", "stage2-dropout")
    }
    share = {
        three: 100
        * np.mean(
            [
                sum(m[a, b] for a, b in itertools.permutations(three, 2)) / (m.sum() - m.trace())
                for m in matrices.values()
            ]
        )
        for three in itertools.combinations(range(10), 3)
    }
    cats = share.pop((3, 4, 5))
    said = shown.verdicts["confused-classes"]
    assert f"wrong classifications {cats:.1f} % among cat–deer–dog and " in said["ours"]
    assert f"{max(share.values()):.1f} % among " in said["ours"]
    place = 1 + sum(other > cats for other in share.values())
    assert f"Of all 120 triples, this one is number {place}." in said["reason"]
