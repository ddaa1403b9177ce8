"""Records: they come back as they were written, or not at all, with the reason."""

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
from conftest import (
    TINY,
    diverge,
    forge,
    make_data_record,
    make_network_record,
    make_record,
    rewrite,
    tiny_conditions,
    with_result,
    write_records,
)

from cifarlib import config, paths
from cifarlib.config import ENGINE, run_id
from cifarlib.errors import ConfigError, RecordError, UnreadableError
from cifarlib.runs import schema, sweep
from cifarlib.runs import store as files
from cifarlib.runs.checkpoints import read_checkpoint
from cifarlib.runs.results import open_results
from cifarlib.runs.schema import RunRecord as Record
from cifarlib.runs.store import RecordStore, decode, encode
from cifarlib.study import expand, load_scale, load_study


@pytest.fixture(scope="module")
def conditions():
    return tiny_conditions()


@pytest.fixture(scope="module")
def record(conditions):
    return make_record(conditions[0])


@pytest.fixture
def store(tmp_path):
    return RecordStore(tmp_path / "build")


# ---------------------------------------------------------------------------------------------
# There and back
# ---------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_written(store, conditions):
    for condition in conditions[:: len(conditions) // 8]:
        written = make_record(condition)
        store.write(written)
        assert store.read_run(condition.run_id) == written
    data = make_data_record("synthetic")
    path = store.write(data)
    assert store.read_data("synthetic") == data
    assert path.stat().st_mode & 0o777 == 0o644  # for others to read
    assert data.labels.tolist() == [i % 10 for i in range(2000)]
    assert store.read_data("cifar10") is store.read_run("0123456789abcdef") is None


@pytest.mark.parametrize("stage", ["stage1-base", "stage1-long", "stage3"])
def test_a_record_of_ten_thousand_predictions_stays_small(stage):
    condition = expand(load_study(), load_scale("full"), stage)[0]
    assert condition.config.epochs in (30, 200)
    assert condition.config.data.test_size == 10_000
    assert len(encode(make_record(condition))) <= 60_000


# ---------------------------------------------------------------------------------------------
# Packing
# ---------------------------------------------------------------------------------------------


def pack(classes, confidence, weights):
    matrix = np.zeros((10, 10), dtype=int)
    np.add.at(matrix, (classes, classes), 1)
    confusion = {name: tuple(map(tuple, matrix.tolist())) for name in config.SPLITS}
    return schema.pack_predictions(3, confusion, classes, confidence, np.asarray(weights))


@pytest.mark.parametrize("count", [10, 11, 9999])
def test_predictions_are_packed_and_unpacked(count):
    random = np.random.default_rng(count)
    classes, confidence = random.integers(0, 10, count), random.random(count)
    weights = random.normal(size=(10, 7)).astype(np.float32)
    packed = pack(classes.tolist(), confidence.tolist(), weights)
    assert packed.images == count
    assert packed.classes.tolist() == classes.tolist()
    assert np.abs(packed.confidence - confidence).max() <= 0.5 / 255
    assert packed.weights.shape == (10, 7)
    assert np.abs(packed.weights - weights).max() <= 0.5001 * np.abs(weights).max() / 127


@pytest.mark.filterwarnings("error")
def test_what_is_no_number_is_packed_all_the_same():
    for bad in (np.nan, np.inf, -np.inf):
        weights = np.ones((10, 4))
        weights[3, 2] = bad
        assert not pack([0] * 10, [0.5] * 10, weights).weights.any()
    packed = pack([0] * 4, [np.nan, np.inf, -np.inf, 1.0], np.zeros((10, 4)))
    assert packed.confidence.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert not packed.weights.any()


# ---------------------------------------------------------------------------------------------
# Whole or not at all
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_record_and_nothing_else(store, record, step, monkeypatch):
    path = store.write(record)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    newer = record.model_copy(update={"engine": 99})
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(RecordError) as caught:
        store.write(newer)
    assert "No space left on device" in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_is_a_record_error(tmp_path, record):
    (tmp_path / "file").write_text("")
    store = RecordStore(tmp_path / "file" / "build")
    assert store.read_run(record.run_id) is None
    with pytest.raises(RecordError, match="cannot be written"):
        store.write(record)


def test_a_folder_in_place_of_a_record_is_damage_and_can_be_set_aside(store, record):
    path = store.run_path(record.run_id)
    path.mkdir(parents=True)
    with pytest.raises(RecordError, match="a folder stands where the file"):
        store.write(record)
    assert list(store.runs.iterdir()) == [path]
    with pytest.raises(RecordError, match=r"cannot be read \(Is a directory") as caught:
        store.read_run(record.run_id)
    store.set_aside(path, caught.value)  # which refuses what is unreadable at this moment only
    store.write(record)
    assert store.read_run(record.run_id) == record


def test_leftovers_of_killed_processes_are_removed(store, record):
    path = store.write(record)
    other = path.with_name(f".{'0' * 16}.json.abc")
    for leftover in (path.with_name(f".{path.name}.abc"), other):
        leftover.write_bytes(b"half")
    files.remove_leftovers(path)
    assert sorted(path.parent.iterdir()) == [other, path]


# ---------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------


def test_a_record_cut_off_anywhere_is_refused(record):
    whole = encode(record).rstrip()
    assert decode(Record, whole, "it") == record
    for length in [*range(0, len(whole), 97), *range(len(whole) - 90, len(whole))]:
        with pytest.raises(RecordError, match="it is truncated or is no record"):
            decode(Record, whole[:length], "it")


NONE = [b"", b"\x00\xff\xfe" * 99, b"\x89PNG\r\n", b"[1, 2, 3]", b'"digest"', b"null", b"17", b"{}"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        *((content, "is truncated or is no record") for content in NONE),
        (b"[" * 100_000, "is truncated or is no record"),
        (b"9" * 10_000, "is truncated or is no record"),
        (b'{"digest": null}', "has format None"),
        (b'{"digest": "0", "format": 1}', "does not match its digest"),
        (b'{"digest": "0", "format": 1, "a": NaN}', "does not match its digest"),
    ],
)
def test_what_is_no_record_is_refused(store, content, reason):
    path = store.run_path("0123456789abcdef")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(RecordError, match=reason) as caught:
        store.read_run("0123456789abcdef")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pipe_in_place_of_a_record_is_refused(store, record, at_once):
    store.runs.mkdir(parents=True)
    os.mkfifo(store.run_path(record.run_id))
    with pytest.raises(RecordError, match=r"cannot be read \(a pipe or a device"):
        store.read_run(record.run_id)


