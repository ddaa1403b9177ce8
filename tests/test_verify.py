"""Verification: stored runs trained again, and what is made of the difference."""

import numpy as np
import pytest
from conftest import (
    GOOD,
    RAISES,
    SET_TINY,
    TINY,
    make_record,
    tiny_store,
    with_result,
    write_records,
)

from cifarlib import cli
from cifarlib.errors import ConfigError, RecordError, RunError
from cifarlib.runs import verify
from cifarlib.runs.results import open_results
from cifarlib.runs.schema import pack_classes
from cifarlib.runs.store import RecordStore
from cifarlib.runs.weights import build_network

NAMES = ("stage1-base/1", "stage1-base/2", "stage1-daa1/13")


def open_tiny(folder, *overrides):
    return open_results("smoke", [*TINY, *overrides], folder)


def name(*names, folder, overrides=()):
    return [c for c in open_tiny(folder, *overrides).conditions if c.name in names]


@pytest.fixture
def stored(tmp_path):
    """A build folder with three made-up records."""
    store = tiny_store(tmp_path)
    write_records(store, name(*NAMES, folder=tmp_path))
    return store


def change_loss(record, loss=0.125):
    """A record whose first epoch went another way, with the same accuracies."""
    losses = (None, loss, *record.result.history.training_loss[2:])
    return with_result(record, training_loss=losses)


def with_provenance(record, **changed):
    return record.model_copy(update={"provenance": record.provenance.model_copy(update=changed)})


# ---------------------------------------------------------------------------------------------
# What is trained
# ---------------------------------------------------------------------------------------------


def test_a_sample_is_of_recorded_runs_and_the_same_each_time(stored):
    results = open_tiny(stored.folder)
    chosen = verify.sample(results, 2, seed=0)
    assert len(chosen) == 2
    assert {c.run_id for c in chosen} <= set(results.records)
    assert verify.sample(results, 2, seed=0) == chosen
    draws = {tuple(c.name for c in verify.sample(results, 2, seed)) for seed in range(20)}
    assert len(draws) == 3  # every pair of three runs
    assert [c.name for c in verify.sample(results, 99, seed=0)] == list(NAMES)


def test_what_is_not_recorded_cannot_be_verified(stored, tmp_path):
    results = open_tiny(stored.folder)
    with pytest.raises(ConfigError, match="stage1-base/3 is not recorded in "):
        verify.verify(results, name("stage1-base/3", folder=stored.folder))
    with pytest.raises(ConfigError, match=r"holds no record .* cifarlib sweep"):
        verify.sample(open_tiny(tmp_path / "empty"), 3, seed=0)


