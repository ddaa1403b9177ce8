"""Runs on a CUDA device: what stays in place there, and whole steps as graphs over it.

A step of this network is a hundred short kernels, which Python launches more slowly than the
device carries them out. A CUDA graph launches them at once, but always on the same memory. So
whatever changes from step to step or from run to run (weights, moments, learning rates, order,
augmentation, dropout) lies in tensors that stay where they are: a ``Program``. A further run of
the same kind costs a copy of its first weights, and no capture.

Nothing random is drawn inside a graph. Order and augmentation come from the CPU generators that
``training`` uses, uploaded once an epoch; dropout masks are drawn for a whole epoch by a
generator of the device, seeded by (seed, "dropout", epoch).

Some settings no program carries out (``supports`` says which): such runs are taken step by step.

Everything but the capture itself works on a CPU, too, where it is tested against ``training``.
``lanes`` says who captures and replays, and when.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cifarlib import transforms
from cifarlib.config import SPLITS, AdamConfig, RunConfig, SGDConfig
from cifarlib.models import last_layer
from cifarlib.training import (
    EVALUATION_BATCH,
    Feed,
    ImageSet,
    Inputs,
    Run,
    State,
    autocast,
    build_optimizer,
    derive_seed,
)

if TYPE_CHECKING:
    from cifarlib.gpu.lanes import Lane

# ---------------------------------------------------------------------------------------------
# The optimiser's step, with all that varies in tensors
# ---------------------------------------------------------------------------------------------

MOMENTS = {
    "sgd": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
}
"""What an optimiser keeps for each parameter, by the names of ``torch.optim``."""


def supports(config: RunConfig) -> bool:
    """Whether a program can carry out a run: with SGD, Adam or AdamW, not where some parameters
    alone decay or have another rate, not where weights are averaged or images left out."""
    return (
        config.optimizer.name in MOMENTS
        and config.decayed == "all"
        and config.batch_norm_bias_factor == 1
        and config.average is None
        and not config.progressive_dropping
    )


def step_scalars(rates: Sequence[float], steps_before: int) -> Tensor:
    """What ``update_`` needs for each of n steps: float32 (n, 2), on the CPU.

    ``rates`` are the learning rates, ``steps_before`` how many steps the run has taken already.
    """
    rows = [(rate, steps_before + step) for step, rate in enumerate(rates, start=1)]
    return torch.tensor(rows, dtype=torch.float32)


@torch.no_grad()
def update_(
    config: RunConfig,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Sequence[Sequence[Tensor]],
    scalars: Tensor,
) -> None:
    """One step of SGD, Adam or AdamW in place, by torch's fused kernels.

    ``scalars`` (2,) is a row of ``step_scalars`` on the parameters' device: one graph serves every
    learning rate. ``moments`` are lists in the order of ``MOMENTS``, zeros before the first step.
    """
    rate, step = scalars.unbind()
    parameters = list(parameters)
    gradients = [_laid_out_like(p, g) for p, g in zip(parameters, gradients, strict=True)]
    settings, decay = config.optimizer, config.weight_decay
    if isinstance(settings, SGDConfig):
        torch._fused_sgd_(
            parameters,
            gradients,
            moments[0] if settings.momentum else [],  # the CUDA kernel insists on it
            lr=rate,
            weight_decay=decay,
            momentum=settings.momentum,
            dampening=0.0,
            nesterov=settings.nesterov,
            maximize=False,
            is_first_step=False,
        )
        return
    assert isinstance(settings, AdamConfig)
    fused = torch._fused_adam_ if settings.name == "adam" else torch._fused_adamw_
    fused(
        parameters,
        gradients,
        *moments,
        [],
        [step] * len(parameters),
        lr=rate,
        beta1=settings.beta1,
        beta2=settings.beta2,
        weight_decay=decay,
        eps=settings.epsilon,
        amsgrad=False,
        maximize=False,
    )


def _laid_out_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """A gradient with its parameter's strides: fused kernels go through memory as it lies."""
    strides = zip(parameter.shape, parameter.stride(), gradient.stride(), strict=True)
    if all(size == 1 or ours == theirs for size, ours, theirs in strides):
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


# ---------------------------------------------------------------------------------------------
# What stays in place
# ---------------------------------------------------------------------------------------------


