"""CIFAR-10.1: its files found and checked, and the records of what runs make of it."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SET_TINY, TINY, make_provenance, make_record, tiny_conditions, tiny_store
from trainings import make_inputs

from cifarlib import cli, paths
from cifarlib.errors import DataError, RecordError
from cifarlib.report import archive
from cifarlib.runs import cifar10_1, merge, worker
from cifarlib.runs.cifar10_1 import (
    IMAGE_FILE,
    LABEL_FILE,
    ShiftRecord,
    find_folder,
    read_images,
    read_shift,
    read_shifts,
    shift_path,
)
from cifarlib.runs.results import open_results
from cifarlib.runs.schema import RunRecord, pack, pack_classes
from cifarlib.runs.store import RecordStore, encode, write_atomically

NAMES = ("stage1-base/1", "stage1-base/2", "stage1-daa1/13")


def write_set(folder: Path, images: int = 2000, seed: int = 0) -> Path:
    """A made-up set in the shape of CIFAR-10.1: noise, ten classes in turn."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    np.save(folder / IMAGE_FILE, pixels)
    np.save(folder / LABEL_FILE, np.arange(images, dtype=np.int32) % 10)
    return folder


def make_shift(record: RunRecord, right: float = 0.5, images: int = 200, **changed) -> ShiftRecord:
    """A made-up record of a run on the new images: its numbers come from its run id."""
    random = np.random.default_rng(int(record.run_id, 16))
    labels = np.arange(images) % 10
    classes = np.where(random.random(images) < right, labels, (labels + 1) % 10)
    confusion = np.zeros((10, 10), dtype=int)
    np.add.at(confusion, (labels, classes), 1)
    content = {
        "format": 1,
        "run_id": record.run_id,
        "of_predictions": cifar10_1.predictions_digest(record),
        "data_fingerprint": "ab" * 32,
        "confusion": tuple(map(tuple, confusion.tolist())),
        "classes": pack_classes(classes.tolist()),
        "confidence": pack(random.integers(0, 256, images, dtype=np.uint8)),
        "right": pack(np.packbits(classes == labels)),
        "provenance": make_provenance(),
    }
    return ShiftRecord(**content | changed)


def keep_shift(store: RecordStore, shift: ShiftRecord) -> None:
    write_atomically(shift_path(store, shift.run_id), encode(shift))


@pytest.fixture
def stored(tmp_path):
    """A build folder with three made-up records, each with one on the new images."""
    store = tiny_store(tmp_path / "build")
    for condition in tiny_conditions(*NAMES):
        record = make_record(condition)
        store.write(record)
        keep_shift(store, make_shift(record))
    return store


# ---------------------------------------------------------------------------------------------
# The images
# ---------------------------------------------------------------------------------------------


def test_images_are_read_with_their_channels_first(tmp_path):
    found = read_images(write_set(tmp_path))
    pixels = np.load(tmp_path / IMAGE_FILE)
    assert found.images.shape == (2000, 3, 32, 32)
    assert found.images.flags.c_contiguous
    assert np.array_equal(found.images[7, 2], pixels[7, :, :, 2])
    assert found.labels.dtype == np.int64
    assert found.labels[:12].tolist() == [*range(10), 0, 1]
    assert read_images(tmp_path).fingerprint == found.fingerprint
    other = read_images(write_set(tmp_path / "other", seed=1)).fingerprint
    assert len(found.fingerprint) == 64
    assert other != found.fingerprint


def test_the_folder_is_the_named_one_else_the_environments_else_the_projects(monkeypatch):
    monkeypatch.delenv(cifar10_1.VARIABLE, raising=False)
    assert find_folder() == paths.DATA / "cifar-10.1"
    monkeypatch.setenv(cifar10_1.VARIABLE, "/elsewhere")
    assert find_folder() == Path("/elsewhere")
    assert find_folder(Path("named")) == Path("named")


