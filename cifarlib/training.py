"""Training: ``fit`` trains one run configuration and returns what came out.

It prints nothing and saves nothing. After each epoch it hands its whole state to ``on_epoch``;
given back, that state continues the run bit for bit, because all randomness derives from
(seed, purpose, epoch).
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifarlib import metrics, resampling, schedules, transforms
from cifarlib.config import SPLITS, Channels, RunConfig, SplitName, images_in_epoch, steps_by_epoch
from cifarlib.convolution import use_matrix_products
from cifarlib.errors import RunError
from cifarlib.models import ResidualNetwork, build_model, last_layer, whiten_stem
from cifarlib.optimizers import build_optimizer, set_rate

EVALUATION_BATCH = 500  # images; decides speed and memory only
WHITENING_IMAGES = 2000  # training images whose patches say what is to be whitened

State = dict[str, Any]
"""What a checkpoint holds: tensors and plain values, loadable with ``weights_only``."""


# ---------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageSet:
    """Images of one set on the device: uint8 (n, 3, 32, 32) and int64 labels (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Inputs:
    """The three sets on the device, and the constants they are normalised with."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    mean: Channels
    std: Channels


# ---------------------------------------------------------------------------------------------
# Randomness
# ---------------------------------------------------------------------------------------------


def derive_seed(seed: int, purpose: str, epoch: int) -> int:
    """A 63-bit seed for one purpose in one epoch of a run."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _generator(config: RunConfig, purpose: str, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(config.seed, purpose, epoch))


# ---------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------


class Feed:
    """Batches of a run's images, transformed and normalised on the device."""

    def __init__(self, config: RunConfig, inputs: Inputs, channels_last: bool):
        self.config = config
        self.inputs = inputs
        self.channels_last = channels_last
        self.resize = config.resize

    def plan(self, epoch: int) -> tuple[Tensor, transforms.Draws]:
        """One epoch's order of the training images, int64 (n,), and the draws of each image."""
        count = len(self.inputs.train)
        if self.config.protocol.shuffle:
            order = torch.randperm(count, generator=_generator(self.config, "order", epoch))
        else:
            order = torch.arange(count)
        draws = self.draw(count, "augmentation", epoch)
        if self.config.augmentation.alternating_flip:
            first = self.draw(count, "augmentation", 1).flip
            draws = replace(draws, flip=first if epoch % 2 else ~first)
        return order.to(self.inputs.train.labels.device), draws

    def training(
        self, epoch: int, losses: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One epoch's batches of images and labels, and which images these are.

        ``losses`` are those of each image when it was seen last, by which images are left out.
        """
        images = self.inputs.train
        order, draws = self.plan(epoch)
        if losses is not None:
            hardest = losses.argsort(descending=True, stable=True)
            kept = torch.zeros_like(losses, dtype=torch.bool)
            kept[hardest[: images_in_epoch(self.config, len(images), epoch)]] = True
            order = order[kept[order]]
        for where in order.split(self.config.batch_size):
            yield self.view(images.images[where], draws[where]), images.labels[where], where

    def evaluation(self, images: ImageSet, purpose: str, epoch: int) -> Iterator[Tensor]:
        """A set's batches in its own order: as they are, or as published, augmented."""
        draws = None
        if self.config.protocol.augmented_evaluation:
            draws = self.draw(len(images), purpose, epoch)
        for start in range(0, len(images), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            yield self.view(images.images[part], draws[part] if draws else None)

    def draw(self, count: int, purpose: str, epoch: int) -> transforms.Draws:
        """The random numbers of a whole set, for one purpose in one epoch."""
        settings = self.config.augmentation.model_dump(exclude={"padding_mode", "alternating_flip"})
        return transforms.draw(
            count,
            **settings,
            margin=self.resize.size - self.resize.crop if self.resize else 0,
            size=self.resize.crop if self.resize else self.inputs.train.images.shape[-1],
            generator=_generator(self.config, purpose, epoch),
        ).to(self.inputs.train.labels.device)

    def view(self, images: Tensor, draws: transforms.Draws | None) -> Tensor:
        """What the network sees of images: augmented by their draws, or as they are."""
        settings = self.config.augmentation
        if draws is not None:
            images = transforms.augment(
                images,
                draws,
                padding=settings.padding,
                padding_mode=settings.padding_mode,
                resize=self.resize,
            )
        elif self.resize is not None:
            images = resampling.resize_and_centre_crop(images, self.resize)
        images = transforms.normalize(
            images, self.inputs.mean, self.inputs.std, channels_last=self.channels_last
        )
        if draws is not None and draws.cut is not None:
            images = transforms.cut_out(images, draws.cut, settings.cutout)
        return images


# ---------------------------------------------------------------------------------------------
# Views of an image that are evaluated together
# ---------------------------------------------------------------------------------------------


def _shift(batch: Tensor, by: int, mirrored: bool) -> Tensor:
    """Images (n, 3, h, w) shifted diagonally by a pixel, their borders reflected."""
    padded = nn.functional.pad(batch, (1, 1, 1, 1), mode="reflect")
    height, width = batch.shape[2:]
    moved = padded[:, :, 1 + by : 1 + by + height, 1 + by : 1 + by + width]
    return moved.flip(3) if mirrored else moved


Views = tuple[tuple[Callable[[Tensor], Tensor], float], ...]
FLIPS: Views = ((lambda batch: batch.flip(3), 1.0),)
CROPS: Views = (
    *FLIPS,
    *((partial(_shift, by=by, mirrored=flip), 0.5) for by in (-1, 1) for flip in (False, True)),
)
"""Beside the image itself its mirror image, and both shifted by a pixel up and left, and down and
right (Jordan, 2024): each view, and what its logits count."""


# ---------------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------------


def first_model(config: RunConfig, inputs: Inputs) -> nn.Module:
    """The network with its first weights, on the CPU; whitened by training images where asked."""
    model = build_model(config.model, config.dropout, config.seed)
    if config.model.whitening is not None:
        assert isinstance(model, ResidualNetwork)
        images = inputs.train.images[:WHITENING_IMAGES].cpu()
        whiten_stem(
            model,
            transforms.normalize(images, inputs.mean, inputs.std),
            frozen=config.model.whitening.frozen,
        )
    return model


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The precision in which a run's network computes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


@torch.no_grad()
def compute_logits(
    model: nn.Module, batches: Iterable[Tensor], config: RunConfig, device: torch.device
) -> Tensor:
    """A network's logits (n, 10) of batches of images, in eval mode and a run's precision."""
    model.eval()
    with autocast(config, device):
        return torch.cat([model(batch) for batch in batches]).float()


def prepare_model(
    model: nn.Module, config: RunConfig, device: torch.device
) -> tuple[nn.Module, bool]:
    """A run's network on its device, as it is fastest there, and whether channels come last."""
    channels_last = config.precision == "bf16" or device.type == "cuda"
    model = model.to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.precision == "bf16":
        use_matrix_products(model)
    return model, channels_last


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` → a device; raises ``RunError`` for CUDA without one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise RunError("device cuda was asked for, but torch finds none here; use --device cpu")
    if name not in ("auto", "cpu", "cuda"):
        raise RunError(f"there is no device {name!r}; use auto, cpu or cuda")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@dataclass(frozen=True)
class SetHistory:
    """One value an epoch, from epoch 0 (before training); None where it was not evaluated."""

    images: int
    loss: tuple[float | None, ...]  # None, too, where it was not a finite number
    top1: tuple[int | None, ...]  # correct images
    top2: tuple[int | None, ...]
    top3: tuple[int | None, ...]


@dataclass(frozen=True)
class History:
    """The course of a run, epoch by epoch."""

    learning_rate: tuple[float | None, ...]  # at the epoch's last step; None at epoch 0
    training_loss: tuple[float | None, ...]  # mean over the epoch's steps, in training mode
    train: SetHistory
    validation: SetHistory
    test: SetHistory


@dataclass(frozen=True)
class Predictions:
    """What the reported weights make of the images."""

    epoch: int  # of the weights: the chosen epoch, or the last (protocol.checkpoint)
    confusion: dict[SplitName, tuple[tuple[int, ...], ...]]  # 10 × 10; rows are true
    classes: list[int]  # of each test image
    confidence: list[float]  # probability of that class
    last_layer: list[list[float]]  # weights, 10 × features


@dataclass(frozen=True)
class Result:
    """What the configuration decides."""

    history: History
    chosen: dict[str, int]  # epoch, by selection rule: validation, test, last
    predictions: Predictions
    flip_averaged: dict[str, int] | None  # correct images by set, each averaged with its mirror
    crop_averaged: dict[str, int] | None  # ... and with both, shifted by a pixel
    diverged: bool  # did the last epoch's training or validation loss cease to be finite?


@dataclass(frozen=True)
class Timing:
    """What a run cost, in seconds of the clock and of the processor."""

    train_s: float
    evaluation_s: float
    images_per_s: float  # in training
    cpu_s: float | None  # of all threads; None on a GPU, where runs share a process


@dataclass(frozen=True)
class Fitted:
    """What a run gave and what it cost."""

    result: Result
    timing: Timing
    resumed: int
    weights: dict[str, Tensor]  # that the predictions come from: a state_dict, on the device


def fit(
    config: RunConfig,
    inputs: Inputs,
    device: torch.device,
    *,
    state: State | None = None,
    on_epoch: Callable[[State], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
    begin: "Callable[[RunConfig, Inputs, torch.device], Run] | None" = None,
) -> Fitted:
    """Train one configuration from its first weights, or on from a ``state``.

    ``on_epoch`` gets the state after each epoch but the last, ``on_batch`` the number of images
    after each training step; an exception raised there ends the run. Epoch 0 is the evaluation
    before training. ``begin`` makes the run's moving parts, a ``Run`` unless it is given (for
    CUDA: a ``cuda.LaneRun``). Training stops early once validation top-1 has not improved for
    *more than* ``early_stopping`` epochs (Listing 2), and after an epoch whose training loss is
    not finite: nothing that follows could be.
    """
    run = (begin or Run)(config, inputs, device)
    if state is None:
        run.measure(epoch=0)
    else:
        run.restore(state)
    while not run.finished:
        epoch = run.epoch + 1
        loss = run.train_epoch(epoch, on_batch)
        run.measure(epoch, loss)
        if on_epoch and not run.finished:
            on_epoch(run.state())
    return run.conclude()


class Run:
    """The moving parts of ``fit``: network, optimiser, history and the best weights so far."""

    def __init__(self, config: RunConfig, inputs: Inputs, device: torch.device):
        self.config, self.inputs, self.device = config, inputs, device
        self.model, channels_last = prepare_model(first_model(config, inputs), config, device)
        self.feed = Feed(config, inputs, channels_last)
        self.optimizer = build_optimizer(config, self.model)
        self.average: AveragedModel | None = None  # until its first update, the first weights
        if config.average is not None:
            average = get_ema_multi_avg_fn(config.average.decay)
            self.average = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.losses: Tensor | None = None  # of each training image, when it was seen last
        if config.progressive_dropping:
            self.losses = torch.full((len(inputs.train),), torch.inf, device=device)
        self.history: dict[str, Any] = {
            "learning_rate": [],
            "training_loss": [],
            **{name: {"loss": [], "top1": [], "top2": [], "top3": []} for name in SPLITS},
        }
        self.best: dict[str, dict[str, Any]] = {}  # by split: epoch, top1, weights
        self.seconds = {"train": 0.0, "evaluation": 0.0, "processor": 0.0}
        self.resumed = 0

    # -- where it stands ----------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The last epoch trained."""
        return len(self.history["learning_rate"]) - 1

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated: the average of the trained one's weights, if there is."""
        return self.model if self.average is None else self.average.module

    @property
    def finished(self) -> bool:
        patience = self.config.early_stopping
        best = self.best.get("validation", {}).get("epoch", self.epoch)
        return (
            self.epoch >= self.config.epochs
            or self._is_lost(self.epoch)
            or (patience is not None and self.epoch - best > patience)
        )

    def _is_lost(self, epoch: int) -> bool:
        """Whether an epoch's training loss was not finite: then no weight is, from there on."""
        return epoch > 0 and self.history["training_loss"][epoch] is None

    def state(self) -> State:
        """Everything that the next epoch depends on."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "resumed": self.resumed,
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if self.losses is not None:
            state["losses"] = self.losses
        return state

    def restore(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.losses is not None:
            self.losses.copy_(state["losses"])
        self.history, self.best = state["history"], state["best"]
        self.seconds, self.resumed = state["seconds"], state["resumed"] + 1

    # -- training -----------------------------------------------------------------------------

    def train_epoch(self, epoch: int, on_batch: Callable[[int], None] | None) -> float:
        """Train one epoch; the mean loss over its steps."""
        with self.timed("train"):
            return self._train_epoch(epoch, on_batch)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count what is done inside as time of training or of evaluation, and of the processor."""
        started, processor = time.perf_counter(), time.process_time()
        yield
        self.seconds[what] += time.perf_counter() - started
        self.seconds["processor"] += time.process_time() - processor

    def _train_epoch(self, epoch: int, on_batch: Callable[[int], None] | None) -> float:
        torch.manual_seed(derive_seed(self.config.seed, "dropout", epoch))
        self.model.train()
        images = len(self.inputs.train)
        steps = -(-images // self.config.batch_size)  # of an epoch with all images
        every = steps_by_epoch(self.config, images)
        before, taken = sum(every[: epoch - 1]), every[epoch - 1]
        total = torch.zeros((), device=self.device)
        for step, (batch, labels, where) in enumerate(self.feed.training(epoch, self.losses)):
            place = (epoch - 1) * steps + step * steps // taken  # where all images would be
            self.set_learning_rate(place, steps)
            with autocast(self.config, self.device):
                logits = self.model(batch)
                smoothing = self.config.label_smoothing
                loss = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if self.losses is not None:
                each = nn.functional.cross_entropy(logits.detach(), labels, reduction="none")
                self.losses[where] = each
            self._update_average(before + step + 1, sum(every))
            total += loss.detach()
            if on_batch:
                on_batch(len(labels))
        return total.item() / taken

    def _update_average(self, done: int, steps: int) -> None:
        """After ``done`` of a run's ``steps``: average the weights, where that is due, and at the
        end."""
        if self.average is None or self.config.average is None:
            return
        if done % self.config.average.every and done < steps:
            return
        if not self.config.average.lookahead:
            self.average.update_parameters(self.model)
            return
        keep = self.config.average.decay * (done / steps) ** 3
        averages = self.average.module.state_dict().values()
        for average, value in zip(averages, self.model.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - keep)
                value.copy_(average)

    def set_learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Set the rate of a step of the whole run, counted from 0, and give it."""
        validation = self.history["validation"]["top1"][1:]
        rate = schedules.learning_rate_at(
            self.config.schedule,
            self.config.learning_rate,
            step,
            self.config.epochs * steps_per_epoch,
            [100 * correct / len(self.inputs.validation) for correct in validation],
        )
        set_rate(self.optimizer, rate)
        return rate

    # -- measuring ----------------------------------------------------------------------------

    def measure(self, epoch: int, loss: float | None = None) -> None:
        """Evaluate what is due after an epoch, append it, and keep the weights if they are best."""
        evaluation = self.config.evaluation
        due = {"train": evaluation.train_every, "validation": 1, "test": evaluation.test_every}
        rate = self.optimizer.param_groups[0]["lr"] if epoch else None
        self.history["learning_rate"].append(rate)
        self.history["training_loss"].append(_finite(loss))
        last = epoch == self.config.epochs or self._is_lost(epoch)
        for name, every in due.items():
            for column in self.history[name].values():
                column.append(None)
            if every and (epoch % every == 0 or last):
                self._evaluate(name, epoch)
        weights = None  # one copy for both rules
        for name in ("validation", "test"):
            top1, finite = (self.history[name][column][epoch] for column in ("top1", "loss"))
            sound = epoch and top1 is not None and finite is not None
            if sound and top1 > self.best.get(name, {"top1": -1})["top1"]:
                weights = weights or _copy_weights(self.evaluated)
                self.best[name] = {"epoch": epoch, "top1": top1, "weights": weights}

    def _evaluate(self, name: str, epoch: int) -> Tensor:
        """Evaluate one set in eval mode, enter it into the history; its logits (n, 10)."""
        with self.timed("evaluation"):
            images: ImageSet = getattr(self.inputs, name)
            logits = self._logits(name, epoch)
            row = self.history[name]
            loss = metrics.mean_loss(
                logits, images.labels, self.config.protocol, self.config.batch_size
            )
            row["loss"][epoch] = _finite(loss)
            top = metrics.top_k_correct(logits, images.labels)
            row["top1"][epoch], row["top2"][epoch], row["top3"][epoch] = top
            return logits

    def _logits(self, name: str, epoch: int) -> Tensor:
        images: ImageSet = getattr(self.inputs, name)
        return self._forward(self.feed.evaluation(images, f"evaluation/{name}", epoch))

    def _forward(self, batches: Iterable[Tensor]) -> Tensor:
        """The evaluated network's logits (n, 10) of batches of images."""
        return compute_logits(self.evaluated, batches, self.config, self.device)

    def _average_views(self, logits: dict[str, Tensor], epoch: int, views: Views) -> dict[str, int]:
        """Correct images by the sum of each image's logits and those of its weighted ``views``."""
        correct = {}
        with self.timed("evaluation"), torch.no_grad():
            for name in ("validation", "test"):
                images: ImageSet = getattr(self.inputs, name)
                total = logits[name]
                for view, weight in views:
                    batches = self.feed.evaluation(images, f"evaluation/{name}", epoch)
                    total = total + weight * self._forward(map(view, batches))
                correct[name] = metrics.top_k_correct(total, images.labels)[0]
        return correct

    # -- the end ------------------------------------------------------------------------------

    def conclude(self) -> Fitted:
        """Evaluate what is still missing at the chosen epochs, and say what came out."""
        for rule in ("validation", self.config.protocol.selection):
            if rule not in self.best:  # no epoch had a finite loss: the last stands for them
                self.best[rule] = {"epoch": self.epoch, "weights": _copy_weights(self.evaluated)}
        chosen = {"last": self.epoch} | {name: best["epoch"] for name, best in self.best.items()}
        weights = {best["epoch"]: best["weights"] for best in self.best.values()}
        shown = chosen[self.config.protocol.selection]
        if self.config.protocol.checkpoint == "last":
            shown = self.epoch
            weights[shown] = _copy_weights(self.evaluated)
        logits: dict[str, Tensor] = {}
        for epoch in sorted(weights, key=lambda epoch: epoch == shown):  # the shown one at the end
            self.evaluated.load_state_dict(weights[epoch])
            for name in SPLITS:
                if epoch == shown or self.history[name]["top1"][epoch] is None:
                    logits[name] = self._evaluate(name, epoch)
        sets = {name: getattr(self.inputs, name) for name in SPLITS}
        evaluation = self.config.evaluation
        classes, confidence = metrics.predictions(logits["test"])
        result = Result(
            history=History(
                learning_rate=tuple(self.history["learning_rate"]),
                training_loss=tuple(self.history["training_loss"]),
                **{
                    name: SetHistory(
                        images=len(sets[name]),
                        **{column: tuple(values) for column, values in self.history[name].items()},
                    )
                    for name in SPLITS
                },
            ),
            chosen=chosen,
            predictions=Predictions(
                shown,
                {n: metrics.confusion_matrix(logits[n], sets[n].labels) for n in SPLITS},
                classes,
                confidence,
                last_layer(self.evaluated).weight.detach().float().tolist(),
            ),
            diverged=None
            in (self.history["training_loss"][-1], self.history["validation"]["loss"][-1]),
            flip_averaged=(
                self._average_views(logits, shown, FLIPS) if evaluation.flip_averaged else None
            ),
            crop_averaged=(
                self._average_views(logits, shown, CROPS) if evaluation.crop_averaged else None
            ),
        )
        epochs, images = range(1, self.epoch + 1), len(self.inputs.train)
        trained = sum(images_in_epoch(self.config, images, epoch) for epoch in epochs)
        alone = self.device.type == "cpu"  # on a card, several runs share a process
        timing = Timing(
            train_s=round(self.seconds["train"], 3),
            evaluation_s=round(self.seconds["evaluation"], 3),
            images_per_s=round(trained / self.seconds["train"], 1),
            cpu_s=round(self.seconds["processor"], 3) if alone else None,
        )
        return Fitted(result, timing, self.resumed, weights[shown])


def _copy_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _finite(value: float | None) -> float | None:
    """A loss to 7 significant digits; None where it is not a finite number."""
    return None if value is None or not abs(value) < float("inf") else float(f"{value:.7g}")