def test_hidden_files_are_no_records(store, record):
    """macOS puts a ``._name`` beside each file that it copies to another file system."""
    path = store.write(record)
    path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert store.run_ids() == [record.run_id]


def test_a_folder_of_records_that_cannot_be_read_is_named(store, record, monkeypatch):
    store.write(record)

    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(store.runs), "iterdir", refuse)
    with pytest.raises(RecordError, match=r"runs cannot be read \(Permission denied"):
        store.run_ids()


def test_a_record_that_cannot_be_read_at_this_moment_stays(store, conditions):
    """Another reason than damage: a link to itself stands for every fault of the system."""
    path = store.run_path(conditions[0].run_id)
    path.parent.mkdir(parents=True)
    path.symlink_to(path)
    for use in (
        lambda: sweep.sweep(conditions[:1], store),
        lambda: read_checkpoint(path, store, print),
        lambda: store.set_aside(path, UnreadableError("cannot be read")),
    ):
        with pytest.raises(UnreadableError, match="cannot be read"):
            use()
    assert path.is_symlink()
    assert not (store.folder / "damaged").exists()
    assert len(store.read_runs([path.stem])[1]) == 1


def test_the_reason_of_damage_may_name_what_is_no_text(tmp_path):
    path = tmp_path / "a.json"
    path.touch()
    aside = RecordStore(tmp_path).set_aside(path, "in \udcff")
    assert aside.with_name("a.json.reason.txt").read_text() == "in \\udcff\n"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(dataset="cifar11"), "known data set"),
        (lambda c: c.update(class_counts={}), r"at least 3 items .*\(class_counts\)"),
        (lambda c: c["class_counts"].update(test=[0] * 9), "at least 10 items"),
        (lambda c: c["class_counts"]["test"].__setitem__(0, 1), "every test image's label"),
        (lambda c: c.update(test_labels="AAAA"), "every test image's label"),
        (lambda c: c.update(pixel_sums=""), "a sum of every pixel"),
        (lambda c: c["first_loss"].pop("fan_in"), r"at least 2 items .*\(first_loss\)"),
        (lambda c: c.update(examples=[]), r"at least 10 items .*\(examples\)"),
        (lambda c: c["transforms"].update(original=""), "no empty picture"),
        (lambda c: c["provenance"].update(finished="0001-01-01T00:00:00+14:00"), "this century"),
        (lambda c: c["provenance"].update(finished="9999-12-31T23:59:59-14:00"), "this century"),
        (lambda c: c["provenance"].update(finished="2025-01-01T00:00:00"), "its time zone"),
    ],
)
def test_a_forged_data_record_is_refused(change, reason):
    raw = forge(make_data_record("synthetic"), change)
    with pytest.raises(RecordError, match=reason):
        decode(schema.DataRecord, raw, "it")


