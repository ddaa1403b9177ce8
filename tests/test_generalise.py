"""Kept weights on CIFAR-10.1, from the command line, with a made-up set and without CIFAR-10."""

import shutil

import numpy as np
import pytest
import torch
from test_shift import write_set
from test_training import make_inputs

from cifarlib import cli, data
from cifarlib.data import Images, Splits
from cifarlib.errors import DataError
from cifarlib.runs import generalise, shift, worker
from cifarlib.runs.results import open_results
from cifarlib.runs.schema import pack_classes
from cifarlib.runs.store import RecordStore

pytestmark = pytest.mark.usefixtures("one_thread")

SET = (
    "data={name: cifar10, train_size: 20, validation_size: 10, test_size: 60}",
    "epochs.30=1",
    "precision=fp32",
)
NAMES = ("stage1-base/1", "stage1-base/2")
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
        for condition in (c for c in conditions() if c.name in NAMES):
            keep = condition.name == NAMES[0]
            arguments = (condition.config, store, "cpu", 1, 0, lambda message: None)
            worker.train(*arguments, keep_weights=keep)
        torch.set_num_threads(before)
    return store


def conditions():
    return open_results("smoke", SET, "/nowhere").conditions


@pytest.fixture
def store(trained, tmp_path, monkeypatch):
    """A copy of that folder, on a machine where CIFAR-10 is not."""
    shutil.copytree(trained.folder, tmp_path / "build")
    monkeypatch.setattr(shift, "IMAGES", IMAGES)

    def missing(name):
        raise DataError("CIFAR-10 was not found")

    monkeypatch.setattr(data, "find", missing)
    return RecordStore(tmp_path / "build")


@pytest.fixture
def has_cifar10(store, inputs, monkeypatch):
    """... or where it is, and made of the images that the runs were trained on."""
    test = Images(inputs.test.images.numpy(), inputs.test.labels.numpy())
    monkeypatch.setattr(data, "find", lambda name: store.folder)
    monkeypatch.setattr(data, "load_splits", lambda config: Splits(test, test, test))


@pytest.fixture
def command(store, tmp_path, capsys):
    """Run the command over that folder: exit code, and the lines on both channels."""
    write_set(tmp_path / "set", IMAGES)

    def run(folder=tmp_path / "set", sets=SET) -> tuple[int, list[str], list[str]]:
        words = [word for override in sets for word in ("--set", override)]
        words += ["--out", str(store.folder), "--folder", str(folder), "--device", "cpu"]
        code = cli.main(["generalise", *words])
        told = capsys.readouterr()
        return code, told.out.splitlines(), told.err.splitlines()

    return run


def ids(store) -> tuple[str, str]:
    """The run with weights, and the one without."""
    one, two = (next(c.run_id for c in conditions() if c.name == name) for name in NAMES)
    return one, two


def test_a_runs_weights_are_evaluated_once(store, command, tmp_path):
    run_id, other = ids(store)
    code, out, err = command()
    assert (code, err) == (0, [])
    assert out[0] == "recorded predictions are not checked: CIFAR-10 was not found"
    assert out[-1] == "1 runs evaluated on CIFAR-10.1, 0 were already, 1 have no kept weights"
    found = shift.read_shift(store, run_id)
    assert f"{found.accuracy:.2f} % on CIFAR-10.1" in out[1]
    assert (found.images, found.differing, found.flip_averaged) == (IMAGES, None, None)
    assert found.provenance.threads == 1
    assert shift.read_shift(store, other) is None
    # The same by hand: the constants of the run, and torch's own softmax.
    network = generalise.KeptNetwork(
        store.read_run(run_id), store.weights_path(run_id), torch.device("cpu")
    )
    pixels = np.load(tmp_path / "set" / shift.IMAGE_FILE).transpose(0, 3, 1, 2) / 255
    values = torch.from_numpy((pixels - 0.5) / 0.25).float()
    with torch.no_grad():
        shares, classes = network.model.eval()(values).softmax(dim=1).max(dim=1)
    labels = np.arange(IMAGES) % 10
    assert found.correct_images.tolist() == (classes.numpy() == labels).tolist()
    assert found.confidences == pytest.approx(shares.numpy(), abs=0.0021)
    before = shift.shift_path(store, run_id).read_bytes()
    code, out, _ = command()
    assert (code, out[-1].split(",")[:2]) == (
        0,
        ["0 runs evaluated on CIFAR-10.1", " 1 were already"],
    )
    assert shift.shift_path(store, run_id).read_bytes() == before
    _, out, _ = command(write_set(tmp_path / "other", IMAGES, seed=1))
    assert out[-1].startswith("1 runs evaluated")  # for these are other files


