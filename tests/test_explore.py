"""Runs in one frame, linked charts, pairs, mistakes and training from a cell."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import vl_convert
from bs4 import BeautifulSoup
from conftest import (
    SET_TINY,
    TINY,
    make_data_record,
    make_record,
    tiny_conditions,
    tiny_store,
    write_records,
)

import cifarlib as cl
from cifarlib import cli, data, explore
from cifarlib.config import run_id
from cifarlib.data import Images
from cifarlib.errors import ConfigError, DataError
from cifarlib.explore import charts, page
from cifarlib.report.page import _check_page
from cifarlib.runs import in_notebook
from cifarlib.runs.executors import Executor
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore
from cifarlib.runs.worker import Message, RunJob
from cifarlib.study import Condition, change, load_study

STUDY = tuple(f"stage1-daa1/{run}" for run in range(1, 9))


def open_tiny(folder):
    return open_results("smoke", TINY, folder)


@pytest.fixture
def results(tmp_path):
    """Results over made-up records of eight conditions; nothing of the data set is on record."""
    write_records(RecordStore(tmp_path), tiny_conditions(*STUDY))
    return open_tiny(tmp_path)


def add_own(results, start: str, note: str = "", **settings) -> Condition:
    """A made-up record of a changed condition, perhaps with a note of where it comes from."""
    base = next(c for c in results.conditions if c.name == start)
    condition = change(load_study(), base, settings)
    results.store.write(make_record(condition))
    if note:
        explore.collection.write_note(results, condition, note)
    return condition


# ---------------------------------------------------------------------------------------------
# The frame
# ---------------------------------------------------------------------------------------------


def test_tabulate_has_every_record_best_first(results):
    runs = explore.tabulate(results)
    assert sorted(runs["name"]) == sorted(STUDY)
    assert list(runs["test_top1"]) == sorted(runs["test_top1"], reverse=True)
    assert runs["comparable"].all()
    assert set(runs["protocol"]) == {"corrected"}  # the scale's, which conditions do not name


def test_tabulate_has_the_patience_that_runs_had(tmp_path):
    (condition,) = tiny_conditions("stage2-improved/13")
    RecordStore(tmp_path).write(make_record(condition))
    runs = explore.tabulate(open_tiny(tmp_path))
    assert runs["early_stopping"].tolist() == [condition.config.early_stopping]
    assert condition.settings["early_stopping"] != condition.config.early_stopping


def test_tabulate_names_a_run_after_its_note_or_the_most_similar_condition(results):
    """Means are taken of runs on the scale's images and epochs only."""
    add_own(results, "stage1-daa1/7", note="stage1-daa1/7", learning_rate=0.05)
    add_own(results, "stage1-daa1/8", **{"data.train_size": 15})
    add_own(results, "stage1-daa1/8", epochs=2)
    runs = explore.tabulate(results)
    own = runs[runs["stage"].eq("own")].set_index("name")["comparable"]
    assert own.to_dict() == {
        "stage1-daa1/7 with learning_rate=0.05": True,
        "stage1-daa1/8 with data.train_size=15": False,
        "stage1-daa1/8 with epochs=2": False,
    }
    assert runs["comparable"].sum() == len(STUDY) + 1


def test_the_commands_know_a_run_of_ones_own_by_name_and_id(results, capsys):
    own = add_own(results, "stage1-daa1/7", note="stage1-daa1/7", learning_rate=0.05)
    where = [*SET_TINY, "--out", str(results.store.folder)]
    for text in ("stage1-daa1/7 with learning_rate=0.05", own.run_id[:6]):
        assert cli.main(["why", text, *where]) == 0
        assert f"run {own.run_id}: recorded in" in capsys.readouterr().out


def test_find_run_suggests_a_name(results):
    assert explore.find_run(results, STUDY[0]).config.learning_rate == 0.1
    with pytest.raises(ConfigError, match="no recorded run is named 'stage1-daa1/99'; did you"):
        explore.find_run(results, "stage1-daa1/99")


# ---------------------------------------------------------------------------------------------
# Charts
# ---------------------------------------------------------------------------------------------


def test_linked_charts_hold_every_run_and_compile(results):
    spec = explore.linked(results).to_dict()
    by_id = explore.linked(results, explore.tabulate(results)["run_id"].iloc[0])
    assert by_id.to_dict()["datasets"] == spec["datasets"]
    runs = explore.tabulate(results).set_index("run_id")
    assert {row["id"] for row in spec["datasets"]["runs"]} == set(runs.index)
    for row in spec["datasets"]["runs"]:
        record = results.records[row["id"]]
        assert row["test"] == round(runs.loc[row["id"], "test_top1"], 2)
        assert len(row[charts.TEST]) == len(row[charts.LOSS]) == record.result.history.epochs + 1
        assert len(row["matrix"]) == 100
    assert vl_convert.vegalite_to_vega(spec)["marks"]
    names = {parameter["name"] for parameter in spec["params"]}
    assert names >= {"first", "second", "brush", "setting", "measure"}


