"""A run as a plain PyTorch loop in float64, written apart from the package's training.

It takes the package's configuration and input images, and nothing else of it: PyTorch's layers
and optimisers, torchvision and Pillow for one image at a time, formulas written out.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision
import torchvision.transforms.functional as vision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

SPLITS = ("train", "validation", "test")
Rounding = Callable[[Tensor], Tensor]


@dataclass
class Outcome:
    """What a run gave, epoch by epoch from epoch 0 on."""

    learning_rate: list[float | None]
    training_loss: list[float | None]
    loss: dict[str, list[float]]  # by split; of the training set only where some epoch wants it
    correct: dict[str, list[tuple[int, ...]]]  # by split: top-1, top-2, top-3
    mirrored: list[dict[str, int]]  # correct when images and mirror images are averaged
    chosen: dict[str, int]  # epoch by split that chooses
    shown: int  # epoch of the reported weights
    idle: list[bool]  # whether a tensor is a bias before a batch norm: no gradient but rounding's
    first: list[Tensor]  # weights and batch statistics before training ...
    weights: list[list[Tensor]]  # ... and those evaluated, in the order in which layers are made


def run(config: Any, inputs: Any, pretrained: dict[str, Any]) -> Outcome:
    """Train and evaluate; ``pretrained`` are the state dicts of ImageNet's networks."""
    rounding = round_to_bf16 if config.precision == "bf16" else keep
    model = build(config, inputs, pretrained)
    round_layers(model, rounding)
    step = Step(config, model, rounding)
    first, idle = state(model), find_idle(model)
    average = None
    out = Outcome(
        [], [], {n: [] for n in SPLITS}, {n: [] for n in SPLITS}, [], {}, 0, idle, first, []
    )
    best = {"validation": -1, "test": -1}
    taken = done = 0
    steps = math.ceil(len(inputs.train) / config.batch_size)
    every = range(1, config.epochs + 1)
    all_steps = sum(math.ceil(left(config, inputs, e) / config.batch_size) for e in every)
    hardness = [math.inf] * len(inputs.train)  # loss of each image when it was seen last
    for epoch in range(config.epochs + 1):
        losses, rate = [], None
        torch.manual_seed(seed_of(config, "dropout", epoch))
        model.train()
        seen = batches(config, inputs, epoch, hardness)
        parts = list(seen) if epoch else []
        for number, (images, labels, chosen) in enumerate(parts):
            taken = (epoch - 1) * steps + math.floor(number * steps / len(parts))
            counts = [correct[0] for correct in out.correct["validation"][1:]]
            accuracy = [100 * count / len(inputs.validation) for count in counts]
            rate = rate_at(config, taken, config.epochs * steps, accuracy)
            each = step(images, labels, rate)
            losses.append(step.loss)
            for k, loss in zip(chosen, each, strict=True):
                hardness[k] = loss
            done += 1
            due = config.average and (done % config.average.every == 0 or done == all_steps)
            if config.average and config.average.lookahead:
                if due:
                    kept = config.average.decay * (done / all_steps) ** 3
                    both = zip(average or first, state(model), strict=True)
                    average = [kept * old + (1 - kept) * new for old, new in both]
                    load(model, average)
            elif due:
                decay = 0.0 if average is None else config.average.decay
                average = [
                    decay * old + (1 - decay) * new
                    for old, new in zip(average or first, state(model), strict=True)
                ]
        out.learning_rate.append(rate)
        out.training_loss.append(float(np.mean(losses)) if epoch else None)
        trained = state(model)
        out.weights.append(trained if not config.average else average or first)
        load(model, out.weights[-1])
        out.mirrored.append({})
        for name in SPLITS if config.evaluation.train_every else SPLITS[1:]:
            logits, out.mirrored[-1][name] = evaluate(config, inputs, model, name, epoch)
            labels = getattr(inputs, name).labels
            out.loss[name].append(evaluation_loss(config, logits, labels))
            out.correct[name].append(count_correct(logits, labels))
            if epoch and out.correct[name][-1][0] > best.get(name, math.inf):
                best[name], out.chosen[name] = out.correct[name][-1][0], epoch
        if config.early_stopping and epoch - out.chosen.get("validation", epoch) > (
            config.early_stopping
        ):
            break
        load(model, trained)
    out.shown = out.chosen[config.protocol.selection]
    if config.protocol.checkpoint == "last":
        out.shown = epoch
    return out


