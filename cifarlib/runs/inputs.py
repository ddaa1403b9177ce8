"""A run's inputs: the three sets in the device's memory, and the constants to normalise with."""

from functools import lru_cache

import torch

from cifarlib import data, resampling
from cifarlib.config import Channels, DataConfig, ResizeConfig, RunConfig
from cifarlib.paper.tables import read_normalization
from cifarlib.training import ImageSet, Inputs


@lru_cache(maxsize=2)
def _image_sets(config: DataConfig, device: torch.device) -> dict[str, ImageSet]:
    return {
        name: ImageSet(
            torch.from_numpy(part.images).to(device), torch.from_numpy(part.labels).to(device)
        )
        for name, part in data.load_splits(config).items()
    }


def load_inputs(config: RunConfig, device: torch.device) -> Inputs:
    """The data of a run in the device's memory; the sets are kept for the next run."""
    mean, std = normalization(config)
    return Inputs(**_image_sets(config.data, device), mean=mean, std=std)


def normalization(config: RunConfig) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel, of pixels scaled to 0–1.

    ``published`` are the constants of Listing 4. ``computed`` are those of all training images
    (validation images included), after resizing and central cropping where a run resizes.
    """
    if config.protocol.normalization == "published":
        return read_normalization()[config.resize.method if config.resize else "32"]
    return computed_statistics(config.data.name, config.resize)


@lru_cache
def computed_statistics(dataset: str, resize: ResizeConfig | None) -> tuple[Channels, Channels]:
    """True channel statistics of a data set's training images, as a run without augmentation
    sees them."""
    images = data.load(dataset)[0].images
    statistics = (
        data.channel_statistics(images)
        if resize is None
        else resampling.resized_statistics(torch.from_numpy(images), resize)
    )
    mean, std = (tuple(map(float, values)) for values in statistics)
    return mean, std  # type: ignore[return-value]  # three channels each