def saved(values) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def archived() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, labels=np.zeros(2000, dtype=int))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        (IMAGE_FILE, None, r"cannot be read \(No such file .*; put cifar10.1_v6_data.npy"),
        (LABEL_FILE, None, r"cannot be read \(No such file .*; put cifar10.1_v6_data.npy"),
        (IMAGE_FILE, b"", "is no array of numbers"),
        (IMAGE_FILE, b"garbage" * 99, "is no array of numbers"),
        (LABEL_FILE, saved(np.array([{}] * 2000)), "is no array of numbers"),  # pickled
        (LABEL_FILE, saved(np.zeros(2000, dtype=int))[:-1], "is no array of numbers"),
        (LABEL_FILE, archived(), "is no array of numbers"),
        (IMAGE_FILE, saved(np.zeros((2021, 32, 32, 3), np.uint8)), r"\(2021, 32, 32, 3\) of uint8"),
        (IMAGE_FILE, saved(np.zeros((2000, 3, 32, 32), np.uint8)), r"\(2000, 3, 32, 32\) of uint8"),
        (IMAGE_FILE, saved(np.zeros((2000, 32, 32, 3), np.int8)), "of int8 instead of"),
        (LABEL_FILE, saved(np.zeros(2021, dtype=int)), r"\(2021,\) of int64 instead of"),
        (LABEL_FILE, saved(np.zeros(2000)), "of float64 instead of"),
        (LABEL_FILE, saved(np.arange(2000) % 11), "labels from 0 to 10 instead of"),
        (LABEL_FILE, saved(np.arange(2000) % 10 - 1), "labels from -1 to 8 instead of"),
    ],
)
def test_other_files_are_refused_in_one_sentence(file, content, told, tmp_path):
    path = write_set(tmp_path) / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=told) as refusal:
        read_images(tmp_path)
    assert str(refusal.value).startswith(str(path))
    assert cifar10_1.SOURCE in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_generalise_says_which_file_is_missing(tmp_path, capsys):
    command = ["generalise", *SET_TINY, "--out", str(tmp_path), "--folder", str(tmp_path / "set")]
    assert cli.main(command) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"cifarlib: {tmp_path / 'set' / IMAGE_FILE} cannot be read")


# ---------------------------------------------------------------------------------------------
# The records
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"confusion": ((1, 2), (3, 4))}, "at least 10 items"),
        ({"classes": pack_classes([0] * 100)}, "as many packed predictions as test images"),
        ({"confidence": pack(np.zeros(199, np.uint8))}, "as many packed predictions as test"),
        ({"right": pack(np.zeros(25, np.uint8))}, "as many right images as the confusion matrix"),
        ({"classes": pack_classes([0] * 200)}, "packed predictions as in the confusion matrix"),
    ],
)
def test_odd_content_is_refused_whatever_its_digest(changed, told, stored):
    (run_id, *_) = stored.run_ids()
    good = read_shift(stored, run_id)
    cifar10_1.shift_path(stored, run_id).write_bytes(encode(good.model_copy(update=changed)))
    with pytest.raises(RecordError, match=told):
        read_shift(stored, run_id)


def test_damaged_and_others_records_count_as_none(stored):
    one, two, three = stored.run_ids()
    path = cifar10_1.shift_path(stored, one)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RecordError, match="is truncated"):
        read_shift(stored, one)
    cifar10_1.shift_path(stored, two).rename(path)
    with pytest.raises(RecordError, match=f"holds the record of another run, {two}"):
        read_shift(stored, one)
    assert read_shift(stored, two) is None
    results = open_results("smoke", TINY, stored.folder)
    assert set(read_shifts(results)) == {three}
    keep_shift(stored, make_shift(stored.read_run(two), of_predictions="0" * 64))
    assert set(read_shifts(results)) == {three}  # for its weights were another training's


def test_a_folder_with_such_records_is_read_merged_and_packed(stored, tmp_path, capsys):
    options = [*SET_TINY, "--out", str(stored.folder)]
    assert len(stored.run_ids()) == 3
    assert cli.main(["status", *options]) == 0
    assert capsys.readouterr().err == ""
    there = tiny_store(tmp_path / "other")
    for _ in range(2):  # nothing is taken twice
        merged = merge.merge(open_results("smoke", TINY, there.folder), [stored.folder])
        assert (merged.others, merged.conflicts) == ([], [])
    for run_id in stored.run_ids():
        assert read_shift(there, run_id) == read_shift(stored, run_id)
    keep_shift(there, make_shift(stored.read_run(run_id), right=0.4))
    (conflict,) = merge.merge(open_results("smoke", TINY, there.folder), [stored.folder]).conflicts
    assert " on CIFAR-10.1: conflict, nothing changed\n" in conflict
    results = open_results("smoke", TINY, stored.folder)
    files = archive.collect(results, paths.PARAMS / "smoke.yaml")
    packed = [name for name in files if "/runs/shift-" in name]
    assert packed == [f"build/smoke/runs/shift-{run_id}.json" for run_id in results.records]


# ---------------------------------------------------------------------------------------------
# Kept weights, evaluated
# ---------------------------------------------------------------------------------------------

SET = (
    "data={name: cifar10, train_size: 20, validation_size: 10, test_size: 60}",
    "epochs.30=1",
    "precision=fp32",
)
TRAINED = ("stage1-base/1", "stage1-base/2")
IMAGES = 60  # of the made-up set