def nested(content, *keys):
    for key in keys:
        content = content[key]
    return content


HISTORY, PREDICTIONS = ("result", "history"), ("result", "predictions")
ALL_RIGHT = {"validation": 11, "test": 10}  # of ten


def lengthen(content) -> None:
    """One more epoch than was configured, in every column."""
    history = nested(content, *HISTORY)
    columns = [history["learning_rate"], history["training_loss"]]
    for split in config.SPLITS:
        columns += [history[split][name] for name in ("loss", "top1", "top2", "top3")]
    for column in columns:
        column.append(column[-1])


def add(content, split: str, images: int) -> None:
    """More images in a cell of a confusion matrix."""
    nested(content, *PREDICTIONS, "confusion", split)[3][4] += images


def disagree(content, split: str) -> None:
    """Count another number of right images than the confusion matrix does."""
    epoch = nested(content, *PREDICTIONS)["epoch"]
    counts = nested(content, *HISTORY, split, "top1")
    counts[epoch] += -1 if counts[epoch] else 1


def blank(content, split: str, epoch: int) -> None:
    """Take an epoch's evaluation away."""
    for name in ("top1", "top2", "top3"):
        nested(content, *HISTORY, split, name)[epoch] = None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: disagree(c, "test"), "as many right test images in counts and confusion"),
        (lambda c: c["result"].update(diverged=True), "diverged where the last losses"),
        (lambda c: nested(c, *HISTORY, "training_loss").__setitem__(-1, None), "diverged where"),
        (lambda c: c.update(format=2), "has format 2, this program reads 1"),
        (lambda c: c.update(engine=ENGINE + 1), "run id does not follow"),
        (lambda c: c["config"].update(learning_rate=0.5), "run id does not follow"),
        (lambda c: c.update(data_fingerprint="0" * 12), "run id does not follow"),
        (lambda c: c.update(run_id="0" * 16), "holds the record of another run"),
        (lambda c: c.pop("result"), r"is no valid record: .*\(result\)"),
        (lambda c: c.update(surprise=1), r"is no valid record: .*\(surprise\)"),
        (lambda c: c["timing"].update(train_s="1"), r"is no valid record: .*\(timing.train_s\)"),
        (lambda c: nested(c, "result", "chosen").update(best=1), "is no valid record"),
        (lambda c: nested(c, *HISTORY, "test", "top1").pop(), "columns of one length"),
        (lambda c: nested(c, *HISTORY, "test")["top2"].__setitem__(-1, 11), "counts of its images"),
        (lambda c: nested(c, *HISTORY, "learning_rate").pop(), "histories of one|at least 2"),
        (lambda c: lengthen(c), "no more epochs than were configured"),
        (lambda c: nested(c, "result", "chosen").update(validation=2), "epochs that were trained"),
        (lambda c: nested(c, "result", "chosen").pop("validation"), "epoch for each rule"),
        (lambda c: nested(c, *PREDICTIONS).update(epoch=-1), "epochs that were trained"),
        (lambda c: nested(c, *PREDICTIONS, "confusion").pop("train"), "at least 3 items"),
        (lambda c: nested(c, *PREDICTIONS, "confusion", "train").pop(), "at least 10 items"),
        (lambda c: add(c, "train", 1), "as many train images as configured"),
        (lambda c: add(c, "train", -100), "greater than or equal to 0"),
        (lambda c: add(c, "test", 1), "as many packed predictions as test images|as in the conf"),
        (lambda c: nested(c, *PREDICTIONS).update(test_classes="AAAA"), "as many packed"),
        (lambda c: nested(c, *PREDICTIONS).update(test_classes="//////8="), "predictions as in"),
        (lambda c: nested(c, *PREDICTIONS).update(test_confidence=""), "as many packed"),
        (lambda c: nested(c, *PREDICTIONS).update(last_layer="AAAA"), "last layer of 10 rows"),
        (lambda c: blank(c, "validation", 0), "a validation accuracy after every epoch"),
        (lambda c: blank(c, "test", 1), "test accuracies at the reported epoch"),
        (lambda c: c["result"].update(flip_averaged=ALL_RIGHT), "no more correct validation"),
        (lambda c: c["provenance"].update(finished="yesterday"), "Invalid isoformat"),
    ],
)
def test_a_forged_record_is_refused(store, record, change, reason):
    rewrite(store, record, change)
    with pytest.raises(RecordError, match=reason):
        store.read_run(record.run_id)


