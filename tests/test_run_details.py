"""What the report tells of a single run."""

import re

import pytest
from bs4 import BeautifulSoup
from conftest import write_records

from cifarlib.cli import _parser
from cifarlib.report import run_details
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A study of which the long runs are recorded."""
    folder = tmp_path_factory.mktemp("runs")
    recorded = open_results("smoke", [], folder).select("stage1-long")
    changed = {"dirty": True, "resumed": 1, "changes": ("from epoch 2: more threads",)}
    write_records(RecordStore(folder), recorded, **changed)
    return open_results("smoke", [], folder)


@pytest.fixture(scope="module")
def runs(results):
    stages = run_details.describe_all(results, "--scale smoke")
    return {run["run_id"]: run for stage in stages for run in stage["runs"]}


def test_every_run_is_told_once(results, runs):
    assert set(runs) == {c.run_id for c in results.conditions}
    assert len([name for run in runs.values() for name in run["names"]]) == len(results.conditions)


def test_a_recorded_run_shows_its_record(results, runs):
    condition = results.select("stage1-long", run=13)[0]
    record, run = results.records[condition.run_id], runs[condition.run_id]
    assert run["test"] == f"{record.accuracy('test'):.2f}"
    assert [row["epoch"] for row in run["accuracies"]] == [
        record.result.chosen[rule] for rule in ("validation", "test", "last")
    ]
    assert [row["reported"] for row in run["accuracies"]] == [True, False, False]
    assert dict(run["confusion"])["disc"] == record.result.predictions.confusion["test"][0]
    for text in ("a processor (cpu, 1 thread)", "commit 0123456789ab, with uncommitted changes",
                 "torch 2.11.0", "2025-01-02T03:04:05", "resumed 1 time",
                 "; from epoch 2: more threads"):  # fmt: skip
        assert text in run["origin"]


def test_a_pending_run_says_how_to_make_it_and_what_it_costs(results, runs):
    run = runs[results.select("stage2-dropout", run=9, dropout=0.5)[0].run_id]
    assert not run["done"]
    assert run["command"] == "cifarlib run stage2-dropout/9,dropout=0.5 --scale smoke"
    assert re.fullmatch(r"about \d+ s of the whole machine", run["cost"])


def test_a_recorded_run_says_how_to_train_it_again(results, runs):
    run = runs[results.select("stage1-long", run=13)[0].run_id]
    assert run["done"]
    assert run["command"] == "cifarlib verify --run stage1-long/13 --scale smoke"
    assert _parser().parse_args(run["command"].split()[1:]).run == ["stage1-long/13"]


def test_of_several_seeds_the_command_names_the_run(tmp_path):
    results = open_results("smoke", ["seeds=[1, 2]"], tmp_path)
    stages = run_details.describe_all(results, "--scale smoke")
    first, second = stages[0]["runs"][:2]
    assert (first["title"], second["title"]) == ("stage1-base/1, seed 1", "stage1-base/1, seed 2")
    assert second["command"] == f"cifarlib run {second['run_id']} --scale smoke"


@pytest.mark.parametrize(
    ("stage", "run", "changed", "words"),
    [
        ("stage1-base", 1, {}, "SGD, learning rate 0.001, weight decay 0.001, batches of 32, "
         "4 epochs (30 at full scale), seed 42"),
        ("stage2-dropout", 9, {"dropout": 0.5}, "augmentation DAA-1, dropout 0.5, early"),
        ("stage2-improved", 13, {}, "schedule (name validation_step, threshold 89.0"),
        ("interpolation", 1, {}, "), resize (size 37, crop 32, method nearest)"),
    ],
)  # fmt: skip
def test_a_configuration_is_said_in_words(results, stage, run, changed, words):
    members = [c for c in results.select(stage, run=run) if c.changed == changed or not changed]
    assert words in run_details.describe_settings(members[0], results)


def test_a_protocol_of_its_own_is_said(results):
    condition = results.conditions[0]
    protocol = condition.config.protocol.model_copy(update={"shuffle": False})
    config = condition.config.model_copy(update={"protocol": protocol})
    changed = type(condition)(**vars(condition) | {"config": config})
    assert run_details.describe_settings(changed, results).endswith(
        "never shuffled, as in the paper's listing"
    )


def points(drawing, name):
    line = BeautifulSoup(drawing, "html.parser").select_one(f"polyline.{name}")
    return [tuple(map(float, pair.split(","))) for pair in line["points"].split()]


def test_curves_rise_where_their_values_rise_and_stay_inside():
    drawing = run_details.draw_curves("Accuracy", {"test": [10, 30, None, 50]}, 3)
    place = points(drawing, "test")
    assert [x for x, _ in place] == sorted({x for x, _ in place})
    assert [y for _, y in place] == sorted((y for _, y in place), reverse=True)
    assert len(place) == 3
    assert all(0 <= x <= run_details.WIDTH and 0 <= y <= run_details.HEIGHT for x, y in place)
    assert 'aria-label="Accuracy by epoch: test 10 at epoch 0, 50 at epoch 3."' in drawing


def test_long_curves_are_thinned_to_their_ends():
    place = points(run_details.draw_curves("Loss", {"train": list(range(201))}, 1), "train")
    assert len(place) == run_details.MOST_POINTS
    assert place[0][0] == run_details.LEFT
    assert place[-1][0] == run_details.WIDTH - run_details.RIGHT


def test_a_single_value_is_a_dot_and_none_nothing():
    assert '<circle class="train"' in run_details.draw_curves("Loss", {"train": [None, 2.0]}, 1)
    assert run_details.draw_curves("Loss", {"train": [None, None]}, 1) == ""
    assert "polyline" in run_details.draw_curves("Loss", {"train": [2.0, 2.0]}, 1)


def test_values_far_apart_stand_on_a_logarithmic_axis():
    drawing = run_details.draw_curves("Loss", {"test": [1.0, 10.0, 100.0]}, 1)
    low, middle, high = (y for _, y in points(drawing, "test"))
    assert "logarithmic" in drawing
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    assert "logarithmic" not in run_details.draw_curves("Loss", {"test": [0.0, 100.0]}, 1)