class MaskedDropout(nn.Module):
    """Dropout whose factors, 0 or 1/(1 − p), are put there from outside before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: Tensor | None = None  # float32, of the input's shape

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        assert self.factors is not None
        return (x.float() * self.factors).to(x.dtype)


def kind_of(config: RunConfig) -> str:
    """Equal for runs that one program can carry out: they differ in what lies in tensors only."""
    content = config.model_dump(mode="json")
    for free in ("learning_rate", "schedule", "epochs", "early_stopping", "seed"):
        del content[free]
    del content["evaluation"]
    for first_weights in ("initialization", "last_layer_scale", "branch_scale"):
        del content["model"][first_weights]
    protocol = content.pop("protocol")
    content["augmented_evaluation"] = protocol["augmented_evaluation"]
    content["dropout"] = config.dropout > 0
    return json.dumps(content, sort_keys=True)


Work = tuple[str, int]
"""A piece of a program: ("step", images), or (name of a set, images), which evaluates."""


class Program:
    """A step of training and one of evaluation, over tensors that stay where they are.

    ``start`` copies an epoch's plan there, ``carry_out`` does the next piece of it. Nothing in
    ``carry_out`` waits for the device or depends on anything but the tensors.
    """

    def __init__(self, config: RunConfig, inputs: Inputs, feed: Feed, model: nn.Module):
        self.config, self.inputs, self.feed, self.model = config, inputs, feed, model
        self.dropout = MaskedDropout() if config.dropout else None
        if self.dropout is not None:
            model.dropout = self.dropout
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.moments = [
            [torch.zeros_like(p) for p in self.parameters] for _ in MOMENTS[config.optimizer.name]
        ]
        self.device = device = self.parameters[0].device
        count = len(inputs.train)
        steps = -(-count // config.batch_size)
        self.order = torch.zeros(count, dtype=torch.int64, device=device)
        self.draws = feed.draw(count, "augmentation", 0)
        self.scalars = torch.zeros((steps, 2), device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)  # of the next image
        self.loss = torch.zeros((), device=device)  # sum over the steps taken
        self.offsets = torch.arange(max(config.batch_size, EVALUATION_BATCH), device=device)
        features = last_layer(model).in_features if self.dropout else 0
        self.mask = torch.zeros((count, features), dtype=torch.bool, device=device)
        self.scale = torch.ones((), device=device)
        sets = {name: getattr(inputs, name) for name in SPLITS}
        self.logits = {n: torch.zeros((len(s), 10), device=device) for n, s in sets.items()}
        self.evaluation_draws: dict[str, transforms.Draws] = {}
        if config.protocol.augmented_evaluation:
            self.evaluation_draws = {n: feed.draw(len(s), n, 0) for n, s in sets.items()}
        self.graphs: dict[Work, Any] = {}
        self.carried_out: Counter[Work] = Counter()

    def adopt(self, model: nn.Module) -> None:
        """Take the first weights of another run, and forget the moments."""
        self.model.load_state_dict(model.state_dict())
        for tensors in self.moments:
            torch._foreach_zero_(tensors)

    def start(self, config: RunConfig, feed: Feed, epoch: int, scalars: Tensor) -> None:
        """Put the plan of an epoch of a run in place."""
        order, draws = feed.plan(epoch)
        self.order.copy_(order)
        _copy_draws(draws, self.draws)
        self.scalars.copy_(scalars)
        for counter in (self.step, self.position, self.loss):
            counter.zero_()
        if self.dropout is not None:
            generator = torch.Generator(self.device)
            generator.manual_seed(derive_seed(config.seed, "dropout", epoch))
            self.mask.bernoulli_(1 - config.dropout, generator=generator)
            self.scale.fill_(1 / (1 - config.dropout))

    def start_evaluation(self, feed: Feed, name: str, epoch: int) -> None:
        """Put the plan of the evaluation of a set in place."""
        self.position.zero_()
        if name in self.evaluation_draws:
            draws = feed.draw(len(self.logits[name]), f"evaluation/{name}", epoch)
            _copy_draws(draws, self.evaluation_draws[name])

    def carry_out(self, work: Work) -> None:
        """Train with, or evaluate, the next images."""
        name, size = work
        rows = self.position + self.offsets[:size]
        if name == "step":
            self._train(rows)
        else:
            self._evaluate(name, rows)
        self.position += size

    def _train(self, rows: Tensor) -> None:
        images = self.inputs.train
        where = self.order[rows]
        batch = self.feed.view(images.images[where], self.draws[where])
        if self.dropout is not None:
            self.dropout.factors = self.mask[rows] * self.scale
        with autocast(self.config, self.device):
            smoothing = self.config.label_smoothing
            loss = nn.functional.cross_entropy(
                self.model(batch), images.labels[where], label_smoothing=smoothing
            )
        # Without .grad: its accumulation remembers the stream on which it was first made.
        gradients = torch.autograd.grad(loss, self.parameters)
        scalars = self.scalars.index_select(0, self.step).squeeze(0)
        update_(self.config, self.parameters, gradients, self.moments, scalars)
        self.loss += loss.detach()
        self.step += 1
        if self.dropout is not None:
            self.dropout.factors = None

    @torch.no_grad()
    def _evaluate(self, name: str, rows: Tensor) -> None:
        images: ImageSet = getattr(self.inputs, name)
        draws = self.evaluation_draws.get(name)
        batch = self.feed.view(images.images[rows], draws[rows] if draws else None)
        with autocast(self.config, self.device):
            logits = self.model(batch)
        self.logits[name].index_copy_(0, rows, logits.float())


def _copy_draws(source: transforms.Draws, target: transforms.Draws) -> None:
    for name, numbers in vars(target).items():
        if isinstance(numbers, Tensor):
            numbers.copy_(getattr(source, name))


# ---------------------------------------------------------------------------------------------
# A run over a program
# ---------------------------------------------------------------------------------------------

CHUNK = 64  # pieces of work that a lane hands in before it waits for them


class LaneRun(Run):
    """A run whose steps a lane carries out: like ``Run`` in everything that it says and keeps.

    Its state is that of ``Run``: either goes on from the other's checkpoint.
    """

    def __init__(self, config: RunConfig, inputs: Inputs, device: torch.device, conductor: "Lane"):
        super().__init__(config, inputs, device)
        self.conductor = conductor
        first = self.model
        self.program = conductor.program(
            config, inputs, lambda: Program(config, inputs, self.feed, first)
        )
        if self.program.model is not first:
            self.program.adopt(first)
        self.model = self.program.model
        self.optimizer = build_optimizer(config, self.model)
        self._share_moments()

    # -- the moments, as torch's optimiser keeps them -----------------------------------------

    def _share_moments(self) -> None:
        """Let the optimiser, which never steps, show the program's moments in its state."""
        names = MOMENTS[self.config.optimizer.name]
        for parameter, *tensors in zip(self.program.parameters, *self.program.moments, strict=True):
            shown: dict[str, Tensor] = dict(zip(names, tensors, strict=True))
            if isinstance(self.config.optimizer, AdamConfig):
                shown["step"] = torch.tensor(float(max(0, self.epoch) * self._steps))
            self.optimizer.state[parameter] = shown

    def state(self) -> State:
        self._share_moments()
        return super().state()

    def restore(self, state: State) -> None:
        super().restore(state)
        for name, tensors in zip(
            MOMENTS[self.config.optimizer.name], self.program.moments, strict=True
        ):
            for parameter, tensor in zip(self.program.parameters, tensors, strict=True):
                saved = self.optimizer.state[parameter].get(name)
                tensor.zero_() if saved is None else tensor.copy_(saved)
        self._share_moments()

    # -- training -----------------------------------------------------------------------------

    @property
    def _steps(self) -> int:
        return -(-len(self.inputs.train) // self.config.batch_size)

    def _train_epoch(self, epoch: int, on_batch: Callable[[int], None] | None) -> float:
        before = (epoch - 1) * self._steps
        rates = [self.set_learning_rate(before + s, self._steps) for s in range(self._steps)]
        self.model.train()
        self.program.start(self.config, self.feed, epoch, step_scalars(rates, before))
        self._carry_out("step", len(self.inputs.train), self.config.batch_size, on_batch)
        return self.program.loss.item() / self._steps

    def _logits(self, name: str, epoch: int) -> Tensor:
        self.model.eval()
        self.program.start_evaluation(self.feed, name, epoch)
        logits = self.program.logits[name]
        self._carry_out(name, len(logits), EVALUATION_BATCH)
        return logits.clone()  # the next evaluation overwrites it

    def _carry_out(
        self,
        name: str,
        images: int,
        batch_size: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        """Hand in all batches of a set, waiting every few so that other lanes have their turn."""
        chunk = CHUNK * batch_size
        for first in range(0, images, chunk):
            last = min(first + chunk, images)
            for start in range(first, last, batch_size):
                self.conductor.carry_out(self.program, (name, min(batch_size, last - start)))
            self.conductor.wait()
            if on_batch:
                on_batch(last - first)