@pytest.mark.usefixtures("has_cifar10")
def test_recorded_predictions_must_come_out_again(store, command):
    run_id, _ = ids(store)
    code, out, _ = command()
    assert code == 0
    assert out[0].endswith("; its recorded predictions came out again")
    assert shift.read_shift(store, run_id).differing == 0


@pytest.mark.usefixtures("has_cifar10")
@pytest.mark.parametrize("device", [None, "another processor"])
def test_predictions_that_do_not_are_an_error_here_and_counted_elsewhere(device, store, command):
    """The record has the predictions of its images in another order."""
    run_id, _ = ids(store)
    record = store.read_run(run_id)
    own = record.result.predictions
    turned = np.roll(own.classes, 1)
    many = int((turned != own.classes).sum())
    assert many
    packed = pack_classes(turned.tolist())
    predictions = own.model_copy(update={"test_classes": packed})
    changed = {"result": record.result.model_copy(update={"predictions": predictions})}
    if device:
        changed["provenance"] = record.provenance.model_copy(update={"device": device})
    store.write(record.model_copy(update=changed))
    code, out, _ = command()
    if device:
        assert code == 0
        assert f"{many} of 60 recorded predictions came out otherwise (trained on " in out[0]
        assert shift.read_shift(store, run_id).differing == many
    else:
        assert code == 1
        assert f"left out, its weights give {many} other predictions" in out[0]
        assert shift.read_shift(store, run_id) is None


def test_damaged_weights_and_records_are_set_aside(store, command):
    run_id, _ = ids(store)
    command()
    made = shift.read_shift(store, run_id)
    path = shift.shift_path(store, run_id)
    path.write_bytes(path.read_bytes()[:100])
    code, out, _ = command()
    assert code == 0
    assert any("set aside as" in line and path.name in line for line in out)
    again = shift.read_shift(store, run_id)
    assert again.model_dump(exclude={"provenance"}) == made.model_dump(exclude={"provenance"})
    path.unlink()
    weights = store.weights_path(run_id)
    weights.write_bytes(weights.read_bytes()[:-1])
    code, out, err = command()
    assert code == 2
    assert any("does not match its digest; set aside as" in line for line in out)
    (sentence,) = err
    assert "no recorded run in" in sentence
    assert "--keep-weights" in sentence
    assert not weights.exists()
    assert (store.folder / "damaged" / weights.name).exists()


def test_runs_of_the_stand_in_set_are_refused(command):
    code, _, err = command(sets=("data.train_size=20",))
    assert (code, len(err)) == (2, 1)
    assert "whose classes are not CIFAR-10.1's; add --set data.name=cifar10" in err[0]


def test_a_sweep_says_which_recorded_runs_lack_weights(store, capsys):
    run_id, other = ids(store)
    chosen = [c for c in conditions() if c.run_id in (run_id, other)]
    results = open_results("smoke", SET, store.folder)
    cli._tell_weights(results, chosen)
    assert capsys.readouterr().err.startswith("1 runs were recorded without their weights; ")
    cli._tell_weights(results, chosen[:1])
    assert capsys.readouterr().err == ""
