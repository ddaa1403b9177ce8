"""Optimisers: PyTorch's own, and Muon for the weights of convolutions.

Muon (K. Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024) takes
momentum as SGD does and replaces it, layer by layer, by the nearest matrix whose singular values
are all equal: every direction of a layer is then trained at the same speed. PyTorch's own Muon
knows matrices only; a convolution's weights are one once its filters are rows.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cifarlib.config import AdamConfig, MuonConfig, RunConfig, SGDConfig
from cifarlib.convolution import multiplies_bf16

Optimizer = torch.optim.Optimizer


def build_optimizer(config: RunConfig, model: nn.Module) -> "Optimizer | ChainedOptimizer":
    """The optimiser of a configuration, over all parameters of a model that are trained.

    A group's learning rate is the run's times its ``rate_factor``, 1 where it has none. PyTorch's
    are fused, and three times as fast, only in bf16: the last bits differ from the plain
    optimiser's, and in fp32 fifty steps of this network grow that to some per cent of the loss.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    biases = [m.bias for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    settings = config.optimizer
    if not isinstance(settings, MuonConfig):
        return _build_plain(config, settings, parameters, biases)
    filters = [p for p in parameters if p.ndim == 4]
    fast = parameters[0].is_cuda or multiplies_bf16()
    others = [p for p in parameters if p.ndim != 4]
    muon = Muon(
        filters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        steps=settings.steps,
        normalized=settings.normalized,
        dtype=torch.bfloat16 if config.precision == "bf16" and fast else torch.float32,
    )
    rest = _build_plain(config, settings.rest, others, biases)
    for group in rest.param_groups:
        group["rate_factor"] = settings.rest_factor * group.get("rate_factor", 1.0)
    return ChainedOptimizer(muon, rest)


def set_rate(optimizer: "Optimizer | ChainedOptimizer", rate: float) -> None:
    """Set the learning rate of a run's next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def _build_plain(
    config: RunConfig,
    settings: SGDConfig | AdamConfig,
    parameters: list[nn.Parameter],
    biases: list[nn.Parameter],
) -> Optimizer:
    """SGD, Adam or AdamW; in groups where only weights decay or ``biases`` have their own rate.

    What such a bias decays by in a step does not grow with its rate.
    """
    groups: list[Any] = parameters
    factor, decay = config.batch_norm_bias_factor, config.weight_decay
    apart = set(map(id, biases)) if factor != 1 else set()
    if config.decayed == "weights" or apart:
        rest = [p for p in parameters if id(p) not in apart]
        weights = [p for p in rest if p.ndim > 1]
        others = [p for p in rest if p.ndim <= 1]
        undecayed = 0.0 if config.decayed == "weights" else decay
        groups = [{"params": weights}, {"params": others, "weight_decay": undecayed}]
    if apart:
        fast = [p for p in parameters if id(p) in apart]
        groups.append({"params": fast, "weight_decay": undecayed / factor, "rate_factor": factor})
    shared: dict[str, Any] = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
        "fused": config.precision == "bf16",
    }
    if isinstance(settings, AdamConfig):
        kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
        betas = (settings.beta1, settings.beta2)
        return kind(groups, betas=betas, eps=settings.epsilon, **shared)
    momentum, nesterov = settings.momentum, settings.nesterov
    return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, **shared)


class ChainedOptimizer:
    """Several optimisers, each over its part of a model, that step as one."""

    def __init__(self, *optimizers: Optimizer):
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, part in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, for parameters whose first dimension are filters.

    Weight decay is decoupled. A step's length grows with √(rows/columns) where there are more
    rows, so that it changes outputs alike whatever the shape. With ``normalized``, weights are
    first put back to the norm √rows: before batch normalisation only their direction counts, and
    the rate is then by how much that turns.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        steps: int,
        normalized: bool,
        dtype: torch.dtype,
    ):
        self.dtype = dtype  # of the matrix products
        settings = {"momentum": momentum, "nesterov": nesterov, "steps": steps}
        super().__init__(
            parameters,
            {"lr": lr, "weight_decay": weight_decay, "normalized": normalized, **settings},
        )

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        if group["nesterov"]:
            momentum = gradient.add(momentum, alpha=group["momentum"])
        direction = orthogonalize(momentum.flatten(1), group["steps"], self.dtype)
        rows, columns = direction.shape
        if group["normalized"]:
            parameter.mul_(math.sqrt(rows) / parameter.norm())
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        length = group["lr"] * math.sqrt(max(1.0, rows / columns))
        parameter.sub_(direction.reshape(parameter.shape), alpha=length)


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x³ and x⁵ (Jordan, 2024): steep at 0, so that small singular values grow fast;
large ones end between about 0.7 and 1.2."""


def orthogonalize(matrix: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """A matrix with the same singular vectors and all singular values near 1: (m, n) → (m, n).

    By ``steps`` Newton–Schulz iterations, an odd polynomial of the matrix, computed in ``dtype``.
    A matrix of zeros stays one.
    """
    first, third, fifth = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).to(dtype)
    x = x / (x.norm() + 1e-7)  # no singular value is above the Frobenius norm
    for _ in range(steps):
        gram = x @ x.mT
        x = first * x + (third * gram + fifth * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)
