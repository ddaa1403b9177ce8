"""Transforms of image batches on the device: rotation, cropping, flipping, cutout, normalising.

Images are uint8 tensors (b, 3, height, width). What is random is drawn beforehand, for a whole
epoch on the CPU, so that every device and every partition into batches sees the same images.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cifarlib import resampling
from cifarlib.config import Channels, ResizeConfig


@dataclass(frozen=True)
class Draws:
    """The random numbers of n images; ``draws[part]`` are those of a slice or of indices."""

    angles: Tensor  # (n,) float32, degrees counter-clockwise; 0: not rotated
    top: Tensor  # (n,) int64, first row of the crop
    left: Tensor  # (n,) int64, first column of the crop
    flip: Tensor  # (n,) bool
    rotated: bool = True  # False: every angle is 0, known without asking the device
    cut: Tensor | None = None  # (n, 2) int64, row and column of a square's centre; None: no cutout

    def __getitem__(self, part: slice | Tensor) -> "Draws":
        return self._each(lambda numbers: numbers[part])

    def to(self, device: torch.device | str) -> "Draws":
        """The same draws in the memory of a device."""
        return self._each(lambda numbers: numbers.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        numbers: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **numbers)


def draw(
    count: int,
    *,
    rotation_degrees: float,
    rotation_probability: float,
    padding: int,
    flip_probability: float,
    margin: int = 0,
    cutout: int = 0,
    size: int = 32,
    generator: torch.Generator,
) -> Draws:
    """Random numbers for ``count`` images, from a CPU generator.

    Angles are uniform within ± ``rotation_degrees``, crop offsets uniform over the whole numbers
    from 0 to 2 ``padding`` + ``margin``, where ``margin`` is the resized image's size less that
    of the crop, and centres of cutouts uniform over the ``size`` × ``size`` pixels. Each kind
    takes the same amount of random numbers whatever its settings (cutouts, the last, none where
    there are none), so two settings that differ in one kind agree in the others.
    """
    chosen = torch.rand(count, generator=generator) < rotation_probability
    angles = (2 * torch.rand(count, generator=generator) - 1) * rotation_degrees
    offsets = torch.randint(2 * padding + margin + 1, (2, count), generator=generator)
    flip = torch.rand(count, generator=generator) < flip_probability
    cut = torch.randint(size, (count, 2), generator=generator) if cutout else None
    return Draws(
        angles=torch.where(chosen, angles, 0.0),
        top=offsets[0],
        left=offsets[1],
        flip=flip,
        rotated=rotation_degrees > 0 and rotation_probability > 0,
        cut=cut,
    )


def augment(
    images: Tensor,
    draws: Draws,
    *,
    padding: int,
    padding_mode: str = "black",
    resize: ResizeConfig | None = None,
) -> Tensor:
    """Rotation, resizing, padding and crop, and horizontal flip, in this order.

    uint8 (b, 3, h, w) → uint8 of the same size, or of the crop's where there is a resize.
    Padding is "black" or, without a resize, "reflect".
    """
    if draws.rotated:
        images = rotate(images, draws.angles)
    if resize is None:
        cropped = _pad_and_crop(images, draws.top, draws.left, padding, padding_mode)
        return torch.where(draws.flip[:, None, None, None], cropped.flip(3), cropped)
    # Crop and flip choose rows of the resampling matrices: pixels cut away are never computed.
    offsets = torch.arange(resize.crop, device=images.device)
    columns = torch.where(draws.flip[:, None], offsets.flip(0), offsets)
    vertical, horizontal = (
        functional.pad(matrix, (0, 0, padding, padding))
        for matrix in resampling.matrices(images, resize)
    )
    return resampling.resample(
        images, vertical[draws.top[:, None] + offsets], horizontal[draws.left[:, None] + columns]
    )


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate about the centre by nearest neighbour, counter-clockwise in degrees, black outside.

    uint8 (b, 3, h, w), float32 (b,) → uint8 (b, 3, h, w); torchvision's ``rotate`` of tensors.
    """
    if images.device.type != "cpu":  # rotating all by their angles spares waiting for the device
        return _rotate(images, angles)
    where = angles.nonzero().squeeze(1)
    if len(where) == 0:
        return images
    return images.index_copy(0, where, _rotate(images[where], angles[where]))


def _rotate(images: Tensor, angles: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    radians = angles.double().deg2rad()
    cos, sin = (f(radians).float()[:, None, None] for f in (torch.cos, torch.sin))
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    grid = torch.stack(
        ((cos * x - sin * y) / (width / 2), (sin * x + cos * y) / (height / 2)), dim=-1
    )
    return functional.grid_sample(
        images.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    ).to(torch.uint8)


def _pad_and_crop(
    images: Tensor, top: Tensor, left: Tensor, padding: int, padding_mode: str
) -> Tensor:
    """Crops of the images' own size out of the padded images."""
    if padding == 0:
        return images
    height, width = images.shape[-2:]
    if padding_mode == "reflect":  # as floats: before version 2.14 torch reflects no uint8
        padded = functional.pad(images.float(), (padding,) * 4, mode="reflect").to(torch.uint8)
    else:
        padded = functional.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: every crop there is
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def cut_out(images: Tensor, centres: Tensor, size: int) -> Tensor:
    """Set a square of ``size`` pixels to 0, the mean colour once images are normalised.

    float (b, 3, h, w), int64 (b, 2) rows and columns of the centres → float (b, 3, h, w). A part
    of the square may lie outside (DeVries and Taylor, 2017).
    """
    inside = []
    for axis, length in enumerate(images.shape[-2:]):
        offsets = torch.arange(length, device=images.device) - (centres[:, axis, None] - size // 2)
        inside.append((offsets >= 0) & (offsets < size))
    rows, columns = inside
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def normalize(
    images: Tensor, mean: Channels, std: Channels, *, channels_last: bool = False
) -> Tensor:
    """(pixel / 255 − mean) / std of each channel: uint8 (b, 3, h, w) → float32 of that shape.

    The same operations in the same order as torchvision's ``ToTensor`` and ``Normalize``.
    """
    offsets, scales = _channel_constants(
        tuple(map(float, mean)), tuple(map(float, std)), images.device
    )
    values = images.float().div_(255).sub_(offsets).div_(scales)
    return values.contiguous(memory_format=torch.channels_last) if channels_last else values


@cache  # never dropped: a CUDA graph goes on reading them
def _channel_constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Kept in the device's memory, since copying them for each batch would make it wait."""
    constants = torch.tensor((mean, std), dtype=torch.float32, device=device)
    return constants[0][:, None, None], constants[1][:, None, None]
