"""Transforms of image batches on the device: rotation, resizing, cropping, flipping, normalising.

Images are uint8 tensors (b, 3, height, width). What is random is drawn beforehand, for a whole
epoch on the CPU, so that every device and every partition into batches sees the same images.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# ---------------------------------------------------------------------------------------------
# Random numbers
# ---------------------------------------------------------------------------------------------


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
        return Draws(
            self.angles[part],
            self.top[part],
            self.left[part],
            self.flip[part],
            self.rotated,
            None if self.cut is None else self.cut[part],
        )

    def to(self, device: torch.device | str) -> "Draws":
        """The same draws in the memory of a device."""
        return Draws(
            self.angles.to(device),
            self.top.to(device),
            self.left.to(device),
            self.flip.to(device),
            self.rotated,
            None if self.cut is None else self.cut.to(device),
        )


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


# ---------------------------------------------------------------------------------------------
# Augmentation
# ---------------------------------------------------------------------------------------------


class Resize(NamedTuple):
    """Resample to ``size`` × ``size`` pixels as Pillow does, then crop ``crop`` × ``crop``."""

    size: int
    crop: int
    method: str


def augment(
    images: Tensor,
    draws: Draws,
    *,
    padding: int,
    padding_mode: str = "black",
    resize: Resize | None = None,
) -> Tensor:
    """Rotation, resizing, padding and crop, and horizontal flip, in this order.

    uint8 (b, 3, h, w) → uint8 of the same size, or of the crop's where there is a resize.
    Padding is "black" or, without a resize, "reflect".
    """
    if draws.rotated:
        images = rotate(images, draws.angles)
    if resize is None:
        cropped = _pad_and_crop(images, draws.top, draws.left, padding, padding_mode)
        return _flip(cropped, draws.flip)
    # Crop and flip choose rows of the resampling matrices: pixels cut away are never computed.
    offsets = torch.arange(resize.crop, device=images.device)
    columns = torch.where(draws.flip[:, None], offsets.flip(0), offsets)
    vertical, horizontal = (
        functional.pad(matrix, (0, 0, padding, padding)) for matrix in _matrices(images, resize)
    )
    return _resample_to_uint8(
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
    if padding_mode == "reflect":  # by rows and columns: torch reflects no uint8
        rows, columns = (_reflected(length, padding, images.device) for length in (height, width))
        padded = images[:, :, rows[:, None], columns]
    else:
        padded = functional.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: every crop there is
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def _reflected(length: int, padding: int, device: torch.device) -> Tensor:
    """Which pixel of a line stands at each place of the padded line; the edge is not repeated."""
    places = torch.arange(-padding, length + padding, device=device).abs()
    return torch.minimum(places, 2 * (length - 1) - places)


def cut_out(images: Tensor, centres: Tensor, size: int) -> Tensor:
    """Set a square of ``size`` pixels to 0, the mean colour once images are normalised.

    float (b, 3, h, w), int64 (b, 2) rows and columns of the centres → float (b, 3, h, w). A part
    of the square may lie outside (DeVries and Taylor, 2017).
    """
    height, width = images.shape[-2:]
    first = centres - size // 2
    rows, columns = (
        _within(torch.arange(length, device=images.device), first[:, axis, None], size)
        for axis, length in enumerate((height, width))
    )
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _within(places: Tensor, first: Tensor, size: int) -> Tensor:
    return (places >= first) & (places < first + size)


def _flip(images: Tensor, flip: Tensor) -> Tensor:
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def centre_crop(images: Tensor, crop: int) -> Tensor:
    """The middle ``crop`` × ``crop`` pixels, as torchvision's ``CenterCrop``."""
    top, left = (_centre(length, crop) for length in images.shape[-2:])
    return images[..., top : top + crop, left : left + crop]


def _centre(length: int, crop: int) -> int:
    return round((length - crop) / 2)


# ---------------------------------------------------------------------------------------------
# Resizing, as Pillow does
# ---------------------------------------------------------------------------------------------


def resize(images: Tensor, size: int, method: str) -> Tensor:
    """Resample to ``size`` × ``size``: bit for bit Pillow's ``Image.resize``.

    uint8 (b, 3, h, w) → uint8 (b, 3, size, size), by "nearest", "bilinear", "bicubic", "box",
    "hamming" or "lanczos".
    """
    vertical, horizontal = _matrices(images, Resize(size, size, method))
    return _resample_to_uint8(images, vertical, horizontal)


def resize_and_centre_crop(images: Tensor, resize: Resize) -> Tensor:
    """Resample and keep the centre: uint8 (b, 3, h, w) → uint8 (b, 3, crop, crop)."""
    return _resample_to_uint8(images, *_centre_matrices(images, resize))