def state(model: nn.Module) -> list[Tensor]:
    return [v.clone() for v in model.state_dict().values() if v.is_floating_point()]


def find_idle(model: nn.Module) -> list[bool]:
    layers = dict(model.named_modules())
    names = [n for n, v in model.state_dict().items() if v.is_floating_point()]
    parts = [name.rpartition(".") for name in names]
    return [key == "bias" and isinstance(layers[layer], nn.Conv2d) for layer, _, key in parts]


@torch.no_grad()
def load(model: nn.Module, values: list[Tensor]) -> None:
    places = [v for v in model.state_dict().values() if v.is_floating_point()]
    for place, value in zip(places, values, strict=True):
        place.copy_(value)


# ---------------------------------------------------------------------------------------------
# Random numbers and images
# ---------------------------------------------------------------------------------------------


def seed_of(config: Any, purpose: str, epoch: int) -> int:
    digest = hashlib.sha256(f"{config.seed}/{purpose}/{epoch}".encode()).hexdigest()
    return int(digest[:16], 16) // 2


def draw(config: Any, count: int, purpose: str, epoch: int) -> list[dict[str, Any]]:
    """What happens at random to each image of a set."""
    settings, resize = config.augmentation, config.resize
    generator = torch.Generator().manual_seed(seed_of(config, purpose, epoch))
    margin = resize.size - resize.crop if resize else 0
    rotated = torch.rand(count, generator=generator) < settings.rotation_probability
    angles = (2 * torch.rand(count, generator=generator) - 1) * settings.rotation_degrees
    corners = torch.randint(2 * settings.padding + margin + 1, (2, count), generator=generator)
    flipped = torch.rand(count, generator=generator) < settings.flip_probability
    size = resize.crop if resize else 32
    holes = torch.zeros(count, 2)
    if settings.cutout:
        holes = torch.randint(size, (count, 2), generator=generator)
    return [
        {
            "angle": angles[k].item() if rotated[k] else 0.0,
            "corner": corners[:, k].tolist(),
            "flip": bool(flipped[k]),
            "hole": holes[k].tolist(),
        }
        for k in range(count)
    ]


def batches(
    config: Any, inputs: Any, epoch: int, hardness: list[float] | None = None
) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """Images, labels and places of each batch, without the images of least ``hardness``."""
    count = len(inputs.train)
    order = list(range(count))
    if config.protocol.shuffle:
        generator = torch.Generator().manual_seed(seed_of(config, "order", epoch))
        order = torch.randperm(count, generator=generator).tolist()
    draws = draw(config, count, "augmentation", epoch)
    if config.augmentation.alternating_flip:
        for one, at_first in zip(draws, draw(config, count, "augmentation", 1), strict=True):
            one["flip"] = at_first["flip"] == (epoch % 2 == 1)
    if config.progressive_dropping:
        hardest = sorted(range(count), key=lambda k: -hardness[k])[: left(config, inputs, epoch)]
        order = [k for k in order if k in hardest]
    for start in range(0, len(order), config.batch_size):
        chosen = order[start : start + config.batch_size]
        images = [see(config, inputs, inputs.train.images[k], draws[k]) for k in chosen]
        yield torch.stack(images), inputs.train.labels[chosen], chosen


def left(config: Any, inputs: Any, epoch: int) -> int:
    """How many images an epoch sees."""
    share = config.progressive_dropping * (epoch - 1) / max(1, config.epochs - 1)
    return max(1, round(len(inputs.train) * (1 - share)))


