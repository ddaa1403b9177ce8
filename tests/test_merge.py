"""Merging build folders: checked, never silently resolved, nothing lost."""

import json

import pytest
from conftest import (
    SET_TINY,
    TINY,
    make_data_record,
    make_record,
    tiny_conditions,
    tiny_store,
    with_result,
    write_records,
)

from cifarlib import cli
from cifarlib.errors import ConfigError
from cifarlib.runs.merge import merge
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore, encode

ONE, TWO, THREE = NAMES = ("stage1-base/1", "stage1-base/2", "stage1-long/9")


@pytest.fixture
def conditions():
    return tiny_conditions(*NAMES)


@pytest.fixture
def ours(tmp_path):
    return tiny_store(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path):
    return tiny_store(tmp_path / "theirs")


def merge_into(ours: RecordStore, *theirs: RecordStore, prefer=None):
    results = open_results("smoke", TINY, ours.folder)
    return merge(results, [store.folder for store in theirs], prefer=prefer)


def test_what_is_missing_is_taken_and_what_is_equal_skipped(ours, theirs, conditions):
    write_records(theirs, conditions[:2])
    made_elsewhere = make_record(conditions[0], device="another processor", train_s=99.0)
    ours.write(made_elsewhere)
    merged = merge_into(ours, theirs)
    assert merged.taken == [f"{TWO} (seed 42)"]
    assert sorted(merged.equal)[-1] == f"{ONE} (seed 42)"
    assert len(merged.equal) == 3  # with data set and network
    assert (merged.conflicts, merged.damaged, merged.others) == ([], [], [])
    assert ours.read_run(conditions[0].run_id) == made_elsewhere
    assert ours.read_run(conditions[1].run_id) == make_record(conditions[1])
    again = merge_into(ours, theirs)
    assert (again.taken, len(again.equal)) == ([], 4)


def test_a_damaged_record_of_theirs_is_named_and_left(ours, theirs, conditions):
    cut, edited, good = conditions
    theirs.write(make_record(cut))
    path = theirs.run_path(cut.run_id)
    path.write_bytes(path.read_bytes()[:500])
    raw = encode(make_record(edited)).replace(b'"train_s": 12.5', b'"train_s": 1.25')
    theirs.run_path(edited.run_id).write_bytes(raw)
    theirs.write(make_record(good))
    before = path.read_bytes()
    merged = merge_into(ours, theirs)
    assert merged.taken == [f"{good.name} (seed 42)"]
    assert len(merged.damaged) == 2
    assert any("truncated" in fault and str(path) in fault for fault in merged.damaged)
    assert any("does not match its digest" in fault for fault in merged.damaged)
    assert ours.run_ids() == [good.run_id]
    assert path.read_bytes() == before


def test_a_damaged_record_of_ours_gives_way(ours, theirs, conditions):
    theirs.write(make_record(conditions[0]))
    ours.run_path(conditions[0].run_id).write_bytes(b"{")
    merged = merge_into(ours, theirs)
    assert merged.taken == [f"{ONE} (seed 42)"]
    assert merged.damaged == []
    assert "set aside as" in merged.replaced[0]
    assert ours.read_run(conditions[0].run_id) == make_record(conditions[0])
    assert (ours.folder / "damaged" / f"{conditions[0].run_id}.json").read_bytes() == b"{"


@pytest.fixture
def contradicting(ours, theirs, conditions):
    """One run whose two records differ; theirs has one more that ours lacks."""
    mine = make_record(conditions[0])
    other = make_record(conditions[0], device="a GPU", commit="f" * 40)
    other = with_result(other, training_loss=(None, 0.125))
    ours.write(mine)
    theirs.write(other)
    theirs.write(make_record(conditions[1]))
    return mine, other


def test_a_conflict_is_listed_and_nothing_of_it_changed(
    ours, theirs, conditions, contradicting, capsys
):
    arguments = ["merge", str(theirs.folder), "--out", str(ours.folder), *SET_TINY]
    assert cli.main(arguments) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("1 records taken, 2 equal ones were here already")
    assert f"{ONE} (seed 42): conflict, nothing changed" in said
    (mine,) = [line for line in said if line.startswith("  ours:")]
    (other,) = [line for line in said if line.startswith("  theirs:")]
    assert (
        "a processor, commit 0123456789ab, python 3.11.2 torch 2.11.0, finished 2025-01-02" in mine
    )
    assert "a GPU, commit ffffffffffff, " in other
    assert str(theirs.folder) in other
    assert "--prefer" in said[-1]
    assert ours.read_run(conditions[0].run_id) == contradicting[0]
    assert theirs.read_run(conditions[0].run_id) == contradicting[1]


@pytest.mark.parametrize(("prefer", "kept"), [("ours", 0), ("theirs", 1)])
def test_a_conflict_may_be_decided(ours, theirs, conditions, contradicting, capsys, prefer, kept):
    arguments = ["merge", str(theirs.folder), "--prefer", prefer, "--out", str(ours.folder)]
    assert cli.main([*arguments, *SET_TINY]) == 0
    assert f"{ONE} (seed 42): kept {prefer}" in capsys.readouterr().out.splitlines()
    assert ours.read_run(conditions[0].run_id) == contradicting[kept]


def test_descriptions_of_data_are_merged_too(ours, theirs):
    record = make_data_record("synthetic")
    ours.data_path("synthetic").unlink()
    ours.network_path.unlink()
    merged = merge_into(ours, theirs)
    assert sorted(merged.taken) == sorted(
        [ours.data_path("synthetic").name, "network-residual.json"]
    )
    assert ours.read_data("synthetic") == record
    assert ours.read_network() == theirs.read_network()


def test_records_of_other_scales_are_left(ours, theirs, conditions):
    other = tiny_conditions(ONE, overrides=("epochs.30=2",))[0]
    theirs.write(make_record(other))
    (theirs.runs / "data-0123456789abcdef.json").write_text(json.dumps({"format": 1}))
    merged = merge_into(ours, theirs)
    assert sorted(merged.others) == sorted([f"{other.run_id}.json", "data-0123456789abcdef.json"])
    assert ours.run_ids() == []


def test_a_folder_without_records_is_refused_before_anything_is_taken(
    ours, theirs, conditions, tmp_path
):
    theirs.write(make_record(conditions[0]))
    with pytest.raises(ConfigError, match="is no build folder: it has no runs/"):
        merge_into(ours, theirs, RecordStore(tmp_path))
    with pytest.raises(ConfigError, match="is the folder to merge into"):
        merge_into(ours, theirs, RecordStore(ours.folder / ".." / "ours"))
    assert ours.run_ids() == []
