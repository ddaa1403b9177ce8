"""The learning rate at a step, a pure function of the schedule and what happened so far."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch


def learning_rate_at(
    schedule: Any,
    base: float,
    step: int,
    total_steps: int,
    validation_top1: Sequence[float] = (),
) -> float:
    """The rate with which step ``step`` of 0 … ``total_steps`` − 1 is taken.

    ``schedule`` is one of the schedule models of the configuration, ``base`` the run's learning
    rate, ``validation_top1`` the accuracy (%) after each completed epoch, from the first on.
    """
    match schedule.name:
        case "constant":
            return base
        case "validation_step":
            exceeded = any(top1 > schedule.threshold for top1 in validation_top1)
            return schedule.learning_rate if exceeded else base
        case "plateau":
            return _plateau(schedule, base, tuple(validation_top1))
        case "multi_step":
            passed = sum(step >= round(share * total_steps) for share in schedule.milestones)
            return base * schedule.factor**passed
        case "cosine":
            return _cosine(schedule, base, step, total_steps)
        case "triangular":
            return _triangular(schedule, base, step, total_steps)
    raise ValueError(f"there is no schedule {schedule.name!r}")


@lru_cache(maxsize=1)  # for all steps of an epoch
def _plateau(schedule: Any, base: float, validation_top1: tuple[float, ...]) -> float:
    """The rate that PyTorch's scheduler comes to after some epochs."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", **schedule.model_dump(exclude={"name"})
    )
    for top1 in validation_top1:
        scheduler.step(top1)
    return float(optimizer.param_groups[0]["lr"])


def _cosine(schedule: Any, base: float, step: int, total_steps: int) -> float:
    """Linear warm-up, then half a cosine that would reach its end at step ``total_steps``.

    The second part is ``torch.optim.lr_scheduler.CosineAnnealingLR`` (Loshchilov and Hutter,
    SGDR, Eq. 5).
    """
    warmup_steps = min(round(schedule.warmup * total_steps), total_steps - 1)
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    share = (1 + math.cos(math.pi * progress)) / 2
    return base * (schedule.final + (1 - schedule.final) * share)


def _triangular(schedule: Any, base: float, step: int, total_steps: int) -> float:
    """From ``start`` at step 0 up to 1 at ``peak``, down to ``final`` at step ``total_steps``."""
    peak = schedule.peak * total_steps
    if step < peak:
        return base * (schedule.start + (1 - schedule.start) * step / peak)
    return base * (1 + (schedule.final - 1) * (step - peak) / (total_steps - peak))