def see(config: Any, inputs: Any, image: Tensor, drawn: dict[str, Any] | None) -> Tensor:
    """An image (3, 32, 32) as the network sees it; ``drawn`` is None where nothing is random."""
    settings, size = config.augmentation, 32
    if drawn and drawn["angle"]:
        image = vision.rotate(image, drawn["angle"])
    if config.resize:
        size = config.resize.crop
        method = Image.Resampling[config.resize.method.upper()]
        pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
        pixels = pixels.resize((config.resize.size, config.resize.size), method)
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    if drawn:
        mode = "reflect" if settings.padding_mode == "reflect" else "constant"
        image = functional.pad(image.float()[None], (settings.padding,) * 4, mode)[0]
        image = vision.crop(image, *drawn["corner"], size, size)
        image = vision.hflip(image) if drawn["flip"] else image
    else:
        image = vision.center_crop(image, size)
    mean, std = (torch.tensor(c, dtype=torch.float64)[:, None, None] for c in constants(inputs))
    seen = (image.double() / 255 - mean) / std
    if drawn and settings.cutout:
        for row in range(size):
            for column in range(size):
                first = [centre - settings.cutout // 2 for centre in drawn["hole"]]
                if 0 <= row - first[0] < settings.cutout > column - first[1] >= 0:
                    seen[:, row, column] = 0
    return seen


def constants(inputs: Any) -> tuple[Any, Any]:
    return inputs.mean, inputs.std


# ---------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------


def conv_block(inputs: int, outputs: int, stride: int = 1, padding: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first, self.second = conv_block(inputs, outputs), conv_block(outputs, outputs, 2)
        conv = nn.Conv2d(inputs, outputs, 1, 2)
        self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(x)) + self.shortcut(x))


def residual_network(dropout: float) -> nn.Sequential:
    return nn.Sequential(
        conv_block(3, 64, stride=2, padding=2),
        conv_block(64, 64),
        Stage(64, 128),
        Stage(128, 256),
        Stage(256, 512),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(512, 10),
    )


@torch.no_grad()
def build(config: Any, inputs: Any, pretrained: dict[str, Any]) -> nn.Module:
    """The network in float64 with its first weights, which are drawn in fp32."""
    settings = config.model
    torch.manual_seed(config.seed)
    if settings.name == "residual":
        model: nn.Module = residual_network(config.dropout)
    else:
        model = getattr(torchvision.models, settings.name)()
        if settings.initialization == "imagenet":
            model.load_state_dict(pretrained[settings.name])
        last = "fc" if settings.name == "resnet18" else "classifier"
        setattr(model, last, nn.Linear(getattr(model, last).in_features, 10))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and settings.initialization == "kaiming":
            fan_out = layer.weight.shape[0] * math.prod(layer.weight.shape[2:])
            layer.weight.normal_(0, math.sqrt(2 / fan_out))
            if layer.bias is not None:
                layer.bias.zero_()
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = settings.batch_norm_momentum
    model.double()
    if settings.name == "residual":
        model[-1].weight *= settings.last_layer_scale
        for stage in (2, 3, 4):
            model[stage].second[1].weight *= settings.branch_scale
        if settings.partial_identity:
            for conv in [m for m in model.modules() if isinstance(m, nn.Conv2d)][1:]:
                if conv.kernel_size == (3, 3):
                    for k in range(conv.in_channels):
                        conv.weight[k] = 0
                        conv.weight[k, k, 1, 1] = 1
    if settings.whitening:
        images = [see(config, inputs, image, None) for image in inputs.train.images]
        whiten(model[0][0], torch.stack(images), settings.whitening.frozen)
    return model


def whiten(conv: nn.Conv2d, images: Tensor, frozen: bool) -> None:
    """Principal directions of the 3×3 patches, of both signs, scaled to unit variance."""
    patches = [
        image[:, row : row + 3, column : column + 3].flatten()
        for image in images
        for row in range(0, 30, 3)
        for column in range(0, 30, 3)
    ]
    variances, directions = np.linalg.eigh(np.cov(torch.stack(patches).numpy(), rowvar=False))
    for place, k in enumerate(np.argsort(-variances)):
        direction = directions[:, k] / math.sqrt(variances[k] + 5e-4)
        direction *= np.sign(direction[np.abs(direction).argmax()])
        for sign, filters in ((1, 0), (-1, 27)):
            conv.weight[filters + place] = torch.from_numpy(sign * direction).view(3, 3, 3)
    conv.weight.requires_grad_(not frozen)