def test_a_record_under_another_name_is_refused(store, conditions):
    store.write(make_record(conditions[1])).rename(store.run_path(conditions[0].run_id))
    with pytest.raises(RecordError, match=f"another run, {conditions[1].run_id}"):
        store.read_run(conditions[0].run_id)
    store.write(make_data_record("cifar10")).rename(store.data_path("synthetic"))
    with pytest.raises(RecordError, match="another data set, cifar10"):
        store.read_data("synthetic")


def test_the_networks_record_is_read_back_and_is_no_run(store):
    assert store.read_network() is None
    record = make_network_record()
    path = store.write(record)
    assert store.read_network() == record
    assert store.run_ids() == []
    assert open_results("smoke", TINY, store.folder).network == record
    store.write(record.model_copy(update={"engine": ENGINE - 1}))
    assert store.read_network() is None  # to be described again
    path.write_bytes(b"{")
    with pytest.raises(RecordError, match=r"network-residual.* is truncated"):
        store.read_network()


def test_records_of_older_engines_can_still_be_read(store, conditions):
    condition = conditions[0]
    old = run_id(condition.config, engine=ENGINE - 1)
    written = make_record(replace(condition, run_id=old)).model_copy(update={"engine": ENGINE - 1})
    store.write(written)
    assert store.read_run(old) == written
    assert old != condition.run_id


def test_a_diverged_run_has_no_accuracy_but_its_course(store, conditions):
    record = make_record(conditions[0])
    rewrite(store, record, diverge)
    results = open_results("smoke", TINY, store.folder)
    lost = results.diverged[record.run_id]
    assert (results.records, results.every_record) == ({}, {lost.run_id: lost})
    assert lost.accuracy("test") is None
    assert lost.accuracy("test", epoch=1) == record.accuracy("test", epoch=1)
    assert results.predictions(record.run_id) is None
    assert set(results.curves["run_id"]) == {record.run_id}
    row = results.runs.iloc[0]
    assert (row["state"], row["time_s"] > 0) == ("diverged", True)
    assert row[["epoch", "train_top1", "test_top3", "gap"]].isna().all()


def test_processor_time_stands_for_a_runs_cost(conditions):
    record = make_record(conditions[0], cpu_s=12.0, threads=2)
    assert record.seconds == 6.0
    assert record.training_seconds == 5.0  # 12.5 of 15 s by the clock
    assert record.images_per_s == 250.0  # 100 a second of the clock
    on_gpu = make_record(conditions[0], cpu_s=12.0, device_class="cuda")
    assert on_gpu.seconds == on_gpu.timing.train_s + on_gpu.timing.evaluation_s
    assert on_gpu.training_seconds == pytest.approx(on_gpu.timing.train_s)
    assert on_gpu.images_per_s == pytest.approx(on_gpu.timing.images_per_s)


