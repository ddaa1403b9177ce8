"""Resizing batches of images bit for bit as Pillow does, by exact matrix products.

Images are uint8 tensors (b, 3, height, width).
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cifarlib.config import ResizeConfig
from cifarlib.data import moments


def resize_and_centre_crop(images: Tensor, resize: ResizeConfig) -> Tensor:
    """Resample and keep the centre: uint8 (b, 3, h, w) → uint8 (b, 3, crop, crop)."""
    return resample(images, *_centre_matrices(images, resize))


def matrices(images: Tensor, resize: ResizeConfig) -> tuple[Tensor, Tensor]:
    """The float64 matrices (size, h) and (size, w) that resample columns and rows."""
    height, width = images.shape[-2:]
    return (
        _matrix(height, resize.size, resize.method, images.device),
        _matrix(width, resize.size, resize.method, images.device),
    )


def _centre_matrices(images: Tensor, resize: ResizeConfig) -> tuple[Tensor, Tensor]:
    start = round((resize.size - resize.crop) / 2)  # as torchvision's CenterCrop
    vertical, horizontal = matrices(images, resize)
    return vertical[start : start + resize.crop], horizontal[start : start + resize.crop]


def _resample_exactly(images: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Resample rows, then columns: (b, 3, h, w) → float64 (b, 3, H, W), whole numbers 0–255.

    The matrices are (H, h) and (W, w), or with a leading dimension b one for each image. Their
    elements are multiples of 2⁻²², so every sum is exact in float64, as in Pillow's integers.
    """
    if vertical.ndim == 3:
        vertical, horizontal = vertical[:, None], horizontal[:, None]
    rows = _round_to_pixels(images.double() @ horizontal.mT)
    return _round_to_pixels(vertical @ rows)


def _round_to_pixels(values: Tensor) -> Tensor:
    """In place; halves upwards, as Pillow's ``clip8``."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def resample(images: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """uint8 (b, 3, h, w) → uint8 (b, 3, H, W), by matrices of all images or each its own."""
    height, width = vertical.shape[-2], horizontal.shape[-2]
    result = images.new_empty((*images.shape[:2], height, width))
    step = _images_at_once(images.device, height * width)
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        own = (m[part] if m.ndim == 3 else m for m in (vertical, horizontal))
        result[part] = _resample_exactly(images[part], *own)
    return result


def _images_at_once(device: torch.device, pixels: int) -> int:
    """How many images to resample in one go: on a CPU, so few that they stay in its cache."""
    return max(1, 2 ** (16 if device.type == "cpu" else 24) // pixels)


PRECISION_BITS = 22  # of Pillow's fixed-point coefficients: 32 − 8 − 2 (libImaging/Resample.c)


@cache  # never dropped: a CUDA graph goes on reading it
def _matrix(length: int, size: int, method: str, device: torch.device) -> Tensor:
    """Pillow's own weights of ``length`` pixels in each of ``size``: float64 (size, length).

    They are what it makes of lines that hold one pixel each. In mode "I" it rounds that pixel to
    a whole number as it rounds its weights for 8-bit images.
    """
    lines = Image.fromarray(np.eye(length, dtype=np.int32) << PRECISION_BITS)
    resized = lines.resize((size, length), Image.Resampling[method.upper()])
    return torch.from_numpy(np.asarray(resized).T / 2**PRECISION_BITS).to(device)


def resized_statistics(images: Tensor, resize: ResizeConfig) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of pixel / 255 in each channel, of resized, cropped images.

    uint8 (n, 3, h, w) → two float64 (3,) on the CPU; the crop is the centre. They are exact but
    for the last rounding, since the sums are of whole numbers and below 2⁵³.
    """
    vertical, horizontal = _centre_matrices(images, resize)
    # Where each new pixel is an old one, it is enough to count how often.
    repeats = all(bool(((m == 0) | (m == 1)).all()) for m in (vertical, horizontal))
    counts = torch.outer(vertical.sum(0), horizontal.sum(0)) if repeats else None
    # Whole images for each thread: threads that share one meet after every operation, and wait
    # there for seconds where other processes use the cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            parts = pool.map(
                lambda part: _sums(part, vertical, horizontal, counts), images.split(256)
            )
            sums = sum(parts, torch.zeros((2, 3), dtype=torch.float64))
    finally:
        torch.set_num_threads(threads)
    totals, squares = ([int(value) for value in row] for row in sums.tolist())
    mean, std = moments(totals, squares, len(images) * resize.crop**2)
    return torch.from_numpy(mean), torch.from_numpy(std)


def _sums(images: Tensor, vertical: Tensor, horizontal: Tensor, counts: Tensor | None) -> Tensor:
    """Sums of the resampled pixels and of their squares, float64 (2, 3).

    With ``counts`` (h, w), those of the given pixels, each taken so many times.
    """
    sums = torch.zeros((2, 3), dtype=torch.float64, device=images.device)
    for part in images.split(_images_at_once(images.device, len(vertical) * len(horizontal))):
        if counts is not None:
            pixels = part.double()
            sums[0] += (pixels * counts).sum((0, 2, 3))
            sums[1] += (pixels.square_() * counts).sum((0, 2, 3))
        else:
            pixels = _resample_exactly(part, vertical, horizontal)
            sums[0] += pixels.sum((0, 2, 3))
            # The norm reads the pixels once and writes nothing, thus several times as fast.
            norms = torch.linalg.vector_norm(pixels, dim=(2, 3))
            sums[1] += norms.square().round().sum(0)
    return sums.cpu()
