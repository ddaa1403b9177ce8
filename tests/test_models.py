"""The networks: shapes, sizes, first weights, and ImageNet weights from local files."""

import math
import re

import pytest
import torch
from torch import nn
from torchvision.models import densenet121, resnet18

from cifarlib import models
from cifarlib.config import NETWORKS, ModelConfig
from cifarlib.errors import UnavailableError

RESIDUAL = ModelConfig(name="residual", initialization="kaiming")


@pytest.fixture(scope="module")
def network():
    return models.build_model(RESIDUAL, dropout=0.2, seed=42)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_residual_network_is_listing_1s(network):
    assert count_parameters(network) == 4_869_066
    sizes = {name: count_parameters(part) for name, part in network.named_children()}
    assert sizes == {
        "stem1": 1_920,
        "stem2": 37_056,
        "stage1": 230_528,
        "stage2": 919_808,
        "stage3": 3_674_624,
        "pool": 0,
        "dropout": 0,
        "fc": 5_130,
    }
    assert network.dropout.p == 0.2


def test_first_weights_are_what_listing_1_draws_from_the_seed():
    """Layers made in Listing 1's order draw the same numbers from the same generator."""
    torch.manual_seed(42)
    convolutions = [(3, 64, 3), (64, 64, 3)]
    for inputs, outputs in ((64, 128), (128, 256), (256, 512)):
        convolutions += [(inputs, outputs, 3), (outputs, outputs, 3), (inputs, outputs, 1)]
    layers = [nn.Conv2d(i, o, k) for i, o, k in convolutions]
    layers.append(nn.Linear(512, 10))
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    ours = models.build_model(RESIDUAL, dropout=0.0, seed=42)
    weighted = [m for m in ours.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(layers, weighted, strict=True))


def test_building_a_model_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    models.build_model(RESIDUAL, dropout=0.0, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_flops_are_counted(network):
    assert models.count_flops(network, 32) == 272_860_544
    assert network.fc.weight.grad is None


@pytest.mark.parametrize(("name", "size"), [("resnet18", 11_181_642), ("densenet121", 6_964_106)])
def test_the_published_architectures_have_ten_classes(name, size):
    model = models.build_model(ModelConfig(name=name, initialization="kaiming"), 0.0, seed=1)
    assert count_parameters(model) == size
    model.eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    head = models.last_layer(model)
    assert head.weight.std().item() == pytest.approx(math.sqrt(2 / 10), rel=0.05)


# -- past the paper ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def correlated():
    """Smooth coloured noise, normalised: neighbouring pixels are alike, as in images."""
    noise = torch.randn(200, 3, 36, 36, generator=torch.Generator().manual_seed(0))
    colours = torch.tensor([[1.0, 0.9, 0.8], [0.0, 0.3, 0.2], [0.0, 0.0, 0.2]])
    smooth = nn.functional.avg_pool2d(noise, 5, stride=1)
    return torch.einsum("nchw,cd->ndhw", smooth, colours) * 5


@pytest.mark.parametrize("frozen", [True, False])
def test_a_whitened_stem_gives_uncorrelated_channels_of_both_signs(correlated, frozen):
    model = models.build_model(RESIDUAL, dropout=0.0, seed=1)
    before = model.stem1.conv.weight.detach().clone()
    models.whiten_stem(model, correlated, frozen=frozen)
    weight = model.stem1.conv.weight
    assert weight.requires_grad is not frozen
    assert torch.equal(weight[:27], -weight[27:54])
    assert torch.equal(weight[54:], before[54:])
    patches = nn.functional.unfold(correlated, 3, stride=3).transpose(1, 2).flatten(0, 1)
    outputs = patches @ weight[:27].detach().flatten(1).T
    covariance = torch.cov(outputs.T)
    off_diagonal = covariance - covariance.diag().diag()
    assert off_diagonal.abs().max() < 0.02
    assert covariance.diag()[:10].tolist() == pytest.approx([1.0] * 10, abs=0.05)
    assert covariance.diag().max() < 1.01
    norms = weight[:27].detach().flatten(1).norm(dim=1)
    assert (norms.diff() > -1e-4).all()  # the strongest direction first


def test_whitening_does_not_depend_on_the_sign_that_eigh_gives(correlated, monkeypatch):
    found = []
    eigh = torch.linalg.eigh
    for sign in (1, -1):
        monkeypatch.setattr(
            torch.linalg, "eigh", lambda matrix, s=sign: (eigh(matrix)[0], s * eigh(matrix)[1])
        )
        model = models.build_model(RESIDUAL, dropout=0.0, seed=1)
        models.whiten_stem(model, correlated, frozen=True)
        found.append(model.stem1.conv.weight)
    assert torch.equal(*found)


# -- ImageNet weights -------------------------------------------------------------------------


def weight_file(folder, name):
    return folder / models.WEIGHTS[name].url.rpartition("/")[2]


@pytest.mark.parametrize(
    ("name", "builder"), [("resnet18", resnet18), ("densenet121", densenet121)]
)
def test_imagenet_weights_come_from_a_local_file(tmp_path, monkeypatch, name, builder):
    torch.manual_seed(3)
    state = builder().state_dict()
    # DenseNet's published file still has the layer names of before torch 0.4.
    pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])")
    torch.save(
        {pattern.sub(r"\1.\2", key): value for key, value in state.items()},
        weight_file(tmp_path, name),
    )
    monkeypatch.setenv("CIFARLIB_WEIGHTS", str(tmp_path))
    model = models.build_model(ModelConfig(name=name, initialization="imagenet"), 0.0, seed=1)
    ours = model.state_dict()
    same = [k for k in state if k in ours and ours[k].shape == state[k].shape]
    assert len(same) == len(state) - 2  # all but the last layer's weight and bias
    assert all(torch.equal(ours[k], state[k]) for k in same)
    assert models.last_layer(model).out_features == 10


def test_missing_weights_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFARLIB_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UnavailableError, match="weights not available offline; download https"):
        models.build_model(ModelConfig(name="resnet18", initialization="imagenet"), 0.0, seed=1)


def test_a_damaged_weight_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFARLIB_WEIGHTS", str(tmp_path))
    path = weight_file(tmp_path, "resnet18")
    for content in (b"", b"garbage"):
        path.write_bytes(content)
        with pytest.raises(UnavailableError, match="is no weight file of resnet18"):
            models.build_model(ModelConfig(name="resnet18", initialization="imagenet"), 0.0, seed=1)
    torch.save({"fc.weight": torch.zeros(2)}, path)
    with pytest.raises(UnavailableError, match="is no weight file of resnet18") as caught:
        models.build_model(ModelConfig(name="resnet18", initialization="imagenet"), 0.0, seed=1)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_weights_in_no_folder_are_said(monkeypatch):
    monkeypatch.setenv("CIFARLIB_WEIGHTS", "~nobody-of-that-name")
    with pytest.raises(UnavailableError, match="CIFARLIB_WEIGHTS=~nobody-of-that-name names no"):
        models.build_model(ModelConfig(name="resnet18", initialization="imagenet"), 0.0, seed=1)


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_least_pixels_are_those_of_which_one_image_is_batch_enough(name):
    """``RunConfig`` refuses batches of one image below them."""
    model = models.build_model(ModelConfig(name=name, initialization="kaiming"), 0.0, seed=1)
    pixels = NETWORKS[name].least_pixels
    model.train()(torch.zeros(1, 3, pixels, pixels))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.zeros(1, 3, pixels - 1, pixels - 1))
