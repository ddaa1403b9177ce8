"""A network described by its own execution."""

import pytest
import torch

from cifarlib import models
from cifarlib.config import ENGINE
from cifarlib.runs import describe, sweep, tracing
from cifarlib.runs.store import RecordStore


@pytest.fixture(scope="module")
def network():
    return describe.describe_network()


def test_the_sums_are_the_models_own(network):
    model = models.ResidualNetwork()
    assert network.parameters == 4_869_066
    assert network.flops == models.count_flops(model, 32)
    assert network.engine == ENGINE


def test_every_module_with_weights_is_there_once(network):
    model = models.ResidualNetwork()
    owners = [n for n, m in model.named_modules() if any(True for _ in m.parameters(False))]
    assert [layer.name for layer in network.layers if layer.parameters] == owners
    names = [layer.name for layer in network.layers]
    assert len(set(names)) == len(names)


def test_layers_know_their_shapes_windows_and_inputs(network):
    layers = {layer.name: layer for layer in network.layers}
    first = layers["stem1.conv"]
    assert (first.kernel, first.stride, first.padding) == (3, 2, 2)
    assert first.inputs == (tracing.INPUT,)
    assert first.output == (64, 17, 17)
    assert layers["fc"].output == (10,)
    assert layers["flatten"].inputs == ("pool",)


def test_each_stage_adds_its_projection_to_its_second_block(network):
    layers = {layer.name: layer for layer in network.layers}
    before = {"stage1": "stem2.relu", "stage2": "stage1.relu", "stage3": "stage2.relu"}
    for stage, source in before.items():
        total = layers[f"{stage}.add"]
        assert total.inputs == (f"{stage}.block2.relu", f"{stage}.shortcut.norm")
        assert layers[f"{stage}.shortcut.conv"].inputs == (source,)
        assert layers[f"{stage}.relu"].inputs == (total.name,)


def test_tracing_leaves_the_model_as_it_was():
    model = models.ResidualNetwork(dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tracing.trace(model, (3, 32, 32))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.usefixtures("inline")
def test_a_sweep_describes_the_network_once(tmp_path, network, capsys):
    store = RecordStore(tmp_path)
    for said in ("residual network: described", "nothing is missing"):
        assert sweep.sweep([], store, device="cpu", workers=1).failed == {}
        assert said in capsys.readouterr().err
    assert store.read_network().layers == network.layers
