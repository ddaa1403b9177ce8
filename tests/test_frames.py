"""Frames of runs and curves, predictions as arrays, captions."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import make_data_record, with_result, write_records

from cifarlib import paths
from cifarlib.errors import ConfigError
from cifarlib.runs.frames import OUTCOMES, tabulate_runs
from cifarlib.runs.results import open_results
from cifarlib.runs.schema import FlipAveraged
from cifarlib.runs.store import RecordStore


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All conditions of the smoke scale recorded but the last six, on the stand-in set."""
    folder = tmp_path_factory.mktemp("partial")
    store = RecordStore(folder)
    store.write(make_data_record("synthetic"))
    write_records(store, open_results("smoke", [], folder).conditions[:-6])
    return open_results("smoke", [], folder)


def test_runs_have_a_row_for_each_condition_with_its_settings_and_outcome(results):
    runs = results.runs
    assert len(runs) == len(results.conditions)
    assert runs["name"].tolist() == [c.name for c in results.conditions]
    condition, row = results.conditions[0], runs.iloc[0]
    record = results.records[condition.run_id]
    assert (row["optimizer"], row["augmentation"], row["protocol"]) == ("sgd", "none", "corrected")
    assert (row["batch_size"], row["learning_rate"]) == (32, 0.001)
    assert row["epoch"] == record.reported_epoch
    assert row["test_top1"] == record.accuracy("test")
    assert row["gap"] == pytest.approx(record.accuracy("train") - record.accuracy("test"))
    history = record.result.history
    assert row["rates"] == 1
    fell = with_result(record, learning_rate=(*history.learning_rate[:-1], 1e-5))
    assert tabulate_runs([condition], {record.run_id: fell})["rates"].tolist() == [2]


def test_runs_have_flip_averaged_accuracies_where_they_were_asked_for(results):
    condition = results.conditions[0]
    record = results.records[condition.run_id]
    averaged = with_result(record, flip_averaged=FlipAveraged(validation=1, test=50))
    runs = tabulate_runs([condition], {record.run_id: averaged})
    assert runs["flip_top1"].tolist() == [100 * 50 / record.config.data.test_size]
    assert results.runs["flip_top1"].isna().all()


def test_runs_that_are_missing_have_settings_and_no_outcome(results):
    late = results.runs.tail(6)
    assert set(late["state"]) == {"pending"}
    assert late[list(OUTCOMES)].isna().all().all()
    assert late["resize"].tolist() == [
        "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos",
    ]  # fmt: skip


def test_runs_in_training_are_running_and_not_pending(results):
    from cifarlib.runs.locks import lock

    name = results.conditions[-1].run_id
    with lock(results.store.state / f"{name}.lock"):
        assert results.runs["state"].iloc[-1] == "running"
    assert results.runs["state"].iloc[-1] == "pending"


def test_curves_have_what_was_evaluated_by_epoch_and_set(results):
    curves = results.curves
    condition = results.conditions[0]
    history = results.records[condition.run_id].result.history
    one = curves[(curves["run_id"] == condition.run_id) & (curves["split"] == "test")]
    assert one["epoch"].tolist() == [e for e, n in enumerate(history.test.top1) if n is not None]
    assert one["top1"].iloc[-1] == history.test.accuracy(one["epoch"].iloc[-1])
    assert set(one["optimizer"]) == {"sgd"}
    steps = curves[(curves["run_id"] == condition.run_id) & (curves["split"] == "steps")]
    assert steps["loss"].tolist() == list(history.training_loss[1:])
    assert steps["top1"].isna().all()


def test_curves_of_nothing_have_their_columns(tmp_path):
    curves = open_results("smoke", [], tmp_path).curves
    assert {"stage", "learning_rate", "epoch", "split", "rate", "loss", "top1"} <= set(curves)
    assert curves.empty


def test_predictions_are_right_where_the_labels_say_so(results):
    record = results.records[results.conditions[0].run_id]
    predictions = results.predictions(record.run_id)
    matrix = np.array(record.result.predictions.confusion["test"])
    assert predictions.accuracy("test") == pytest.approx(100 * matrix.trace() / matrix.sum())
    assert 100 * predictions.correct.mean() == pytest.approx(predictions.accuracy("test"))
    assert len(predictions.classes) == len(predictions.confidence) == matrix.sum()
    assert replace(results, records={}).predictions(record.run_id) is None
    assert repr(predictions) == f"<RunPredictions of {record!r}>"
    assert results.predictions(results.conditions[0].name).record == record
    with pytest.raises(ConfigError, match="study has the id or the name 'stage1-base/99'"):
        results.predictions("stage1-base/99")


def test_predictions_have_no_labels_of_another_data_set(results, tmp_path):
    elsewhere = open_results("smoke", [], tmp_path)
    record = results.records[results.conditions[0].run_id]
    elsewhere.records[record.run_id] = record
    assert elsewhere.predictions(record.run_id).correct is None


def test_describe_says_what_stands_behind_a_stage_a_frame_and_conditions(results):
    conditions = results.select("stage1-daa1")
    said = results.describe("stage1-daa1")
    assert said == results.describe(conditions)
    assert said == results.describe(results.runs.query("stage == 'stage1-daa1'"))
    assert said.startswith("32 of 32 runs; one seed (42); ")
    assert "not CIFAR-10" in said
    assert "epoch chosen on the validation set" in said
    assert results.describe("interpolation").startswith("0 of 6 runs")


def test_select_knows_settings_seeds_and_what_there_is_not(tmp_path):
    results = open_results("smoke", (), tmp_path)
    sgd = results.select("stage1-base", optimizer="sgd")
    assert len(sgd) == 12
    assert {c.run_id for c in results.select(optimizer="sgd")} >= {c.run_id for c in sgd}
    assert {c.config.seed for c in results.beyond.select("noise-floor", seed=43)} == {43}
    with pytest.raises(ConfigError, match="no condition here has a setting 'optimzer'; did you"):
        results.select("stage1-base", optimzer="sgd")
    with pytest.raises(ConfigError) as caught:
        results.select("zzz")
    assert str(caught.value).count("interpolation") == 1
    with pytest.raises(ConfigError, match="is no run; take one of runs"):
        results.predictions(["x"])


def test_a_scale_file_of_ones_own_takes_no_folder_of_a_scale(tmp_path, monkeypatch):
    path = tmp_path / "lite.yaml"
    path.write_bytes((paths.PARAMS / "lite.yaml").read_bytes())
    with pytest.raises(ConfigError, match=r"has the name of the scale lite.*rename the file"):
        open_results(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"lite.yaml has the name of the scale lite"):
        open_results("lite.yaml")
    assert open_results(path, build=tmp_path).scale_name == "lite"
    assert open_results(paths.PARAMS / "lite.yaml").scale_name == "lite"


def test_describe_names_the_sets_and_seeds_of_its_own_runs(tmp_path):
    results = open_results("smoke", (), tmp_path, "beyond")
    conditions = results.select("protocol-ablation")
    said = results.describe(conditions)
    assert "0 of 40 runs; 5 seeds a setting" in said
    assert "epoch chosen on the test or validation set" in said
    write_records(results.store, conditions[:1])
    assert "1 of 40 runs; one seed (42)" in results.reread().describe(conditions)
