"""Optimisers: Muon against its definition, a plain loop and PyTorch's; groups and their rates."""

import copy
import math

import pytest
import torch
from test_training import SGD, change, short_run
from torch import nn

from cifarlib.models import build_model
from cifarlib.optimizers import Muon, Together, build_optimizer, orthogonalize, set_rate

MUON = {
    "name": "muon",
    "momentum": 0.6,
    "nesterov": True,
    "steps": 3,
    "normalized": True,
    "rest": {**SGD, "nesterov": True},
    "rest_factor": 0.5,
}


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


def test_each_singular_value_goes_through_the_polynomial():
    values = torch.tensor([0.5, 0.3, 0.1])
    expected = values / values.norm()
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    found = orthogonalize(values.diag(), 5).diag()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_in_bfloat16_they_come_near_one_too():
    values = torch.linalg.svdvals(orthogonalize(noise(8, 72), 5, torch.bfloat16))
    assert 0.5 < values.min() <= values.max() < 1.4


def test_a_matrix_of_zeros_stays_one():
    assert not orthogonalize(torch.zeros(3, 5)).any()


# -- Muon -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_on_matrices_muon_is_pytorchs(shape, nesterov):
    """PyTorch multiplies in bfloat16, so do we here; the momentum differs by a factor only."""
    settings = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    ours, theirs = (nn.Parameter(noise(*shape)) for _ in range(2))
    mine = Muon([ours], steps=5, dtype=torch.bfloat16, **settings)
    reference = torch.optim.Muon([theirs], ns_steps=5, **settings)
    for step in range(5):
        ours.grad = theirs.grad = noise(*shape, seed=step + 1)
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.01)


@pytest.mark.parametrize("normalized", [True, False])
def test_on_convolutions_muon_is_a_plain_loop(normalized):
    """By the singular value decomposition and the polynomial, in double precision."""
    weight = nn.Parameter(noise(4, 3, 3, 3).double())
    expected, momentum = weight.detach().clone(), torch.zeros(4, 27, dtype=torch.float64)
    settings = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.5, "steps": 4}
    optimizer = Muon([weight], normalized=normalized, dtype=torch.float64, **settings)
    for step in range(3):
        weight.grad = noise(4, 3, 3, 3, seed=step + 1).double()
        optimizer.step()
        flat = weight.grad.flatten(1)
        momentum = 0.5 * momentum + flat
        left, values, right = torch.linalg.svd(flat + 0.5 * momentum, full_matrices=False)
        values = values / values.norm()
        for _ in range(4):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        if normalized:
            expected = expected * 2 / expected.norm()  # √4 filters
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * (left * values @ right).view(4, 3, 3, 3)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-6)


def test_more_rows_than_columns_make_longer_steps():
    lengths = []
    for rows, columns in ((4, 16), (16, 4)):
        weight = nn.Parameter(torch.zeros(rows, columns, 1, 1))
        weight.grad = noise(rows, columns, 1, 1)
        Muon([weight], lr=1.0).step()
        lengths.append(torch.linalg.svdvals(weight.detach().flatten(1)).mean().item())
    assert lengths[1] / lengths[0] == pytest.approx(math.sqrt(4), rel=0.3)


# -- the parts of a network -------------------------------------------------------------------


def test_muon_has_the_filters_and_another_optimiser_the_rest(base):
    run = change(base, optimizer=MUON, learning_rate=0.2)
    model = build_model(run.model, 0.0, 0)
    optimizer = build_optimizer(run, model)
    assert isinstance(optimizer, Together)
    muon, rest = optimizer.optimizers
    assert all(p.ndim == 4 for p in muon.param_groups[0]["params"])
    assert isinstance(rest, torch.optim.SGD)
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(model.parameters()))
    set_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]


def test_where_weights_alone_decay_the_rest_does_not(base):
    for settings in (SGD, base.optimizer.model_dump(), MUON):
        run = change(base, optimizer=settings, decayed="weights", weight_decay=0.1)
        model = build_model(run.model, 0.0, 0)
        optimizer = build_optimizer(run, model)
        decays = {
            id(p): group["weight_decay"]
            for group in optimizer.param_groups
            for p in group["params"]
        }
        for parameter in model.parameters():
            assert decays[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0)


def test_nesterovs_momentum_is_pytorchs(base):
    run = change(base, optimizer={**SGD, "nesterov": True})
    optimizer = build_optimizer(run, nn.Linear(2, 2))
    assert optimizer.param_groups[0]["nesterov"]
    assert not build_optimizer(change(base, optimizer=SGD), nn.Linear(2, 2)).defaults["nesterov"]


def test_what_is_frozen_has_no_optimiser(base):
    model = build_model(base.model, 0.0, 0)
    model.stem1.conv.weight.requires_grad_(False)
    for settings in (SGD, MUON):
        optimizer = build_optimizer(change(base, optimizer=settings), model)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert id(model.stem1.conv.weight) not in known
        assert len(known) == len(list(model.parameters())) - 1


def test_a_state_goes_on_where_it_was(base):
    run = change(base, optimizer=MUON)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(run, model)

    def train(model, optimizer, seed):
        optimizer.zero_grad()
        model(noise(5, 3, 3, 3, seed=seed)).square().sum().backward()
        optimizer.step()

    train(model, optimizer, 1)
    other = copy.deepcopy(model)
    resumed = build_optimizer(run, other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parts in ((model, optimizer), (other, resumed)):
        train(*parts, 2)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
