"""All runs of a build folder in one table."""

import numpy as np
import pytest
from conftest import TINY, make_data_record, make_record, tiny_conditions

from cifarlib import data
from cifarlib.config import DATASETS, run_id
from cifarlib.data import Images
from cifarlib.errors import DataError
from cifarlib.explore import collection
from cifarlib.explore.collection import Runs
from cifarlib.records import RecordStore, open_results
from cifarlib.study import Condition

STUDY = tuple(f"stage1-daa1/{run}" for run in range(1, 9))


def write_runs(folder, names=STUDY, **changed):
    """A build folder with made-up records of study conditions, and perhaps of one changed run."""
    store = RecordStore(folder)
    conditions = tiny_conditions(*names) if names else []
    for condition in conditions:
        store.write(make_record(condition))
    if changed:
        store.write(make_record(change(conditions[0], **changed)))
    return open_tiny(folder)


def change(condition: Condition, **changed) -> Condition:
    config = condition.config.model_copy(update=changed)
    return Condition("", None, {}, {}, config, run_id(config), "")


def open_tiny(folder) -> Runs:
    return Runs(open_results("smoke", TINY, folder))


def test_every_record_of_the_folder_is_a_row_best_first(tmp_path):
    runs = write_runs(tmp_path, learning_rate=0.05)
    assert len(runs.frame) == 9
    assert list(runs.frame["test_top1"]) == sorted(runs.frame["test_top1"], reverse=True)
    for name, row in runs.frame.iterrows():
        assert row["test_top1"] == runs.records[name].accuracy("test")
        assert row["batch_size"] == runs.records[name].config.batch_size
        assert row["seconds"] == 15.0


def test_a_run_outside_the_study_is_own_and_named_by_its_change(tmp_path):
    runs = write_runs(tmp_path, learning_rate=0.05)
    (own,) = runs.frame[runs.frame["stage"] == collection.OWN].itertuples()
    assert own.name == "own: stage1-daa1/1 with learning_rate=0.05"
    assert set(runs.frame["stage"]) == {"stage1-daa1", "own"}


def test_a_run_that_is_unlike_the_study_is_named_by_its_id(tmp_path):
    (condition,) = tiny_conditions("stage1-daa1/1")
    far = change(
        condition, learning_rate=0.3, weight_decay=0.5, batch_size=7, epochs=9, dropout=0.3
    )
    assert write_runs(tmp_path, ()).name(far.config) == f"own/{far.run_id[:8]}"


def test_a_name_tells_seeds_apart_where_the_study_has_several(tmp_path):
    runs = Runs(open_results("smoke", [*TINY, "seeds=[1, 2]"], tmp_path))
    condition = runs.results.find("stage1-daa1", 1)
    assert runs.name(condition.config) == "stage1-daa1/1, seed 1"


def test_new_records_appear_after_a_refresh_and_damaged_ones_are_told(tmp_path):
    runs = write_runs(tmp_path)
    (condition,) = tiny_conditions("stage1-base/1")
    runs.results.store.write(make_record(condition))
    (tmp_path / "runs" / "0123456789abcdef.json").write_text("{")
    assert len(runs.frame) == 8
    runs.refresh()
    assert len(runs.frame) == 9
    assert len(runs.faults) == 1
    assert "0123456789abcdef.json is truncated" in runs.faults[0]


def test_an_empty_folder_has_an_empty_table(tmp_path):
    runs = write_runs(tmp_path, ())
    assert len(runs.frame) == 0
    assert collection.varied(runs.frame) == []
    assert len(collection.select(runs.frame, {"stage": ("own",)})) == 0


def test_settings_have_the_studys_names():
    names = ("stage1-daa2/3", "stage2-improved/13", "stage3/2", "interpolation/4")
    (daa2, improved, stage3, resized) = (
        collection.describe_settings(c.config, open_tiny("nowhere").results.study)
        for c in sorted(tiny_conditions(*names), key=lambda c: names.index(c.name))
    )
    assert (daa2["augmentation"], daa2["optimizer"], daa2["model"]) == ("daa2", "adamw", "residual")
    assert (improved["schedule"], daa2["schedule"]) == ("step_at_89", "constant")
    assert stage3["model"] == "resnet18_imagenet"
    assert resized["resize"] == "37→32 box"
    assert daa2["protocol"] == "corrected"
    assert set(daa2) == set(collection.SETTINGS) - {"stage"}


def test_filters_keep_rows_with_a_wanted_value_in_every_column(tmp_path):
    frame = write_runs(tmp_path).frame
    wanted = {"learning_rate": (0.1, 0.01), "weight_decay": (0.001,), "stage": ()}
    kept = collection.select(frame, wanted)
    assert sorted(kept["name"]) == ["stage1-daa1/1", "stage1-daa1/3"]
    assert len(collection.select(frame, {})) == 8
    assert set(collection.varied(frame)) == {"learning_rate", "weight_decay"}


