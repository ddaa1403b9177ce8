"""Random numbers, rotation and resizing; every transform is in ``test_reference.py``, too."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference
from PIL import Image
from torchvision.transforms import InterpolationMode

from cifarlib import resampling, transforms
from cifarlib.config import ResizeConfig

METHODS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
DAA1 = {"rotation_degrees": 0.0, "rotation_probability": 0.0, "padding": 4, "flip_probability": 0.5}
DAA2 = DAA1 | {"rotation_degrees": 15.0, "rotation_probability": 0.5}


def draw(count: int, settings: dict, seed: int = 0, margin: int = 0) -> transforms.Draws:
    generator = torch.Generator().manual_seed(seed)
    return transforms.draw(count, **settings, margin=margin, generator=generator)


def make_images(count: int, size: int = 32) -> torch.Tensor:
    """A half of noise, which overshoots every filter, and a half of smooth gradients."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    corners = torch.randint(256, (count, 3, 3, 3), generator=generator, dtype=torch.uint8)
    smooth = reference.resize(corners, [size, size], InterpolationMode.BILINEAR)
    return torch.where(torch.arange(count)[:, None, None, None] % 2 == 0, noise, smooth)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return make_images(200)


@pytest.fixture(scope="module")
def cifar10() -> torch.Tensor:
    """The 50,000 training images."""
    data = pytest.importorskip("cifarlib.data")
    from cifarlib.errors import DataError

    try:
        return torch.from_numpy(data.load("cifar10")[0].images)
    except DataError as error:
        pytest.skip(f"CIFAR-10 is not here: {error}")


def to_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pil(images: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).movedim(3, 1)


def resize_by_pillow(images: torch.Tensor, size: int, method: str) -> torch.Tensor:
    resampling = Image.Resampling[method.upper()]
    return from_pil([to_pil(image).resize((size, size), resampling) for image in images])


def share_equal(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one == other).double().mean().item()


# -- random numbers ---------------------------------------------------------------------------


def test_draws_have_the_distributions_that_are_configured():
    count = 100_000
    draws = draw(count, DAA2)
    rotated = draws.angles[draws.angles != 0]
    assert len(rotated) / count == pytest.approx(0.5, abs=0.008)  # 5 standard errors
    assert rotated.abs().max() <= 15
    assert rotated.mean().item() == pytest.approx(0, abs=0.2)
    assert rotated.std().item() == pytest.approx(15 / 3**0.5, abs=0.1)
    assert draws.flip.double().mean().item() == pytest.approx(0.5, abs=0.008)
    for offsets in (draws.top, draws.left):
        assert (torch.bincount(offsets, minlength=9) / count - 1 / 9).abs().max() < 0.005
    values = torch.stack([draws.angles, draws.top, draws.left, draws.flip]).double()
    assert (torch.corrcoef(values) - torch.eye(4)).abs().max() < 0.02


def test_draws_of_one_kind_do_not_depend_on_the_others():
    one, other = draw(100, DAA1), draw(100, DAA2)
    assert torch.equal(one.top, other.top)
    assert torch.equal(one.flip, other.flip)
    wide = draw(100, DAA1 | {"padding": 8})
    assert torch.equal(one.flip, wide.flip)


# -- augmentation -----------------------------------------------------------------------------


def test_rotation_is_torchvisions(images):
    angles = torch.linspace(-180, 180, len(images))
    angles[:4] = torch.tensor([45.0, 90.0, -90.0, 180.0])
    ours = transforms.rotate(images, angles)
    expected = torch.stack(
        [reference.rotate(i, a.item()) for i, a in zip(images, angles, strict=True)]
    )
    assert share_equal(ours, expected) > 0.9999
    assert torch.equal(ours[1], images[1].rot90(1, (1, 2)))  # counter-clockwise


def test_rotation_leaves_the_others_and_its_input_alone(images):
    angles = draw(len(images), DAA2).angles
    before = images.clone()
    ours = transforms.rotate(images, angles)
    assert torch.equal(ours[angles == 0], images[angles == 0])
    assert torch.equal(images, before)
    # What an accelerator does, rotating all of them, gives the same.
    assert torch.equal(transforms._rotate(images, angles), ours)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("resize", [None, ResizeConfig(size=73, crop=64, method="lanczos")])
def test_devices_agree(images, resize):
    draws = draw(len(images), DAA2, margin=9 if resize else 0)
    here = transforms.augment(images, draws, padding=4, resize=resize)
    there = transforms.augment(images.cuda(), draws.to("cuda"), padding=4, resize=resize).cpu()
    assert share_equal(here, there) > (0.9999 if resize is None else 0.999)


# -- resizing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [256, 33])
@pytest.mark.parametrize("method", METHODS)
def test_resize_is_pillows(images, method, size):
    ours = resampling.resize_and_centre_crop(
        images[:20], ResizeConfig(size=size, crop=size, method=method)
    )
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, resize_by_pillow(images[:20], size, method))


@pytest.mark.parametrize("method", METHODS)
def test_resized_statistics_are_those_of_pillows_images(method):
    batch, size, crop = make_images(200), 64, 56
    resized = reference.center_crop(resize_by_pillow(batch, size, method), [crop])
    pixels = resized.numpy().astype(np.int32)
    mean = pixels.mean((0, 2, 3)) / 255
    std = np.sqrt((pixels**2).mean((0, 2, 3)) / 255**2 - mean**2)
    mean_of_ours, std_of_ours = resampling.resized_statistics(
        batch, ResizeConfig(size=size, crop=crop, method=method)
    )
    np.testing.assert_allclose(mean_of_ours, mean, rtol=1e-12)
    np.testing.assert_allclose(std_of_ours, std, rtol=1e-12)


def test_resized_statistics_of_all_training_images(cifar10):
    """Table II, nearest; Listing 4 gives the same numbers with the rounding of float32."""
    mean, std = resampling.resized_statistics(
        cifar10, ResizeConfig(size=256, crop=224, method="nearest")
    )
    assert mean.dtype == std.dtype == torch.float64
    np.testing.assert_allclose(mean, [0.488720, 0.475235, 0.439246], atol=5e-7)
    np.testing.assert_allclose(std, [0.243068, 0.239364, 0.255938], atol=5e-7)