def _matrices(images: Tensor, resize: Resize) -> tuple[Tensor, Tensor]:
    """The matrices (size, h) and (size, w) that resample columns and rows."""
    height, width = images.shape[-2:]
    return (
        _resampling_matrix(height, resize.size, resize.method, images.device),
        _resampling_matrix(width, resize.size, resize.method, images.device),
    )


def _centre_matrices(images: Tensor, resize: Resize) -> tuple[Tensor, Tensor]:
    start = _centre(resize.size, resize.crop)
    vertical, horizontal = _matrices(images, resize)
    return vertical[start : start + resize.crop], horizontal[start : start + resize.crop]


def _resample(images: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
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


def _resample_to_uint8(images: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    height, width = vertical.shape[-2], horizontal.shape[-2]
    result = images.new_empty((*images.shape[:2], height, width))
    step = _images_at_once(images.device, height * width)
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        matrices = (m[part] if m.ndim == 3 else m for m in (vertical, horizontal))
        result[part] = _resample(images[part], *matrices)
    return result


def _images_at_once(device: torch.device, pixels: int) -> int:
    """How many images to resample in one go: on a CPU, so few that they stay in its cache."""
    return max(1, 2 ** (16 if device.type == "cpu" else 24) // pixels)


PRECISION_BITS = 22  # of Pillow's fixed-point coefficients: 32 − 8 − 2 (libImaging/Resample.c)


@cache  # never dropped: a CUDA graph goes on reading it
def _resampling_matrix(length: int, size: int, method: str, device: torch.device) -> Tensor:
    """The weights of ``length`` pixels in each of ``size``: float64 (size, length)."""
    if method == "nearest":
        return functional.one_hot(_nearest_pixels(length, size), length).double().to(device)
    weight, support = FILTERS[method]
    scale = length / size
    stretch = max(scale, 1.0)  # a filter grows with the step when shrinking: antialiasing
    matrix = torch.zeros((size, length), dtype=torch.float64)
    for row in range(size):
        centre = (row + 0.5) * scale
        first = max(0, int(centre - support * stretch + 0.5))
        last = min(length, int(centre + support * stretch + 0.5))
        weights = [weight((x - centre + 0.5) * (1.0 / stretch)) for x in range(first, last)]
        total = sum(weights)
        for x, value in enumerate(weights, start=first):
            matrix[row, x] = _to_fixed_point(value / total)
    return matrix.to(device)


def _to_fixed_point(value: float) -> float:
    return int(math.copysign(0.5, value) + value * 2**PRECISION_BITS) / 2**PRECISION_BITS


def _nearest_pixels(length: int, size: int) -> Tensor:
    """The pixel under the centre of each new one; steps added up as in Pillow's Geometry.c."""
    step = length / size
    position, pixels = step * 0.5, []
    for _ in range(size):
        pixels.append(min(int(position), length - 1))
        position += step
    return torch.tensor(pixels)


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _hamming(x: float) -> float:
    return _sinc(x) * (0.54 + 0.46 * math.cos(math.pi * x)) if abs(x) < 1 else 0.0


def _bicubic(x: float) -> float:
    x, a = abs(x), -0.5
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0


def _sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0


FILTERS = {  # weight of a pixel at a distance, and the distance from which it is 0
    "box": (_box, 0.5),
    "bilinear": (_triangle, 1.0),
    "hamming": (_hamming, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}


# ---------------------------------------------------------------------------------------------
# Normalising
# ---------------------------------------------------------------------------------------------


def normalize(
    images: Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    *,
    channels_last: bool = False,
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


def resized_statistics(images: Tensor, size: int, crop: int, method: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of pixel / 255 in each channel, of resized, cropped images.

    uint8 (n, 3, h, w) → two float64 (3,) on the CPU; the crop is the centre. They are exact but
    for the last rounding, since the sums are of whole numbers and below 2⁵³.
    """
    vertical, horizontal = _centre_matrices(images, Resize(size, crop, method))
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
    return _moments(sums.tolist(), len(images) * crop * crop)


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
            pixels = _resample(part, vertical, horizontal)
            sums[0] += pixels.sum((0, 2, 3))
            # The norm reads the pixels once and writes nothing, thus several times as fast.
            norms = torch.linalg.vector_norm(pixels, dim=(2, 3))
            sums[1] += norms.square().round().sum(0)
    return sums.cpu()


def _moments(sums: list[list[float]], pixels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation from sums of values and of squares, each a whole number."""
    means, deviations = [], []
    for total, squares in zip(*((int(s) for s in row) for row in sums), strict=True):
        means.append(total / (pixels * 255))
        deviations.append(math.sqrt((pixels * squares - total**2) / (pixels * 255) ** 2))
    return torch.tensor(means, dtype=torch.float64), torch.tensor(deviations, dtype=torch.float64)