def test_the_recorded_seeds_of_a_condition_are_verified_and_damage_is_said(
    tmp_path, made_up, capsys
):
    store = tiny_store(tmp_path)
    seeds = [f"seeds=[{GOOD}, 42]"]
    recorded, other = name(NAMES[0], folder=tmp_path, overrides=seeds)
    store.write(make_record(recorded))
    options = ["--out", str(tmp_path), *SET_TINY, "--set", *seeds, "--device", "cpu"]
    store.run_path(other.run_id).write_text("{")
    assert cli.main(["verify", *options, "--run", NAMES[0]]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "1 runs trained again: 1 identical"
    assert f"{store.run_path(other.run_id)} is truncated" in told.err.splitlines()[0]


def test_a_temporary_folder_without_room_is_no_matter_of_out(stored, monkeypatch):
    def fill(conditions, store, **_):
        raise RecordError(f"{store.folder} cannot be written; name another place with --out")

    monkeypatch.setattr(verify, "sweep", fill)
    results = open_tiny(stored.folder)
    with pytest.raises(RunError, match="name another place with TMPDIR"):
        verify.verify(results, name(NAMES[0], folder=stored.folder))
    monkeypatch.setattr(verify.tempfile, "tempdir", str(stored.folder / "nowhere"))
    with pytest.raises(RunError, match=r"no temporary folder can be made \(No such file.*TMPDIR"):
        verify.verify(results, name(NAMES[0], folder=stored.folder))


def test_equal_records_are_identical_and_the_store_is_left_alone(stored, made_up, capsys):
    before = {path: path.read_bytes() for path in stored.runs.iterdir()}
    arguments = ["verify", *SET_TINY, "--out", str(stored.folder), "--device", "cpu"]
    assert cli.main([*arguments, "--sample", "3", "--workers", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:3]] == list(NAMES)
    assert all(" identical: " in line and "every bit, as it must be" in line for line in said[:3])
    assert said[-1] == "3 runs trained again: 3 identical"
    assert {path: path.read_bytes() for path in stored.runs.iterdir()} == before


def test_a_changed_record_differs_whatever_its_accuracy(stored, made_up, capsys):
    condition = name(NAMES[0], folder=stored.folder)[0]
    stored.write(change_loss(make_record(condition)))
    arguments = ["verify", *SET_TINY, "--out", str(stored.folder), "--device", "cpu"]
    assert cli.main([*arguments, "--run", NAMES[0]]) == 1
    line = capsys.readouterr().out.splitlines()[0]
    assert " differs: " in line
    assert "(+0.00), same predictions 100.0 %;" in line
    assert "the training loss of epoch 1 is " in line
    assert line.endswith("stored 0.125")


def test_a_run_that_fails_is_not_passed_over(tmp_path, made_up):
    seeds = f"seeds=[0, {RAISES}]"
    store = tiny_store(tmp_path)
    conditions = name(NAMES[0], folder=tmp_path, overrides=[seeds])
    write_records(store, conditions)
    results = open_tiny(tmp_path, seeds)
    good, failed = verify.verify(results, conditions, device="cpu", workers=1)
    assert (good.verdict, failed.verdict) == ("identical", "not trained")
    assert "ZeroDivisionError" in failed.reason
    with pytest.raises(RunError, match=r"no run could be trained again: .*ZeroDivisionError"):
        verify.verify(results, conditions[1:], device="cpu", workers=1)


@pytest.mark.usefixtures("inline")
def test_a_run_that_was_trained_here_comes_out_the_same(tmp_path, capsys):
    options = [*SET_TINY, "--set", "precision=bf16", "--out", str(tmp_path), "--device", "cpu"]
    tiny_store(tmp_path)
    assert cli.main(["run", NAMES[2], *options, "--threads", "1"]) == 0
    capsys.readouterr()
    assert cli.main(["verify", *options, "--keep-weights"]) == 0
    verdict, kept = capsys.readouterr().out.splitlines()[-2:]
    assert verdict == "1 runs trained again: 1 identical"
    assert kept.startswith("weights kept of 1 runs; ")
    store = RecordStore(tmp_path)
    (record,) = store.read_runs(store.run_ids())[0].values()
    build_network(record, store.weights_path(record.run_id))  # refuses those of another training


# ---------------------------------------------------------------------------------------------
# How they are compared
# ---------------------------------------------------------------------------------------------


def compare(folder, stored, trained):
    RecordStore(folder).write(stored)
    results = open_tiny(folder)
    condition = next(c for c in results.conditions if c.run_id == stored.run_id)
    return verify.compare(condition, results, trained)


def shift(record, right):
    """A record with another number of right test images at the reported epoch."""
    history = record.result.history
    top1 = list(history.test.top1)
    top1[record.reported_epoch] = right
    test = history.test.model_copy(update={"top1": tuple(top1)})
    labels = np.arange(test.images) % 10  # as make_record has them
    classes = np.where(np.arange(test.images) < right, labels, (labels + 1) % 10)
    matrix = np.zeros((10, 10), dtype=int)
    np.add.at(matrix, (labels, classes), 1)
    shown = record.result.predictions
    shown = shown.model_copy(
        update={
            "confusion": shown.confusion | {"test": tuple(map(tuple, matrix.tolist()))},
            "test_classes": pack_classes(classes.tolist()),
        }
    )
    return with_result(record, test=test, predictions=shown)


def test_elsewhere_a_difference_within_noise_will_do(tmp_path):
    record = make_record(name(NAMES[0], folder=tmp_path)[0])
    stored = shift(record, 6)
    near = compare(tmp_path, stored, with_provenance(shift(record, 5), device="another"))
    assert near.verdict == "within noise"
    assert near.difference == pytest.approx(-10)
    assert "trained on another instead of a processor" in near.reason
    assert "the binomial error of 10 test images" in near.reason
    assert near.limit == pytest.approx(2.576 * 2**0.5 * 100 * (8 * 6 / 14**3) ** 0.5, rel=1e-3)
    same = compare(tmp_path, record, with_provenance(record, device="another"))
    assert (same.verdict, same.same_predictions) == ("identical", 100)
    far = compare(tmp_path, shift(record, 10), with_provenance(shift(record, 0), device="another"))
    assert far.verdict == "differs"


def test_the_seeds_of_another_study_tell_of_noise(tmp_path):
    store = RecordStore(tmp_path)
    record = write_seeds(store, NAMES[0], (4, 5, 6, 5, 4), first=42)[0]
    results = open_tiny(tmp_path)  # the paper's study: one seed
    assert set(results.every_record) < set(store.run_ids())
    near = compare(tmp_path, record, with_provenance(shift(record, 7), device="another"))
    assert near.verdict == "within noise"
    assert near.reason.endswith("limit from the spread of 5 seeds")
    assert near.limit == pytest.approx(4.604 * 70**0.5 * 2**0.5, rel=1e-3)  # t of 4 degrees


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, []),
        ({"commit": "f" * 40, "dirty": True, "finished": "2026-01-01T00:00:00+00:00"}, []),
        ({"versions": {"python": "3.11.9", "torch": "2.11.0"}}, []),
        ({"versions": {"python": "3.12.1", "torch": "2.11.0"}}, ["python 3.12.1 instead"]),
        ({"versions": {"python": "3.11.2", "torch": "2.12.0"}}, ["torch 2.12.0 instead of 2.11.0"]),
        ({"threads": 2}, ["2 instead of 1 threads"]),
        ({"device_class": "cuda"}, ["a GPU orders"]),
    ],
)
def test_what_excuses_a_difference(tmp_path, changed, told):
    record = make_record(name(NAMES[0], folder=tmp_path)[0])
    other = with_provenance(record, **changed)
    found = verify.differing_origins(record.provenance, other.provenance)
    assert len(found) == len(told)
    assert all(text in reason for text, reason in zip(told, found, strict=True))