# ---------------------------------------------------------------------------------------------
# Precision
# ---------------------------------------------------------------------------------------------


def keep(x: Tensor) -> Tensor:
    return x


def round_to_bf16(x: Tensor) -> Tensor:
    """To 8 significant bits, and the gradient as well."""
    return x.bfloat16().double()


def round_layers(model: nn.Module, rounding: Rounding) -> None:
    """Let convolutions, batch norms and pooling round what goes in and what comes out.

    Sums and batch statistics stay exact, and so does the last layer.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.forward = Convolution(layer, rounding)
        elif isinstance(layer, nn.BatchNorm2d | nn.AdaptiveAvgPool2d):
            layer.register_forward_hook(Rounded(rounding))


@dataclass
class Convolution:
    layer: nn.Conv2d
    rounding: Rounding

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        filters = self.rounding(layer.weight).flatten(1)
        window = layer.kernel_size, layer.dilation, layer.padding, layer.stride
        patches = functional.unfold(self.rounding(x), *window).transpose(1, 2)
        out = patches.flatten(0, 1) @ filters.T  # one product: torch is slow in float64
        if layer.bias is not None:
            out = out + self.rounding(layer.bias)
        out = out.view(len(x), patches.shape[1], -1).transpose(1, 2)
        side = math.isqrt(patches.shape[1])
        return self.rounding(out.reshape(len(x), -1, side, side))


@dataclass
class Rounded:
    rounding: Rounding

    def __call__(self, layer: nn.Module, _: Any, out: Tensor) -> Tensor:
        return self.rounding(out)


# ---------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------


class Step:
    """One step of training on a batch; gives the loss of each image, without smoothing."""

    def __init__(self, config: Any, model: nn.Module, rounding: Rounding):
        self.config, self.model, self.rounding = config, model, rounding
        trained = [p for p in model.parameters() if p.requires_grad]
        self.muon = config.optimizer if config.optimizer.name == "muon" else None
        self.filters = [p for p in trained if self.muon and p.ndim == 4]
        self.momenta = [torch.zeros_like(p) for p in self.filters]
        norms = [m.bias for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        factor = config.batch_norm_bias_factor
        groups = []
        for p in trained:
            if not (self.muon and p.ndim == 4):
                decay = config.weight_decay if config.decayed == "all" or p.ndim > 1 else 0.0
                times = factor if any(p is bias for bias in norms) else 1
                groups.append({"params": [p], "weight_decay": decay / times, "times": times})
        self.plain = plain_optimizer(self.muon.rest if self.muon else config.optimizer, groups)

    def __call__(self, images: Tensor, labels: Tensor, rate: float) -> list[float]:
        logs = self.model(images).log_softmax(1)
        smoothing = self.config.label_smoothing
        targets = functional.one_hot(labels, 10) * (1 - smoothing) + smoothing / 10
        loss = -(targets * logs).sum(1).mean()
        self.model.zero_grad()
        loss.backward()
        for group in self.plain.param_groups:
            group["lr"] = rate * (self.muon.rest_factor if self.muon else 1) * group["times"]
        self.plain.step()
        with torch.no_grad():
            for filters, momentum in zip(self.filters, self.momenta, strict=True):
                self.turn(filters, momentum, rate)
        self.loss = loss.item()
        return functional.nll_loss(logs, labels, reduction="none").tolist()

    def turn(self, filters: Tensor, momentum: Tensor, rate: float) -> None:
        """A step of Muon."""
        momentum.mul_(self.muon.momentum).add_(filters.grad)
        wanted = momentum
        if self.muon.nesterov:
            wanted = filters.grad + self.muon.momentum * momentum
        rows, columns = wanted.flatten(1).shape
        x = wanted.flatten(1)
        x = self.rounding(x.T if rows > columns else x)
        x = self.rounding(x / x.norm())
        for _ in range(self.muon.steps):
            square = self.rounding(x @ x.T)
            x = self.rounding(3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x)
        direction = (x.T if rows > columns else x).reshape(filters.shape)
        if self.muon.normalized:
            filters.mul_(math.sqrt(rows) / filters.norm())
        filters.mul_(1 - rate * self.config.weight_decay)
        filters.sub_(rate * math.sqrt(max(1, rows / columns)) * direction)


def plain_optimizer(settings: Any, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if settings.name == "sgd":
        return torch.optim.SGD(
            groups, lr=0.0, momentum=settings.momentum, nesterov=settings.nesterov
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    return kind(groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)


def rate_at(config: Any, step: int, steps: int, accuracy: list[float]) -> float:
    """The learning rate of a step, counted from 0; ``accuracy`` is validation's, by epoch."""
    schedule, rate = config.schedule, config.learning_rate
    match schedule.name:
        case "constant":
            return rate
        case "validation_step":
            return schedule.learning_rate if max([0, *accuracy]) > schedule.threshold else rate
        case "plateau":
            settings = schedule.model_dump(exclude={"name"})
            optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
            replay = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", **settings)
            for value in accuracy:
                replay.step(value)
            return optimizer.param_groups[0]["lr"]
        case "multi_step":
            return rate * schedule.factor ** sum(
                step >= round(share * steps) for share in schedule.milestones
            )
        case "cosine":
            rising = round(schedule.warmup * steps)
            if step < rising:
                return rate * (step + 1) / rising
            share = 0.5 + 0.5 * math.cos(math.pi * (step - rising) / (steps - rising))
            return rate * (schedule.final + (1 - schedule.final) * share)
        case "triangular":
            corners = [0, schedule.peak * steps, steps]
            return rate * float(np.interp(step, corners, [schedule.start, 1, schedule.final]))
    raise ValueError(f"the reference has no schedule {schedule.name}")


