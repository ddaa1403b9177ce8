"""What the report shows of a data set and of the network, as records."""

from typing import Any, Literal, get_args

import numpy as np
import torch

from cifarlib import data, models, transforms
from cifarlib.config import DATASETS, ENGINE, ModelConfig, ResizeConfig, SplitName
from cifarlib.paper.tables import read_normalization
from cifarlib.runs import inputs, tracing
from cifarlib.runs.provenance import of_this_process
from cifarlib.runs.schema import FORMAT, DataRecord, NetworkRecord, Statistics, pack, pack_classes


def describe_dataset(dataset: str) -> DataRecord:
    """Everything that the report shows of a data set: counts, statistics, a few images."""
    info = DATASETS[dataset]
    train, test = data.load(dataset)
    training, validation = data.split(train.labels)
    images = torch.from_numpy(train.images)
    firsts = [int(np.flatnonzero(train.labels == c)[0]) for c in range(len(info.classes))]
    counted: dict[SplitName, Any] = {
        "train": train.labels[training],
        "validation": train.labels[validation],
        "test": test.labels,
    }
    return DataRecord(
        format=FORMAT,
        dataset=dataset,
        data_fingerprint=info.fingerprint,
        class_counts={
            name: tuple(np.bincount(labels, minlength=10).tolist())
            for name, labels in counted.items()
        },
        statistics=_statistics(dataset),
        resized={
            method: _statistics(dataset, ResizeConfig(size=256, crop=224, method=method))
            for method in get_args(ResizeConfig.model_fields["method"].annotation)
        },
        test_labels=pack_classes(test.labels.tolist()),
        pixel_sums=pack(train.images.sum(axis=0, dtype="<u4")),  # up to 16 million images
        first_loss=_measure_first_loss(
            images[training[:32]], torch.from_numpy(train.labels[training[:32]])
        ),
        examples=tuple(data.to_png(train.images[index]) for index in firsts),
        transforms=_show_transforms(images[firsts[7] : firsts[7] + 1]),
        provenance=of_this_process(torch.get_num_threads()),
    )


def _statistics(dataset: str, resize: ResizeConfig | None = None) -> Statistics:
    mean, std = inputs.computed_statistics(dataset, resize)
    return Statistics(mean=mean, std=std)


def _measure_first_loss(images: Any, labels: Any) -> dict[Literal["fan_out", "fan_in"], float]:
    """Cross-entropy of the paper's first batch before any step, in training mode, seed 42.

    Images and constants are the paper's, without augmentation. ``fan_out`` has the last layer
    initialised as in Listing 1; for ``fan_in`` its weights shrink to the spread √(2/512).
    """
    config = ModelConfig(name="residual", initialization="kaiming")
    model = models.build_model(config, dropout=0.0, seed=42).train()
    batch = transforms.normalize(images, *read_normalization()["32"])
    head = models.last_layer(model)

    def loss() -> float:
        value = torch.nn.functional.cross_entropy(model(batch), labels)
        return float(f"{value.item():.5g}")  # digits that do not hang on the processor

    with torch.no_grad():
        fan_out = loss()
        head.weight *= (head.out_features / head.in_features) ** 0.5
        return {"fan_out": fan_out, "fan_in": loss()}


def _show_transforms(image: Any) -> dict[str, str]:
    """One image (1, 3, 32, 32) as it is, and after each transform of the paper by itself."""
    variants = {  # degrees, first row and column of the crop, mirrored
        "original": (0.0, 4, 4, False),
        "crop": (0.0, 0, 7, False),
        "flip": (0.0, 4, 4, True),
        "crop and flip (DAA-1)": (0.0, 0, 7, True),
        "rotation by 15°": (15.0, 4, 4, False),
        "all three (DAA-2)": (15.0, 0, 7, True),
    }
    shown = {}
    for name, numbers in variants.items():
        angle, top, left, flip = (torch.tensor([number]) for number in numbers)
        draws = transforms.Draws(angle, top, left, flip)
        shown[name] = data.to_png(transforms.augment(image, draws, padding=4)[0].numpy())
    return shown


def describe_network() -> NetworkRecord:
    """The residual network's layers, as it executes them on one image of 32×32 pixels."""
    image = (3, 32, 32)
    return NetworkRecord(
        format=FORMAT,
        engine=ENGINE,
        model="residual",
        image=image,
        layers=tracing.trace(models.ResidualNetwork(), image),
        provenance=of_this_process(torch.get_num_threads()),
    )