def write_seeds(store, condition_name, rights, first=0):
    """Records of one condition, a seed for each number of right test images."""
    seeds = f"seeds={list(range(first, first + len(rights)))}"
    conditions = name(condition_name, folder=store.folder, overrides=[seeds])
    records = [shift(make_record(c), n) for c, n in zip(conditions, rights, strict=True)]
    for record in records:
        store.write(record)
    return records


def test_several_seeds_say_what_noise_is(tmp_path):
    store = RecordStore(tmp_path)
    records = write_seeds(store, NAMES[0], (4, 5, 6))
    alone = write_seeds(store, NAMES[1], (0,))
    limit, basis = verify.noise_limit(records[0], [*records, *alone])
    assert basis == "the spread of 3 seeds"
    assert limit == pytest.approx(9.925 * 10 * 2**0.5, rel=1e-3)  # t of 2 degrees, s = 10 points


def test_configurations_with_few_seeds_are_pooled(tmp_path):
    store = RecordStore(tmp_path)
    few, others = write_seeds(store, NAMES[0], (4, 6)), write_seeds(store, NAMES[1], (4, 5, 6))
    limit, basis = verify.noise_limit(few[0], [*few, *others])
    assert basis == "the spread of 5 seeds of 2 configurations"
    pooled = ((2 + 2) / 3) ** 0.5 * 10  # squares 2 and 2, degrees of freedom 1 and 2
    assert limit == pytest.approx(5.841 * pooled * 2**0.5, rel=1e-3)
    fast = write_seeds(store, "stage1-daa1/1", (1, 9, 5))
    records = [*few, *others, *fast]
    assert {r.config.learning_rate for r in (*few, *others)} != {fast[0].config.learning_rate}
    assert verify.noise_limit(few[0], records) == (limit, basis)
    assert verify.noise_limit(fast[0], records)[1] == "the spread of 3 seeds"
    many = write_seeds(store, NAMES[0], (4, 6, 5, 5, 5))
    assert verify.noise_limit(many[0], [*many, *others])[1] == "the spread of 5 seeds"
