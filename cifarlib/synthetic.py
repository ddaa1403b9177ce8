"""The stand-in data set: shapes and textures drawn by seeded code, in CIFAR-10's file layout.

It lets every path of the study run where CIFAR-10 is missing. Ten classes of 32 × 32 colour
images; position, size, proportions, shear, colours, background, clutter and noise vary, and
colours say nothing about the class. Each class is its own mirror image.

The files are the same to the bit everywhere: random numbers are raw 64-bit words of PCG64, and
all arithmetic is on integers.
"""

import pickle
from pathlib import Path

import numpy as np

from cifarlib.config import DATASETS

INFO = DATASETS["synthetic"]
CLASSES = INFO.classes

BATCH_IMAGES = 2000
SIDE = 32  # pixels
UNIT = 16  # steps of the coordinates in a pixel

# How hard it is: a linear model must fail and the paper's network must have room to improve.
CONTRAST = (16, 100)  # grey levels between a shape and its background, least and most
DARK = 15  # % of the shapes are darker than their background
NOISE = (20, 100)  # in 256ths of ``_Random.noise``: standard deviation 8 to 41 grey levels


def write(folder: Path) -> None:
    """Write all files of the data set into a new folder."""
    folder.mkdir()
    files = [*INFO.train_files, *INFO.test_files]
    for number, name in enumerate(files):
        images, labels = draw(BATCH_IMAGES, stream=number)
        content = {
            b"batch_label": f"generated batch {number + 1} of {len(files)}".encode(),
            b"labels": labels.tolist(),
            b"data": images.tobytes(),  # plain bytes: an array's pickle differs between NumPys
            b"filenames": [
                f"{CLASSES[label]}_{number}_{index:04}.png".encode()
                for index, label in enumerate(labels)
            ],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=3))
    meta = {
        b"num_cases_per_batch": BATCH_IMAGES,
        b"label_names": [name.encode() for name in CLASSES],
        b"num_vis": 3 * SIDE * SIDE,
    }
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=3))


# ---------------------------------------------------------------------------------------------
# Random numbers
# ---------------------------------------------------------------------------------------------


class _Random:
    """Integers from the raw words of PCG64, whose stream NumPy never changes."""

    def __init__(self, stream: int):
        self._words = np.random.PCG64(stream)

    def between(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Integers from ``low`` to ``high``, both included."""
        count = int(np.prod(shape))
        words = self._words.random_raw(count) >> np.uint64(32)
        values = (words * np.uint64(high - low + 1)) >> np.uint64(32)
        return values.astype(np.int32).reshape(shape) + np.int32(low)

    def noise(self, *shape: int) -> np.ndarray:
        """The sum of two bytes, less its mean: −255 to 255, triangular; standard deviation 104."""
        count = 2 * int(np.prod(shape))
        words = self._words.random_raw(-(-count // 8))
        values = words.astype("<u8").view(np.uint8)[:count].astype(np.int32).reshape(2, *shape)
        return values[0] + values[1] - 255

    def permutation(self, count: int) -> np.ndarray:
        return np.argsort(self._words.random_raw(count), kind="stable")


# ---------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------


def draw(count: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (count, 3, 32, 32) and labels (count,), each class equally often."""
    random = _Random(stream)
    labels = random.permutation(count) % len(CLASSES)
    shape = _draw_shapes(random, labels)
    colour, background = _draw_colours(random, count)
    image = np.where(shape[:, None], colour, background)
    for _ in range(2):
        image = _draw_clutter(random, image)
    strength = random.between(*NOISE, count, 1, 1, 1)
    image += strength * random.noise(count, 3, SIDE, SIDE) // 256
    return np.clip(image, 0, 255).astype(np.uint8), labels


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the pixels' centres, x (1, 1, 32) and y (1, 32, 1), from the image's."""
    line = (2 * np.arange(SIDE, dtype=np.int32) + 1 - SIDE) * (UNIT // 2)
    return line[None, None, :], line[None, :, None]


def _draw_shapes(random: _Random, labels: np.ndarray) -> np.ndarray:
    """Where each image's shape is: bool (n, 32, 32)."""
    count = len(labels)
    x, y = _grid()
    x = x - random.between(-4 * UNIT, 4 * UNIT, count, 1, 1)
    y = y - random.between(-4 * UNIT, 4 * UNIT, count, 1, 1)
    x = x + random.between(-16, 16, count, 1, 1) * y // 64  # shear
    x = x * random.between(54, 74, count, 1, 1) // 64  # width
    radius = random.between(7 * UNIT, 11 * UNIT, count, 1, 1)
    period = random.between(2 * UNIT, 3 * UNIT, count, 1, 1)
    shapes = np.zeros((count, SIDE, SIDE), dtype=bool)
    for label, name in enumerate(CLASSES):
        members = labels == label
        shapes[members] = _inside(name, *(part[members] for part in (x, y, radius, period)))
    return shapes


def _inside(
    shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, period: np.ndarray
) -> np.ndarray:
    """Which pixels lie inside a shape: bool (n, 32, 32)."""
    distance = x * x + y * y  # squared
    nearest, farthest = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
    box = farthest <= radius
    match shape:
        case "disc":
            return distance <= radius * radius
        case "ring":
            hole = radius * 5 // 8
            return (distance <= radius * radius) & (distance > hole * hole)
        case "square":
            return farthest <= radius * 7 // 8
        case "frame":
            return (farthest <= radius * 7 // 8) & (farthest > radius * 9 // 16)
        case "triangle":
            return (abs(y) <= radius * 7 // 8) & (2 * abs(x) <= y + radius)
        case "plus":
            return box & (nearest <= radius * 5 // 16)
        case "saltire":
            return box & (abs(abs(x) - abs(y)) <= radius * 7 // 16)
        case "bars":
            return box & (y // period % 2 == 0)
        case "pillars":
            return box & (x // period % 2 == 0)
    return box & (x // period % 2 == 0) & (y // period % 2 == 0)  # dots


def _draw_colours(random: _Random, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A colour for each shape (n, 3, 1, 1) and a background (n, 3, 32, 32), drawn alike for all."""
    x, y = _grid()
    base = random.between(70, 170, count, 3, 1, 1)
    slope_x = random.between(-32, 32, count, 3, 1, 1)
    slope_y = random.between(-32, 32, count, 3, 1, 1)
    background = base + (slope_x * x[:, None] + slope_y * y[:, None]) // 256
    sign = np.where(random.between(1, 100, count, 1, 1, 1) <= DARK, -1, 1).astype(np.int32)
    contrast = random.between(*CONTRAST, count, 1, 1, 1)
    tint = random.between(-40, 40, count, 3, 1, 1)
    return base + sign * contrast + tint * contrast // 64, background


def _draw_clutter(random: _Random, image: np.ndarray) -> np.ndarray:
    """A small rectangle of any colour somewhere in each image, over or beside the shape."""
    count = len(image)
    x, y = _grid()
    x = x - random.between(-15 * UNIT, 15 * UNIT, count, 1, 1)
    y = y - random.between(-15 * UNIT, 15 * UNIT, count, 1, 1)
    width = random.between(UNIT, 4 * UNIT, count, 1, 1)
    height = random.between(UNIT, 4 * UNIT, count, 1, 1)
    inside = (abs(x) <= width) & (abs(y) <= height)
    return np.where(inside[:, None], random.between(40, 215, count, 3, 1, 1), image)
