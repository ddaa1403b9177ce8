"""Kept weights: those that the predictions come from, whole or refused."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_record, tiny_conditions, tiny_store

from cifarlib import data
from cifarlib.config import AverageConfig, RunConfig
from cifarlib.errors import RecordError
from cifarlib.runs import weights, worker
from cifarlib.runs.cifar10_1 import NewImages
from cifarlib.runs.evaluate import evaluate
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import RecordStore
from cifarlib.runs.weights import KeptWeights, build_network, read_weights, write_weights

pytestmark = pytest.mark.integration

LARGER = (
    "data={name: synthetic, train_size: 40, validation_size: 20, test_size: 200}",
    "seeds=[43]",  # whose best epoch is the first
)


CPU = worker.Settings("cpu", 1, 1)


@pytest.fixture(scope="module")
def base() -> RunConfig:
    """Three epochs, of which the last is not the best."""
    (condition,) = tiny_conditions("stage1-long/9", overrides=LARGER)
    return condition.config


def train(config: RunConfig, store: RecordStore, **settings) -> RunRecord:
    settings = {"keep_weights": True} | settings
    return worker.train(config, store, CPU, lambda message: None, **settings)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> tuple[RecordStore, RunRecord]:
    """A folder with one run and its weights."""
    store = tiny_store(tmp_path_factory.mktemp("trained"))
    return store, train(base, store)


def averaged(config: RunConfig) -> RunConfig:
    """In bf16, evaluated by averaged weights, from the last epoch, with flips counted."""
    return config.model_copy(
        update={
            "precision": "bf16",
            "average": AverageConfig(decay=0.5),
            "protocol": config.protocol.model_copy(update={"checkpoint": "last"}),
            "evaluation": config.evaluation.model_copy(update={"flip_averaged": True}),
        }
    )


def augmented(config: RunConfig) -> RunConfig:
    """With test images that are augmented, as published."""
    flips = {"flip_probability": 0.5, "padding": 4}
    return config.model_copy(
        update={
            "augmentation": config.augmentation.model_copy(update=flips),
            "protocol": config.protocol.model_copy(update={"augmented_evaluation": True}),
        }
    )


# ---------------------------------------------------------------------------------------------
# From training
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [None, averaged, augmented])
def test_kept_weights_give_the_recorded_predictions(change, base, trained, tmp_path):
    store, record = trained
    if change:
        store = tiny_store(tmp_path)
        record = train(change(base), store)
    if change is None:
        assert record.result.predictions.epoch < record.result.history.epochs
    test = data.load_splits(record.config.data)["test"]
    again = NewImages(test.images, test.labels, "ab" * 32)
    found = evaluate(record, store.weights_path(record.run_id), again, "cpu")
    shown = record.result.predictions
    assert found.confusion == shown.confusion["test"]
    assert np.array_equal(found.correct_images, shown.classes == test.labels)
    assert np.array_equal(found.confidences, shown.confidence)


def test_keeping_weights_changes_no_result_and_is_not_the_default(base, trained, tmp_path):
    kept, one = trained
    plain = tiny_store(tmp_path)
    two = worker.train(base, plain, CPU, lambda message: None)
    assert (one.run_id, one.result) == (two.run_id, two.result)
    assert one.model_dump().keys() == two.model_dump().keys()
    assert kept.weights_path(one.run_id).exists()
    assert not plain.weights_path(one.run_id).exists()


def test_a_run_that_was_stopped_keeps_the_same_weights(base, trained, tmp_path):
    (whole, record), stopped = trained, tiny_store(tmp_path)
    for _ in range(2):
        with pytest.raises(worker.OutOfTimeError):
            worker.train(base, stopped, replace(CPU, deadline=0.0), lambda message: None)
        assert not stopped.weights_path(record.run_id).exists()
    assert train(base, stopped).provenance.resumed == 2
    paths = [store.weights_path(record.run_id) for store in (whole, stopped)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


# ---------------------------------------------------------------------------------------------
# On disk
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def kept() -> KeptWeights:
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    return KeptWeights({"fc.weight": values}, (0.5, 0.4, 0.3), (0.25, 0.24, 0.23))


def test_read_weights_gives_what_was_written(kept, tmp_path):
    path = tmp_path / "weights" / "0123.pt"
    write_weights(path, kept)
    found = read_weights(path)
    assert torch.equal(found.weights["fc.weight"], kept.weights["fc.weight"])
    assert (found.mean, found.std) == (kept.mean, kept.std)
    assert [p.name for p in path.parent.iterdir()] == ["0123.pt"]


def test_weights_of_another_run_are_refused(kept, tmp_path):
    write_weights(tmp_path / "0123.pt", kept)
    (tmp_path / "0123.pt").rename(tmp_path / "4567.pt")
    with pytest.raises(RecordError, match=r"4567\.pt holds the weights of another run, 0123"):
        read_weights(tmp_path / "4567.pt")


@pytest.mark.parametrize("content", [{"run_id": "0123"}, {1, 2}, eval])
def test_read_weights_refuses_code_and_other_content(content, tmp_path):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    raw = buffer.getvalue()
    digest = hashlib.sha256(weights.CONTENT + raw).digest()
    (tmp_path / "0123.pt").write_bytes(digest + raw)
    with pytest.raises(RecordError, match=r"0123\.pt holds no weights of a run"):
        read_weights(tmp_path / "0123.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(RecordError, match=r"folder\.pt cannot be read"):
        read_weights(tmp_path / "folder.pt")


def test_weights_of_another_training_or_network_are_refused(trained, kept, tmp_path):
    store, record = trained
    path = tmp_path / f"{record.run_id}.pt"
    write_weights(path, kept)
    with pytest.raises(RecordError, match="does not fit the network of its run"):
        build_network(record, path)
    (condition,) = tiny_conditions("stage1-long/9", overrides=LARGER)
    made_up = make_record(condition)
    assert made_up.run_id == record.run_id
    with pytest.raises(RecordError, match="another training of its run: its last layer"):
        build_network(made_up, store.weights_path(record.run_id))