# ---------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(
    config: Any, inputs: Any, model: nn.Module, name: str, epoch: int
) -> tuple[Tensor, int]:
    """Logits (n, 10) of a set, and how many images are correct with those of their other views."""
    model.eval()
    images = see_all(config, inputs, name, epoch)
    logits = model(images)
    views = [images, images.flip(3)]
    if config.evaluation.crop_averaged:
        for shift in (0, 2):
            moved = functional.pad(images, (1,) * 4, "reflect")
            moved = moved[:, :, shift : shift + images.shape[2], shift : shift + images.shape[3]]
            views += [moved, moved.flip(3)]
    elif not config.evaluation.flip_averaged:
        return logits, 0
    labels = getattr(inputs, name).labels
    weights = [0.25, 0.25] + [0.125] * (len(views) - 2)  # half for the images as they are
    both = sum(weight * model(view) for weight, view in zip(weights, views, strict=True))
    return logits, count_correct(both, labels)[0]


def see_all(config: Any, inputs: Any, name: str, epoch: int) -> Tensor:
    """A set's images as they are evaluated."""
    images = getattr(inputs, name).images
    draws: list[Any] = [None] * len(images)
    if config.protocol.augmented_evaluation:
        draws = draw(config, len(images), f"evaluation/{name}", epoch)
    return torch.stack([see(config, inputs, *pair) for pair in zip(images, draws, strict=True)])


def evaluation_loss(config: Any, logits: Tensor, labels: Tensor) -> float:
    losses = functional.cross_entropy(logits, labels, reduction="none")
    if config.protocol.loss == "per_sample":
        return losses.mean().item()
    return sum(part.mean().item() for part in losses.split(config.batch_size)) / len(labels)


def count_correct(logits: Tensor, labels: Tensor) -> tuple[int, ...]:
    hits = logits.topk(3).indices == labels[:, None]
    return tuple(int(hits[:, : k + 1].any(1).sum()) for k in range(3))