@pytest.fixture(scope="module")
def inputs():
    return make_inputs(20, 10, 60)


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """Two runs of CIFAR-10's configuration, trained on made-up images; the first keeps weights."""
    store = RecordStore(tmp_path_factory.mktemp("trained"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cifarlib.runs.inputs.load_inputs", lambda config, device: inputs)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        for condition in (c for c in conditions() if c.name in TRAINED):
            keep = condition.name == TRAINED[0]
            arguments = (condition.config, store, worker.Settings("cpu", 1, 0), print)
            worker.train(*arguments, keep_weights=keep)
        torch.set_num_threads(before)
    return store


def conditions():
    return open_results("smoke", SET, "/nowhere").conditions


@pytest.fixture
def kept(trained, tmp_path, monkeypatch):
    """A copy of that folder."""
    shutil.copytree(trained.folder, tmp_path / "build")
    monkeypatch.setattr(cifar10_1, "IMAGES", IMAGES)
    return RecordStore(tmp_path / "build")


@pytest.fixture
def command(kept, tmp_path, capsys):
    """Run the command over that folder: exit code, and the lines on both channels."""
    write_set(tmp_path / "set", IMAGES)

    def run(folder=tmp_path / "set", sets=SET) -> tuple[int, list[str], list[str]]:
        words = [word for override in sets for word in ("--set", override)]
        words += ["--out", str(kept.folder), "--folder", str(folder), "--device", "cpu"]
        code = cli.main(["generalise", *words])
        told = capsys.readouterr()
        return code, told.out.splitlines(), told.err.splitlines()

    return run


def ids(kept) -> tuple[str, str]:
    """The run with weights, and the one without."""
    one, two = (next(c.run_id for c in conditions() if c.name == name) for name in TRAINED)
    return one, two


def test_a_runs_weights_are_evaluated_once(kept, command, tmp_path):
    run_id, other = ids(kept)
    code, out, err = command()
    assert (code, err) == (0, [])
    assert out[-1] == "1 runs evaluated on CIFAR-10.1, 0 were already, 1 have no kept weights"
    found = cifar10_1.read_shift(kept, run_id)
    assert f"{found.accuracy:.2f} % on CIFAR-10.1" in out[0]
    assert found.images == IMAGES
    assert found.provenance.threads == 1
    assert cifar10_1.read_shift(kept, other) is None
    before = cifar10_1.shift_path(kept, run_id).read_bytes()
    _, out, _ = command()
    assert out[-1].startswith("0 runs evaluated on CIFAR-10.1, 1 were already")
    assert cifar10_1.shift_path(kept, run_id).read_bytes() == before
    _, out, _ = command(write_set(tmp_path / "other", IMAGES, seed=1))
    assert out[-1].startswith("1 runs evaluated")  # for these are other files


def test_damaged_weights_and_records_are_set_aside(kept, command):
    run_id, _ = ids(kept)
    command()
    made = cifar10_1.read_shift(kept, run_id)
    path = cifar10_1.shift_path(kept, run_id)
    path.write_bytes(path.read_bytes()[:100])
    code, out, _ = command()
    assert code == 0
    assert any("set aside as" in line and path.name in line for line in out)
    again = cifar10_1.read_shift(kept, run_id)
    assert again.model_dump(exclude={"provenance"}) == made.model_dump(exclude={"provenance"})
    path.unlink()
    weights = kept.weights_path(run_id)
    weights.write_bytes(weights.read_bytes()[:-1])
    code, out, err = command()
    assert code == 2
    assert any("does not match its digest; set aside as" in line for line in out)
    (sentence,) = err
    assert "no recorded run in" in sentence
    assert "--keep-weights" in sentence
    assert not weights.exists()
    assert (kept.folder / "damaged" / weights.name).exists()


def test_runs_of_the_stand_in_set_are_refused(command):
    code, _, err = command(sets=("data.train_size=20",))
    assert (code, len(err)) == (2, 1)
    assert "whose classes are not CIFAR-10.1's; add --set data.name=cifar10" in err[0]


def test_a_sweep_says_which_recorded_runs_lack_weights(kept, capsys):
    run_id, other = ids(kept)
    chosen = [c for c in conditions() if c.run_id in (run_id, other)]
    results = open_results("smoke", SET, kept.folder)
    cli._tell_weights(results, chosen)
    assert capsys.readouterr().err.startswith("1 runs were recorded without their weights; ")
    cli._tell_weights(results, chosen[:1])
    assert capsys.readouterr().err == ""
