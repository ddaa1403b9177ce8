"""The table of runs on CIFAR-10 and on CIFAR-10.1: from made-up records, or pending."""

import dataclasses

import numpy as np
import pytest
from conftest import make_record
from test_shift import make_shift

from cifarlib.beyond import generalisation
from cifarlib.beyond.calibration import Calibration
from cifarlib.records import Results, open_results
from cifarlib.shift import write_shift
from cifarlib.study import STUDIES

OVERRIDES = ("data={name: cifar10, train_size: 20, validation_size: 10, test_size: 1000}",)
STAGES = {"study": ("stage1-base", "stage1-daa1"), "beyond": ("recipe",)}


def give(folder, study: str, overrides=OVERRIDES) -> Results:
    """Made-up records of some stages; every second of their runs was tried on the new images."""
    results = open_results("smoke", overrides, folder, STUDIES[study])
    records = {c.run_id: make_record(c) for c in results.select(*STAGES[study])}
    for record in list(records.values())[::2]:
        write_shift(results.store, make_shift(record, right=0.6))
    return dataclasses.replace(results, records=records)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Results, Results]:
    folder = tmp_path_factory.mktemp("build")
    return give(folder, "study"), give(folder, "beyond")


@pytest.fixture(scope="module")
def pairs(both) -> list[generalisation.Pair]:
    return generalisation.pair(*both)


def test_each_stages_best_run_that_was_tried_on_both_stands_there(both, pairs):
    titles = [r.study.stages[s].title for r, n in zip(both, STAGES, strict=True) for s in STAGES[n]]
    assert [one.title for one in pairs][: len(titles)] == titles
    assert len({one.record.run_id for one in pairs}) == len(pairs)  # which stages may share
    study, _ = both
    tried = list(study.records)[::2]
    of_stage = [c.run_id for c in study.select("stage1-base") if c.run_id in tried]
    best = max(study.records[run_id].accuracy("validation") for run_id in of_stage)
    assert pairs[0].record.accuracy("validation") == best
    assert pairs[0].record.run_id in of_stage
    assert all(one.shift.run_id == one.record.run_id for one in pairs)
    assert len(generalisation.pair(study, study)) == len(STAGES["study"])  # each run once


def test_a_drop_has_the_interval_of_two_independent_proportions(pairs):
    """Newcombe, "Interval Estimation for the Difference Between Independent Proportions", 1998:
    56 of 70 and 48 of 80, by method 10: 0.0524 to 0.3339."""
    confusion = np.zeros((10, 10), dtype=int)
    confusion[0, :2] = 56, 14
    there = np.zeros((10, 10), dtype=int)
    there[0, :2] = 48, 32
    predictions = pairs[0].record.result.predictions.model_copy(
        update={"confusion": {"test": tuple(map(tuple, confusion.tolist()))}}
    )
    result = pairs[0].record.result.model_copy(update={"predictions": predictions})
    one = dataclasses.replace(
        pairs[0],
        record=pairs[0].record.model_copy(update={"result": result}),
        shift=pairs[0].shift.model_copy(
            update={"confusion": tuple(map(tuple, there.tolist()))},
        ),
    )
    assert one.drop == pytest.approx(20)
    assert (one.interval.low, one.interval.high) == pytest.approx((5.24, 33.39), abs=0.005)


def test_table_and_words_agree_with_the_records(both, pairs):
    frame = generalisation.tabulate_generalisation(pairs)
    assert frame.attrs["runs"] == [(one.record.run_id,) for one in pairs]
    for row, one in zip(frame.to_dict("records"), pairs, strict=True):
        matrix = np.array(one.record.result.predictions.confusion["test"])
        before, after = row["CIFAR-10", "Top-1"], row["CIFAR-10.1", "Top-1"]
        assert before == pytest.approx(100 * matrix.trace() / matrix.sum())
        assert after == pytest.approx(100 * one.shift.correct_images.mean())
        assert row["Drop", "Points"] == pytest.approx(before - after)
        error = Calibration(one.shift.confidences, one.shift.correct_images).error
        assert row["CIFAR-10.1", "Calibration"] == pytest.approx(error)
        low, high = map(float, row["CIFAR-10.1", "95 %"].split(" to "))
        assert low < after < high
    told = generalisation.say_generalisation(pairs, both[0])
    drops = frame["Drop", "Points"]
    assert f"Of {len(pairs)} runs" in told
    assert f"{drops.min():.1f} to {drops.max():.1f} points, {drops.mean():.1f}" in told
    shown = generalisation.show_generalisation(pairs, "X11")
    assert 'id="table-X11"' in shown.html
    assert "1,000 images of CIFAR-10, 200 of CIFAR-10.1" in shown.text
    assert "SHA-256 abababababab;" in shown.text
    assert "pending" not in shown.html


def test_without_records_there_is_one_sentence_and_no_table(tmp_path):
    empty = open_results("smoke", OVERRIDES, tmp_path)
    assert generalisation.pair(empty) == []
    assert generalisation.show_generalisation([], "X11") is None
    told = generalisation.say_generalisation([], empty)
    assert "is pending: CIFAR-10.1 is not among the data here" in told
    assert "cifarlib generalise adds" in told
    synthetic = open_results("smoke", (), tmp_path)
    told = generalisation.say_generalisation([], synthetic)
    assert "is pending: these runs are of a generated stand-in set" in told