def test_groups_give_mean_lowest_and_highest(tmp_path):
    frame = write_runs(tmp_path).frame
    table = collection.group(frame, "learning_rate").set_index("learning_rate")
    chosen = frame.loc[frame["learning_rate"] == 0.1, "test_top1"]
    assert list(table.loc[0.1]) == [2, chosen.mean(), chosen.min(), chosen.max()]
    assert table["runs"].sum() == 8


def test_differences_are_the_settings_that_differ():
    one, other = tiny_conditions("stage1-daa1/1", "stage3/1")
    frame = collection.describe_differences(one.config, other.config).set_index("setting")
    assert list(frame.loc["optimizer.name"]) == ["adamw", "sgd"]
    assert list(frame.loc["resize"]) == ["none", "–"]
    assert "seed" not in frame.index
    assert len(collection.describe_differences(one.config, one.config)) == 0


# ---------------------------------------------------------------------------------------------
# Image by image
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def images(monkeypatch):
    """A data set whose first test images have the labels 0 to 9, as made-up records assume."""
    info = DATASETS["synthetic"]
    labels = np.arange(info.test_images) % 10
    pixels = np.zeros((info.test_images, 3, 32, 32), dtype=np.uint8)
    pixels[:, 1] = np.arange(info.test_images)[:, None, None] % 256
    monkeypatch.setattr(data, "load", lambda name: (None, Images(pixels, labels)))
    return pixels


def test_mistakes_are_the_images_off_the_diagonal_surest_first(images):
    (condition,) = tiny_conditions(
        "stage1-daa1/2",
        overrides=("data={name: synthetic, train_size: 20, validation_size: 10, test_size: 200}",),
    )
    record = make_record(condition)
    predictions = record.result.predictions
    count, found = collection.find_mistakes(record, limit=300)
    matrix = np.array(predictions.confusion["test"])
    assert count == len(found) == matrix.sum() - matrix.trace()
    assert [m.confidence for m in found] == sorted((m.confidence for m in found), reverse=True)
    names = DATASETS["synthetic"].classes
    for mistake in found:
        assert mistake.true == names[mistake.index % 10] != mistake.predicted
        assert mistake.predicted == names[predictions.classes[mistake.index]]
        assert (mistake.image == images[mistake.index].transpose(1, 2, 0)).all()
    true, predicted = found[0].true, found[0].predicted
    count, chosen = collection.find_mistakes(record, true=true, predicted=predicted, limit=1)
    assert count == matrix[names.index(true), names.index(predicted)]
    assert [m.index for m in chosen] == [found[0].index]


def test_mistakes_are_refused_where_the_order_is_not_the_records(images, monkeypatch):
    records = map(make_record, tiny_conditions())
    record = next(r for r in records if r.accuracy("test", epoch=r.reported_epoch) < 100)
    backwards = np.arange(9, 2009) % 10
    monkeypatch.setattr(data, "load", lambda name: (None, Images(images, backwards)))
    with pytest.raises(DataError, match="not in the order of the data set's images"):
        collection.find_mistakes(record)


def test_two_runs_are_compared_image_by_image(images, tmp_path):
    runs = write_runs(tmp_path)
    first, second = (runs.records[c.run_id] for c in tiny_conditions(*STUDY[:2]))
    labels = np.arange(10)
    right = [r.result.predictions.classes == labels for r in (first, second)]
    paired = collection.compare(runs, first, second)
    assert paired.images == 10
    assert paired.only_first == (right[0] & ~right[1]).sum()
    assert paired.only_second == (right[1] & ~right[0]).sum()


def test_labels_on_record_compare_runs_without_the_data_set(tmp_path, monkeypatch):
    def absent(name):
        raise DataError("the set was not found")

    runs = write_runs(tmp_path)
    first, second = (runs.records[c.run_id] for c in tiny_conditions(*STUDY[:2]))
    monkeypatch.setattr(data, "load", absent)
    with pytest.raises(DataError, match="was not found"):
        collection.compare(runs, first, second)
    runs.results.store.write(make_data_record("synthetic"))
    assert collection.compare(runs, first, second).images == 10


def test_runs_of_different_test_images_are_not_compared(tmp_path):
    runs = write_runs(tmp_path)
    (condition,) = tiny_conditions("stage1-daa1/1")
    larger = condition.config.data.model_copy(update={"test_size": 20})
    other = make_record(change(condition, data=larger))
    with pytest.raises(DataError, match="tested on different images"):
        collection.compare(runs, make_record(condition), other)