def test_linked_charts_keep_the_two_chosen_runs_and_draw_whole_curves(results):
    found = charts.Charts(results, "", "", own=True)
    assert "only_" in str(found.base.transform)
    assert "only_" not in str(found.two.transform)
    test, validation, train = charts.SPLITS
    row = {test: [50.0] * 4, validation: [None, 50.0, 50.0, 50.0], charts.LOSS: [None, *[2.0] * 3]}
    row[train] = [None, None, None, 50.0]
    assert charts.list_measures([row]) == [test, validation, charts.LOSS]
    assert train in charts.list_measures([row, row | {train: [50.0] * 4}])


def test_linked_charts_of_an_empty_folder_say_how_to_fill_it(tmp_path):
    empty = open_tiny(tmp_path)
    with pytest.raises(ConfigError, match=r"no run is recorded in .*; run `cifarlib sweep`"):
        explore.linked(empty)
    assert "No run is recorded yet" in page.render(empty).data


def test_linked_charts_choose_recorded_runs_alone(results):
    with pytest.raises(ConfigError, match=r"named 'stage1-daa1/99'; did you mean 'stage1-daa1/"):
        explore.linked(results, "stage1-daa1/99")


def test_render_loads_nothing_from_elsewhere(results):
    content = page.render(results).data
    assert content.count("<script") == content.count("</script>") == 3
    _check_page(BeautifulSoup(content, "html.parser"), ())  # raises
    assert json.loads(content.split('"application/json">')[1].split("</script>")[0])["datasets"]


# ---------------------------------------------------------------------------------------------
# Pairs and mistakes
# ---------------------------------------------------------------------------------------------


def test_say_better_counts_images_that_only_one_run_has_right(results):
    results.store.write(make_data_record("synthetic"))
    first, second = (results.records[c.run_id] for c in tiny_conditions(*STUDY[:2]))
    right = [r.result.predictions.classes == np.arange(10) for r in (first, second)]
    said = explore.say_better(results, *STUDY[:2])
    assert f"is right on {(right[0] & ~right[1]).sum()} of 10 test images" in said
    assert f"wrong on {(right[1] & ~right[0]).sum()} that" in said
    assert "neither is shown to be better" in said


def test_say_better_needs_labels_and_equal_images(results):
    with pytest.raises(DataError, match="labels of the test images"):
        explore.say_better(results, *STUDY[:2])
    results.store.write(make_data_record("synthetic"))
    other = add_own(results, STUDY[0], **{"data.test_size": 20})
    with pytest.raises(DataError, match="tested on different images"):
        explore.say_better(results, STUDY[0], other.run_id)


def test_a_run_beside_itself_is_said_to_be_one(results):
    assert explore.say_better(results, STUDY[0], STUDY[0]).startswith(f"{STUDY[0]} is one and the")
    assert list(explore.tabulate_pair(results, STUDY[0], STUDY[0]).columns) == [STUDY[0]] * 2


def test_results_of_the_second_study_know_the_papers_runs(results):
    second = open_results("smoke", TINY, results.store.folder, "beyond")
    assert (explore.tabulate(second)["stage"] != "own").all()
    for name in (STUDY[0], STUDY[-1]):
        assert explore.find_run(second, name).run_id == explore.find_run(results, name).run_id


def test_own_runs_that_differ_in_what_their_note_leaves_out_have_names_of_their_own(results):
    names = []
    for images in (15, 16):
        other = open_results("smoke", [*TINY, f"data.train_size={images}"], results.store.folder)
        (start,) = other.select("stage1-daa1", run=7)
        condition = change(load_study(), start, {"learning_rate": 0.05})
        results.store.write(make_record(condition))
        explore.collection.write_note(results, condition, "stage1-daa1/7")
        names.append(f"stage1-daa1/7 with learning_rate=0.05, seed 42 ({condition.run_id[:8]})")
    assert set(names) < set(explore.tabulate(results)["name"])


def test_tabulate_pair_lists_the_settings_that_differ(results):
    table = explore.tabulate_pair(results, *STUDY[:2])
    assert list(table.columns) == list(STUDY[:2])
    assert list(table.loc["weight_decay"]) == [0.001, 0.0001]
    assert "batch_size" not in table.index