def test_nothing_that_was_set_aside_is_overwritten(store, record):
    """A run's record twice, and its checkpoint: three files, each beside its own reason."""
    path, checkpoint = store.run_path(record.run_id), store.state / f"{record.run_id}.pt"
    aside = {}
    for damaged, content in ((path, "first"), (path, "second"), (checkpoint, "third")):
        damaged.parent.mkdir(parents=True, exist_ok=True)
        damaged.write_text(content)
        aside[store.set_aside(damaged, f"the {content} reason")] = content
        assert not damaged.exists()
    assert len(aside) == 3
    for place, content in aside.items():
        assert place.read_text() == content
        reason = place.with_name(f"{place.name}.reason.txt")
        assert reason.read_text() == f"the {content} reason\n"
    assert store.run_ids() == []
    assert store.set_aside(path, "another sweep was faster").read_text() == "first"


def test_what_cannot_be_set_aside_is_said(store, record):
    path = store.write(record)
    (store.folder / "damaged").write_text("a file where the folder should be")
    with pytest.raises(RecordError, match=r"cannot be moved to .*damaged"):
        store.set_aside(path, "it is damaged")
    assert path.exists()


# ---------------------------------------------------------------------------------------------
# The records of a study
# ---------------------------------------------------------------------------------------------


def test_results_hold_what_is_recorded_and_name_what_is_damaged(store, conditions):
    write_records(store, conditions[:3])
    store.run_path(conditions[2].run_id).write_bytes(b"")
    for path in (store.data_path("synthetic"), store.network_path):
        path.write_bytes(b"{}")
    results = open_results("smoke", TINY, store.folder)
    assert results.conditions == conditions
    assert list(results.records) == [c.run_id for c in conditions[:2]]
    assert results.data is results.network is None
    assert len(results.faults) == 3
    assert repr(results) == f"<Results of scale smoke: 2 of 120 runs in {store.folder}>"
    assert results.records[conditions[0].run_id] == make_record(conditions[0])


def test_a_condition_is_found_by_the_papers_run_number(store):
    results = open_results("smoke", TINY, store.folder)
    assert not store.folder.exists()
    assert results.select("stage1-daa1", run=13)[0].name == "stage1-daa1/13"
    assert results.select("stage2-dropout", run=9, dropout=0.5)[0].config.dropout == 0.5
    assert results.select("stage1-base", run=37) == []


def test_an_unknown_stage_is_no_empty_selection(store):
    results = open_results("smoke", build=store.folder)
    with pytest.raises(ConfigError, match="no stage 'stage1-dae1'; did you mean 'stage1-daa1'"):
        results.select("stage1-base", "stage1-dae1", run=13)


def test_absolute_takes_the_papers_own_budget_where_all_of_its_runs_have_ended(tmp_path):
    """A run that diverged has ended."""
    full = open_results("full", build=tmp_path / "full")
    first, second = map(make_record, full.select("stage1-long"))
    full.store.write(first)
    for scale in ("lite", "full"):
        lite = open_results("lite", build=tmp_path / "lite")
        chosen, runs = lite.absolute("stage == 'stage1-long'")
        assert chosen.scale_name == scale
        assert sorted(runs["run_id"]) == sorted(c.run_id for c in chosen.select("stage1-long"))
        rewrite(full.store, second, diverge)


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("seeds=[1]", "corrected"),
        ("protocol=published", "published"),
        ("protocol.shuffle=false", "custom"),
    ],
)
def test_results_name_the_protocol_of_their_scale(store, override, name):
    assert open_results("smoke", [override], store.folder).protocol == name


def test_results_of_a_scales_file_stand_in_the_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    opened = open_results(paths.PARAMS / "smoke.yaml")
    assert (opened.scale_name, opened.store.folder) == ("smoke", tmp_path / "smoke")


def test_the_reported_epoch_follows_the_protocol(record):
    changed = with_result(record, chosen={"validation": 0, "test": 1, "last": 1})
    assert changed.reported_epoch == 0
    protocol = record.config.protocol.model_copy(update={"selection": "test"})
    config = record.config.model_copy(update={"protocol": protocol})
    assert changed.model_copy(update={"config": config}).reported_epoch == 1
