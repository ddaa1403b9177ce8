"""Training against a plain PyTorch loop in float64, for every feature that a run can have.

Both sides run in the same process, so that the check holds on any processor. What no reference
can show, the random numbers themselves, is recorded here.
"""

import hashlib
import statistics
import types
import typing
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
import reference
import torch
import torchvision
import trainings
from torch import Tensor

from cifarlib import checking, training
from cifarlib.config import RunConfig
from cifarlib.models import build_model
from cifarlib.study import STUDIES, expand, load_scale, load_study

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")

# Largest relative errors of a loss, of any weight tensor's change, and of the median tensor's. An
# operation rounds to 2⁻²⁴ in fp32 and to 2⁻⁹ in bf16, some hundred stand between an image and the
# first layer's gradient, and errors grow by leaps where a ReLU turns. Most tensors agree to 1e-5
# and to 0.1; to leave a feature out changes some by more than a half, or losses by more than 1 %.
LIMITS = {"fp32": (1e-3, 0.1, 1e-3), "bf16": (0.05, 0.6, 0.2)}
SMALL_LOSS = 1e-3  # a loss near 0 is a difference of near numbers; chance is at 2.3


# ---------------------------------------------------------------------------------------------
# What is compared
# ---------------------------------------------------------------------------------------------

CORRECTED = {
    "shuffle": True,
    "augmented_evaluation": False,
    "normalization": "computed",
    "loss": "per_sample",
    "checkpoint": "last",
    "selection": "validation",
}
PUBLISHED = {
    "shuffle": False,
    "augmented_evaluation": True,
    "normalization": "published",
    "loss": "batch_means",
    "checkpoint": "last",
    "selection": "test",
}
RESIDUAL = {"name": "residual", "initialization": "kaiming"}
SGD = {"name": "sgd", "momentum": 0.9}
NESTEROV = {"name": "sgd", "momentum": 0.8, "nesterov": True}
# With an epsilon of 1e-8, weights whose gradient is 0 but for rounding move by whole steps.
ADAM = {"name": "adam", "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}
ADAMW = ADAM | {"name": "adamw"}
MUON = trainings.MUON | {"rest": NESTEROV}
PLAIN_MUON = {"name": "muon", "momentum": 0.9, "nesterov": False, "steps": 2, "rest": ADAMW}
DAA1 = {"padding": 4, "flip_probability": 0.5}
DAA2 = DAA1 | {"rotation_degrees": 15.0, "rotation_probability": 0.5}
METHODS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")

PLAIN = {
    "data": {"name": "synthetic", "train_size": 10, "validation_size": 10, "test_size": 10},
    "resize": None,
    "augmentation": {},
    "model": RESIDUAL,
    "dropout": 0.0,
    "optimizer": SGD,
    "learning_rate": 0.001,
    "weight_decay": 0.0,
    "schedule": {"name": "constant"},
    "batch_size": 4,
    "epochs": 1,
    "early_stopping": None,
    "protocol": CORRECTED,
    "evaluation": {"train_every": 0, "test_every": 1},
    "precision": "fp32",
    "seed": 5,
}

OPTIMIZERS = {
    "SGD": {"weight_decay": 0.1},
    "Nesterov momentum": {"optimizer": NESTEROV, "weight_decay": 0.1},
    "Adam": {"optimizer": ADAM, "learning_rate": 0.001, "weight_decay": 0.01},
    "AdamW": {"optimizer": ADAMW, "learning_rate": 0.001, "weight_decay": 1.0},
    "Muon": {"optimizer": MUON, "learning_rate": 0.05, "weight_decay": 0.1},
    "plain Muon": {
        "optimizer": PLAIN_MUON,
        "learning_rate": 0.002,
        "weight_decay": 1.0,
        "decayed": "weights",
    },
    "decay of weights": {"decayed": "weights", "weight_decay": 0.1},
    "fast biases": {"weight_decay": 0.1, "batch_norm_bias_factor": 8.0},
    "fast biases beside Muon": {
        "optimizer": MUON,
        "learning_rate": 0.02,
        "weight_decay": 0.1,
        "decayed": "weights",
        "batch_norm_bias_factor": 8.0,
    },
}

# So that the last batch norms see 16 values of a channel or more; with a few, they are steep.
LARGE = {
    "resize": {"size": 64, "crop": 64, "method": "bilinear"},
    "learning_rate": 1e-4,
}
NETWORKS = {
    "ImageNet's ResNet-18": {"model": {"name": "resnet18", "initialization": "imagenet"}, **LARGE},
    "ImageNet's DenseNet-121": {
        "model": {"name": "densenet121", "initialization": "imagenet"},
        **LARGE,
    },
    "dropout": {"dropout": 0.5},
    "small last layer and branches, batch-norm momentum": {
        "model": RESIDUAL
        | {"last_layer_scale": 0.14, "branch_scale": 0.1, "batch_norm_momentum": 0.4},
    },
    "partial identity": {"model": RESIDUAL | {"partial_identity": True}},
    "whitening": {"model": RESIDUAL | {"whitening": {"frozen": False}}},
    "frozen whitening": {"model": RESIDUAL | {"whitening": {"frozen": True}}},
    "average": {"average": {"decay": 0.6, "every": 2}},
    "average of every step": {"average": {"decay": 0.6}},
    "lookahead": {"average": {"decay": 0.8, "every": 2, "lookahead": True}, "epochs": 2},
}

VIEWS = {
    "as they are": {},
    "DAA-1": {"augmentation": DAA1},
    "DAA-2": {"augmentation": DAA2},
    "reflected padding": {"augmentation": {"padding": 2, "padding_mode": "reflect"}},
    "alternating flip": {"augmentation": {"flip_probability": 0.5, "alternating_flip": True}},
    "cutout": {"augmentation": {"cutout": 8}},
    "odd cutout": {"augmentation": DAA1 | {"cutout": 9}},
    **{
        f"resized, {method}": {
            "resize": {"size": 37, "crop": 32, "method": method},
            "augmentation": {"flip_probability": 0.5},
        }
        for method in METHODS
    },
    "resized, all changes": {
        "resize": {"size": 41, "crop": 36, "method": "bilinear"},
        "augmentation": DAA2 | {"alternating_flip": True, "cutout": 6},
    },
}
"""Settings that change nothing but the images: these are compared with the reference's."""

IMAGES = {
    "all changes of images": {
        "augmentation": DAA2
        | {"padding": 2, "padding_mode": "reflect", "alternating_flip": True, "cutout": 8},
        "epochs": 2,
        "learning_rate": 1e-4,
    },
    "resized": VIEWS["resized, bicubic"],
}

LOSSES_AND_RATES = {
    "label smoothing": {"label_smoothing": 0.2},
    "validation step": {
        "schedule": {"name": "validation_step", "threshold": 1.0, "learning_rate": 0.0001},
        "epochs": 3,
    },
    "plateau": {
        "schedule": {
            "name": "plateau",
            "factor": 0.1,
            "patience": 1,
            "cooldown": 1,
            "threshold": 0.5,
        },
        "epochs": 4,
    },
    "multi-step": {
        "schedule": {"name": "multi_step", "milestones": [0.4, 0.7], "factor": 0.1},
        "epochs": 2,
    },
    "cosine": {"schedule": {"name": "cosine", "warmup": 0.4, "final": 0.1}, "epochs": 2},
    "triangular": {
        "schedule": {"name": "triangular", "start": 0.2, "peak": 0.3, "final": 0.05},
        "epochs": 2,
    },
    "published protocol": {"protocol": PUBLISHED, "augmentation": DAA2, "epochs": 2},
    "best by validation images": {"protocol": CORRECTED | {"checkpoint": "best"}, "epochs": 2},
    "best by test images": {
        "protocol": CORRECTED | {"checkpoint": "best", "selection": "test"},
        "epochs": 2,
    },
    "early stopping": {"early_stopping": 1, "learning_rate": 1e-12, "epochs": 9},
    "progressive dropping": {
        "progressive_dropping": 0.5,
        "label_smoothing": 0.2,
        "schedule": {"name": "triangular", "start": 0.2, "peak": 0.3, "final": 0.05},
        "batch_size": 2,
        "learning_rate": 1e-4,
        "epochs": 3,
    },
    "lookahead every three steps of what is left": {
        "progressive_dropping": 0.5,
        "average": {"decay": 0.8, "every": 3, "lookahead": True},
        "batch_size": 2,
        "epochs": 3,
    },
    "six views": {"evaluation": {"train_every": 0, "test_every": 1, "crop_averaged": True}},
    "evaluation": {
        "evaluation": {"train_every": 2, "test_every": 0, "flip_averaged": True},
        "epochs": 2,
    },
}

ALSO_IN_BF16 = (
    *("SGD", "Nesterov momentum", "Adam", "AdamW", "Muon"),
    *("ImageNet's ResNet-18", "dropout", "whitening", "label smoothing"),
)

VARIANTS = OPTIMIZERS | NETWORKS | IMAGES | LOSSES_AND_RATES
VARIANTS |= {f"{name}, bf16": VARIANTS[name] | {"precision": "bf16"} for name in ALSO_IN_BF16}


def configure(changes: dict[str, Any]) -> RunConfig:
    return checking.validate(RunConfig, PLAIN | changes, "a variant")


@pytest.fixture(scope="module")
def inputs() -> training.Inputs:
    """Coloured noise whose mean colour tells the class."""
    generator = torch.Generator().manual_seed(1)
    colours = torch.randint(0, 128, (10, 3), generator=generator)

    def images(count: int) -> training.ImageSet:
        labels = torch.randint(10, (count,), generator=generator)
        noise = torch.randint(0, 128, (count, 3, 32, 32), generator=generator)
        return training.ImageSet((colours[labels][:, :, None, None] + noise).byte(), labels)

    return training.Inputs(*map(images, (7, 3, 4)), mean=(0.5, 0.45, 0.4), std=(0.25, 0.24, 0.3))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """Weights to stand for ImageNet's, also in files of torchvision's names."""
    folder = tmp_path_factory.mktemp("weights")
    files = {"resnet18": "resnet18-f37072fd.pth", "densenet121": "densenet121-a639ec97.pth"}
    torch.manual_seed(7)
    weights = {name: getattr(torchvision.models, name)().state_dict() for name in files}
    for name, file in files.items():
        torch.save(weights[name], folder / file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIFARLIB_WEIGHTS", str(folder))
        yield weights


# ---------------------------------------------------------------------------------------------
# Trajectories
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_fit_is_a_plain_loop_in_float64(name, inputs, pretrained):
    config = configure(VARIANTS[name])
    expected = reference.run(config, inputs, pretrained)
    fitted = training.fit(config, inputs, CPU)
    history, chosen = fitted.result.history, fitted.result.chosen
    exact = config.precision == "fp32"  # in bf16, an image between two classes may change sides

    rates = history.learning_rate[1:]
    assert rates == pytest.approx(tuple(expected.learning_rate[1:]), rel=1e-12)
    losses, largest, usual = LIMITS[config.precision]
    trained = tuple(expected.training_loss[1:])
    assert history.training_loss[1:] == pytest.approx(trained, rel=losses, abs=SMALL_LOSS)
    for split in reference.SPLITS:
        row = getattr(history, split)
        assert len(row.loss) == len(history.learning_rate)
        due = {epoch for epoch, loss in enumerate(row.loss) if loss is not None}
        assert due >= due_epochs(config, split, chosen["last"])
        for epoch in due if expected.loss[split] else ():
            right = expected.loss[split][epoch]
            assert row.loss[epoch] == pytest.approx(right, rel=losses, abs=SMALL_LOSS)
            if exact:
                counts = row.top1[epoch], row.top2[epoch], row.top3[epoch]
                assert counts == expected.correct[split][epoch]
    if exact:
        assert chosen["last"] == len(expected.learning_rate) - 1
        for rule in ("validation", config.protocol.selection):
            assert chosen[rule] == expected.chosen[rule]
        if averaged := fitted.result.flip_averaged or fitted.result.crop_averaged:
            assert averaged["validation"] == expected.mirrored[expected.shown]["validation"]
            assert averaged["test"] == expected.mirrored[expected.shown]["test"]
    shown = fitted.result.predictions.epoch
    assert shown == expected.shown or not exact
    ours = [v.double() for v in fitted.weights.values() if v.is_floating_point()]
    errors = errors_of_changes(expected, ours, expected.weights[shown])
    assert max(errors) < largest
    assert statistics.median(errors) < usual


def due_epochs(config: RunConfig, split: str, last: int) -> set[int]:
    every = {
        "train": config.evaluation.train_every,
        "validation": 1,
        "test": config.evaluation.test_every,
    }[split]
    return {last, *range(0, last + 1, every)} if every else set()


def errors_of_changes(
    outcome: reference.Outcome, ours: list[Tensor], expected: list[Tensor]
) -> list[float]:
    """By tensor: the error of its change, as a share of that change.

    What fp32 cannot hold is no error: weights near 1, whose change is small, are so rounded.
    """
    shares = []
    for first, new, right, idle in zip(outcome.first, ours, expected, outcome.idle, strict=True):
        error = rms(new - right) - 2**-22 * rms(right)
        if not idle:
            shares.append(max(0.0, error) / max(rms(right - first), 1e-4 * rms(right)))
    return shares


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


@pytest.mark.parametrize("name", VIEWS)
def test_images_are_those_of_torchvision_and_pillow(name, inputs):
    """Of two epochs, as trained on, and as evaluated with and without augmentation."""
    for augmented in (False, True):
        protocol = CORRECTED | {"augmented_evaluation": augmented}
        config = configure(VIEWS[name] | {"protocol": protocol})
        feed = training.Feed(config, inputs, channels_last=False)
        for epoch in (1, 2) if augmented else ():
            pairs = zip(feed.training(epoch), reference.batches(config, inputs, epoch), strict=True)
            for (images, labels, where), (expected, expected_labels, places) in pairs:
                assert torch.equal(labels, expected_labels)
                assert where.tolist() == places
                assert_same_images(images, expected)
        evaluated = torch.cat(list(feed.evaluation(inputs.test, "evaluation/test", 1)))
        assert_same_images(evaluated, reference.see_all(config, inputs, "test", 1))


def assert_same_images(ours: Tensor, expected: Tensor) -> None:
    """The same pixels, normalised in fp32: a pixel's next value is 0.01 away."""
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------
# Nothing is left out
# ---------------------------------------------------------------------------------------------

ELSEWHERE = {
    "data": "which images: tests/test_data.py",
    "optimizer[muon].rest[adam]": "made by the same lines as Adam alone",
    "optimizer[muon].rest[sgd].nesterov": "the same",
}
"""Parts of a configuration that no variant needs to have, and why."""


def facets(model: pydantic.BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a configuration has: each choice, and each number that is other than by default."""
    for name, field in type(model).model_fields.items():
        place, value = f"{prefix}{name}", getattr(model, name)
        if isinstance(value, pydantic.BaseModel):
            yield from facets(value, f"{tagged(place, getattr(value, 'name', None))}.")
        elif value is None or isinstance(value, bool | str):
            yield place, value
        elif value != (0 if field.is_required() else field.default):
            yield place, True


def possible(model: type[pydantic.BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every facet that a configuration may have."""
    for name, field in model.model_fields.items():
        for kind in alternatives(field.annotation):
            place = f"{prefix}{name}"
            if typing.get_origin(kind) is typing.Literal:
                yield from ((place, value) for value in typing.get_args(kind))
            elif kind is types.NoneType:
                yield place, None
            elif kind is bool:
                yield from ((place, value) for value in (False, True))
            elif isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
                for tag in tags(kind):
                    yield from (
                        facet
                        for facet in possible(kind, f"{tagged(place, tag)}.")
                        if facet[0] != f"{tagged(place, tag)}.name"
                        or "[" not in facet[0]
                        or facet[1] == tag
                    )
            else:
                yield place, True


def alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Annotated:
        return alternatives(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return typing.get_args(annotation)
    return (annotation,)


def tags(model: type[pydantic.BaseModel]) -> tuple[str | None, ...]:
    field = model.model_fields.get("name")
    return typing.get_args(field.annotation) if field else (None,)


def tagged(place: str, tag: str | None) -> str:
    """A part whose fields depend on its kind, with the kind; others as they are."""
    by_kind = place.split(".")[-1] in ("optimizer", "rest", "schedule")
    return f"{place}[{tag}]" if by_kind else place


def test_every_field_of_a_configuration_is_in_a_variant():
    """Hence every condition of the studies and every record is made of what variants have."""
    variants = [*VARIANTS.values(), *VIEWS.values()]
    covered = {facet for changes in variants for facet in facets(configure(changes))}
    missing = set(possible(RunConfig)) - covered
    assert [facet for facet in missing if not facet[0].startswith(tuple(ELSEWHERE))] == []


def test_every_optimizer_of_the_studies_is_compared_in_bf16():
    def optimizer(config: RunConfig) -> tuple[str, ...]:
        settings = config.optimizer
        return settings.name, getattr(getattr(settings, "rest", None), "name", "")

    used = set()
    for path in STUDIES.values():
        loaded = load_study(path)
        used |= {optimizer(c.config) for c in expand(loaded, load_scale("smoke", [], loaded))}
    compared = {
        optimizer(config)
        for config in map(configure, VARIANTS.values())
        if config.precision == "bf16"
    }
    assert used <= compared


# ---------------------------------------------------------------------------------------------
# Random numbers
# ---------------------------------------------------------------------------------------------

RANDOM_NUMBERS = {
    "seed of the order": 8460241025779680713,
    "order": "9c2a465928ed9d40",
    "angles": "610e70c905350fc7",
    "crops": "57a91733c61fb909",
    "flips": "f8bde8053ee3c23f",
    "cutouts": "a26486fb45444f8d",
    "crops in evaluation": "1cba8c25f2e6242b",
    "dropout": "d39e2a8c2efec77c",
}
"""Hashes of what seed 42 draws in epoch 2. Where this fails, every run is another one."""


def drawn() -> dict[str, Any]:
    config = configure(
        {
            "augmentation": DAA2 | {"cutout": 8},
            "resize": {"size": 37, "crop": 32, "method": "bilinear"},
            "seed": 42,
        }
    )
    images = training.ImageSet(torch.zeros(1000, 3, 32, 32).byte(), torch.zeros(1000).long())
    feed = training.Feed(config, training.Inputs(*[images] * 3, (0.5,) * 3, (0.5,) * 3), False)
    order, draws = feed.plan(epoch=2)
    evaluated = feed.draw(1000, "evaluation/test", 2)
    torch.manual_seed(training.derive_seed(42, "dropout", 2))
    return {
        "seed of the order": training.derive_seed(42, "order", 2),
        "order": fingerprint(order),
        "angles": fingerprint(draws.angles),
        "crops": fingerprint(torch.stack([draws.top, draws.left])),
        "flips": fingerprint(draws.flip),
        "cutouts": fingerprint(draws.cut),
        "crops in evaluation": fingerprint(torch.stack([evaluated.top, evaluated.left])),
        "dropout": fingerprint(torch.nn.functional.dropout(torch.ones(64, 512)) > 0),
    }


def fingerprint(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def test_random_numbers_are_those_of_the_recorded_runs():
    assert drawn() == RANDOM_NUMBERS


FIRST_WEIGHTS = {
    "residual": [7552.515301669287, -0.24670201539993286, 0.5167468786239624, -0.42326289415359497],
    "resnet18": [13499.50041451221, 0.6146234273910522, 0.15833809971809387, 0.4647902846336365],
    "densenet121": [
        *(125232.60011313221, -0.14221884310245514),
        *(-0.3735811114311218, -0.0482148714363575),
    ],
}
"""Of seed 42, by network: the sum of all first weights' squares, and three of the last layer."""


@pytest.mark.parametrize("name", ["residual", "resnet18", "densenet121"])
def test_first_weights_are_those_of_the_recorded_runs(name):
    """To 1e-5: a normal number's logarithm and cosine are rounded as the processor does it."""
    config = configure({"model": {"name": name, "initialization": "kaiming"}}).model
    assert first_weights(config) == pytest.approx(FIRST_WEIGHTS[name], rel=1e-5)


def first_weights(config: Any) -> list[float]:
    weights = [p.detach().double() for p in build_model(config, 0.0, seed=42).parameters()]
    return [sum(p.square().sum().item() for p in weights), *weights[-2].flatten()[:3].tolist()]
