"""Optimisers: Muon against its definition, a plain loop and PyTorch's; groups and their rates."""

import pytest
import torch
from torch import nn
from trainings import MUON, change, short_run

from cifarlib import optimizers
from cifarlib.models import build_model
from cifarlib.optimizers import ChainedOptimizer, Muon, build_optimizer, orthogonalize, set_rate


@pytest.fixture(scope="module")
def base():
    return short_run()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- Newton–Schulz ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (8, 72), (48, 12)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_singular_values_come_near_one_and_vectors_stay(shape, scale):
    matrix = noise(*shape) * scale
    found = orthogonalize(matrix, steps=8)
    assert found.shape == shape
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.3
    assert values.min() > 0.6
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ found @ right.T
    assert (inside - inside.diag().diag()).abs().max() < 1e-2


def test_a_matrix_of_zeros_stays_one():
    assert not orthogonalize(torch.zeros(3, 5)).any()


# -- Muon -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_on_matrices_muon_is_pytorchs(shape, nesterov):
    """PyTorch multiplies in bfloat16, so do we here; the momentum differs by a factor only."""
    settings = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    ours, theirs = (nn.Parameter(noise(*shape)) for _ in range(2))
    mine = Muon([ours], steps=5, normalized=False, dtype=torch.bfloat16, **settings)
    reference = torch.optim.Muon([theirs], ns_steps=5, **settings)
    for step in range(5):
        ours.grad = theirs.grad = noise(*shape, seed=step + 1)
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.01)


# -- the parts of a network -------------------------------------------------------------------


@pytest.mark.parametrize(("natively", "kind"), [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_multiplies_bf16_where_the_processor_does(base, natively, kind, monkeypatch):
    monkeypatch.setattr(optimizers, "multiplies_bf16", lambda: natively)
    run = change(base, optimizer=MUON, precision="bf16")
    assert build_optimizer(run, build_model(run.model, 0.0, 0)).optimizers[0].dtype == kind


def test_muon_has_the_filters_and_another_optimiser_the_rest(base):
    run = change(base, optimizer=MUON, learning_rate=0.2)
    model = build_model(run.model, 0.0, 0)
    optimizer = build_optimizer(run, model)
    assert isinstance(optimizer, ChainedOptimizer)
    muon, rest = optimizer.optimizers
    assert all(p.ndim == 4 for p in muon.param_groups[0]["params"])
    assert isinstance(rest, torch.optim.SGD)
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(model.parameters()))
    set_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]