def test_find_mistakes_gives_wrong_images_by_confidence(results, monkeypatch):
    results.store.write(make_data_record("synthetic"))
    pixels = np.zeros((2000, 3, 32, 32), dtype=np.uint8)
    monkeypatch.setattr(data, "load", lambda name: (None, Images(pixels, np.arange(2000) % 10)))
    name = explore.tabulate(results)["name"].iloc[-1]
    found = explore.find_mistakes(results, name)
    assert len(found) == 10 - explore.find_run(results, name).accuracy("test") / 10
    assert found["confidence"].is_monotonic_decreasing
    assert (found["true"] != found["predicted"]).all()
    assert found["image"].str.startswith("<img ").all()


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------


def test_train_refuses_settings_that_cannot_be(results):
    with pytest.raises(ConfigError, match="unknown key 'dropuot'; did you mean 'dropout'"):
        cl.train(STUDY[0], results, dropuot=0.3)
    with pytest.raises(ConfigError, match="learning_rate = -1 is not valid"):
        cl.train(STUDY[0], results, learning_rate=-1)
    with pytest.raises(ConfigError, match="there is no device 'gpu'; use auto, cpu or cuda"):
        cl.train(STUDY[0], results, device="gpu", dropout=0.123)
    with pytest.raises(ConfigError, match="no condition is named 'stage1/1'"):
        cl.train("stage1/1", results)
    with pytest.raises(ConfigError, match="dropout has no value"):
        cl.train(STUDY[0], results, dropout=[])
    assert not (results.store.folder / "own").exists()


@pytest.mark.integration
def test_a_script_without_a_guard_is_not_run_again_by_its_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import cifarlib as cl\n"
        "print('begun', flush=True)\n"
        f"results = cl.open_results('smoke', {TINY!r}, {str(tmp_path / 'build')!r})\n"
        "print(cl.train('stage1-daa1/13', results)['state'].tolist())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("begun") == 1
    assert done.stdout.splitlines()[-1] == "['recorded']"


@pytest.mark.usefixtures("forked")
def test_train_trains_in_a_process_and_only_once(tmp_path, capsys):
    store = tiny_store(tmp_path)
    results = open_tiny(tmp_path)
    made = cl.train("stage1-long/13", results, learning_rate=0.05, epochs=2)
    said = capsys.readouterr().out
    assert said.startswith("1 run to train, 40 images over all epochs: about ")
    assert list(made["name"]) == ["stage1-long/13 with learning_rate=0.05, epochs=2"]
    record = store.read_run(made["run_id"].iloc[0])
    assert (record.config.learning_rate, record.result.history.epochs) == (0.05, 2)
    again = cl.train("stage1-long/13", results, learning_rate=0.05, epochs=2)
    assert capsys.readouterr().out == ""
    assert list(again["run_id"]) == list(made["run_id"])


def test_lists_of_values_make_every_combination(results):
    wanted = {"dropout": [0.0, 0.3], "seed": [42, 43], "epochs": 1}
    found = explore.training.choose_conditions(STUDY[0], results, wanted)
    pairs = [(c.config.dropout, c.config.seed) for c in found]
    assert pairs == [(0.0, 42), (0.0, 43), (0.3, 42), (0.3, 43)]
    assert found[0].name == STUDY[0]
    known = {"dropout": np.array([0.0, 0.3]), "schedule": "triangular"}
    found += explore.training.choose_conditions(STUDY[0], results, known)
    assert found[-1].config.schedule.name == "triangular"
    changed = {"optimizer.momentum": 0.5, "optimizer": "sgd"}  # whichever comes first
    (one,) = explore.training.choose_conditions(STUDY[0], results, changed)
    assert one.config.optimizer.momentum == 0.5
    assert all(c.run_id == run_id(c.config) for c in found)


@pytest.mark.usefixtures("forked")
def test_interrupted_training_keeps_its_checkpoint(tmp_path, monkeypatch):
    """Interrupt comes as KeyboardInterrupt into the sweep, here at the third epoch."""
    tiny_store(tmp_path)
    results = open_tiny(tmp_path)

    def interrupt(executor: Executor, job: RunJob, message: Message) -> bool:
        if message.kind == "checkpoint" and message.epoch == 3:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(Executor, "hear", interrupt)
    monkeypatch.setattr(in_notebook, "sweep", partial(in_notebook.sweep, checkpoint_every=1))
    with pytest.raises(in_notebook.Stopped, match=r"The checkpoint of epoch [3-9]\d* is kept"):
        cl.train("stage1-long/13", results, epochs=500)
    assert results.store.run_ids() == []
