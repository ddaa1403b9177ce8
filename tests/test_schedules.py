"""The learning rate, step by step, against PyTorch's own schedulers."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from cifarlib.config import PlateauSchedule
from cifarlib.schedules import learning_rate_at


def make(name: str, **settings) -> SimpleNamespace:
    return SimpleNamespace(name=name, **settings)


def optimizer(rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def rates_of(scheduler, steps: int) -> list[float]:
    """The rate of each step under one of PyTorch's schedulers."""
    rates = []
    for _ in range(steps):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def test_validation_step_sets_the_rate_once_exceeded_and_keeps_it():
    schedule = make("validation_step", threshold=80.0, learning_rate=1e-4)
    rates = [
        learning_rate_at(schedule, 1e-3, 0, 100, top1)
        for top1 in ([], [79.0], [79.0, 80.0], [79.0, 80.0, 80.1], [79.0, 80.0, 80.1, 70.0])
    ]
    assert rates == [1e-3, 1e-3, 1e-3, 1e-4, 1e-4]


def test_plateau_waits_for_its_patience_and_cooldown():
    schedule = PlateauSchedule(name="plateau", factor=0.1, patience=1, cooldown=2, threshold=0.01)
    history = [50.0, 50.4, 50.2, 50.0, 50.0, 50.0, 50.0, 60.0]  # 1 % better than 50.0 is 50.5
    rates = [learning_rate_at(schedule, 0.1, 0, 1, history[:epoch]) for epoch in range(9)]
    assert rates == pytest.approx([0.1] * 3 + [0.01] * 4 + [0.001] * 2)


def test_multi_step_is_pytorchs():
    total = 97
    schedule = make("multi_step", milestones=(0.5, 0.7, 0.9), factor=0.1)
    reference = torch.optim.lr_scheduler.MultiStepLR(
        optimizer(0.1), [round(share * total) for share in schedule.milestones], gamma=0.1
    )
    ours = [learning_rate_at(schedule, 0.1, step, total, []) for step in range(total)]
    assert ours == pytest.approx(rates_of(reference, total), rel=1e-12)


def test_cosine_without_warmup_is_pytorchs():
    total, final = 50, 0.01
    schedule = make("cosine", warmup=0.0, final=final)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer(0.1), T_max=total, eta_min=0.1 * final
    )
    ours = [learning_rate_at(schedule, 0.1, step, total, []) for step in range(total)]
    assert ours == pytest.approx(rates_of(reference, total), rel=1e-9)


def test_cosine_rises_then_falls():
    schedule = make("cosine", warmup=0.1, final=0.02)
    rates = [learning_rate_at(schedule, 0.5, step, 200, []) for step in range(201)]
    assert rates[:20] == pytest.approx([0.5 * k / 20 for k in range(1, 21)])
    assert rates[20] == 0.5
    assert all(now > then for now, then in itertools.pairwise(rates[20:]))
    assert rates[110] == pytest.approx(0.5 * (1 + 0.02) / 2)  # half-way down
    assert rates[200] == pytest.approx(0.5 * 0.02)


def test_triangular_at_points_computed_by_hand():
    schedule = make("triangular", start=0.2, peak=0.25, final=0.1)
    rates = {step: learning_rate_at(schedule, 2.0, step, 100) for step in (0, 5, 25, 50, 75, 99)}
    assert rates == pytest.approx({0: 0.4, 5: 0.72, 25: 2.0, 50: 1.4, 75: 0.8, 99: 0.224})
    assert learning_rate_at(schedule, 2.0, 100, 100) == pytest.approx(0.2)
