"""Convolutions by matrix products: exact in double precision, as close as oneDNN's in bf16."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cifarlib import convolution
from cifarlib.config import ModelConfig
from cifarlib.convolution import Convolution, use_matrix_products
from cifarlib.models import build_model

SHAPES = {  # input channels, output channels, image, kernel, stride, padding
    "narrow": (3, 4, 12, 3, 2, 2),
    "large": (5, 4, 8, 3, 1, 1),
    "pointwise": (5, 4, 13, 1, 2, 0),
    "small": (5, 4, 5, 3, 1, 1),
    "small, stride 2": (5, 4, 9, 3, 2, 1),
    "not square": (5, 4, (4, 6), (1, 3), (2, 1), (0, 1)),
}


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_pytorch(shape, bias):
    inputs, outputs, size, kernel, stride, padding = shape
    torch.manual_seed(1)
    x = torch.randn(2, inputs, *pair(size), dtype=torch.double)
    w = torch.randn(outputs, inputs, *pair(kernel), dtype=torch.double)
    x, w = (t.contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, w))
    b = torch.randn(outputs, dtype=torch.double, requires_grad=True) if bias else None
    wanted = [t for t in (x, w, b) if t is not None]
    ours = convolution._Convolve.apply(x, w, b, pair(stride), pair(padding))
    theirs = F.conv2d(x, w, b, stride, padding)
    torch.testing.assert_close(ours, theirs)
    ahead = torch.randn_like(theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, wanted, ahead), torch.autograd.grad(theirs, wanted, ahead)
    )


@pytest.mark.parametrize("natively", [True, False])
@pytest.mark.parametrize("shape", [(64, 64, 17, 3, 1, 1), (256, 256, 5, 3, 2, 1)])
def test_bf16_loses_no_more_than_onednn(shape, natively, monkeypatch):
    monkeypatch.setattr(convolution, "multiplies_bf16", lambda: natively)
    inputs, outputs, size, *geometry = shape
    torch.manual_seed(2)
    exact = nn.Conv2d(inputs, outputs, *geometry).to(memory_format=torch.channels_last)
    ours, theirs = copy.deepcopy(exact), copy.deepcopy(exact)
    use_matrix_products(ours)
    x = torch.randn(8, inputs, size, size).contiguous(memory_format=torch.channels_last)
    errors = {}
    reference = gradients(exact, x, autocast=False)
    for name, layer in (("ours", ours), ("theirs", theirs)):
        found = gradients(layer, x, autocast=True)
        errors[name] = [
            ((a.float() - b).norm() / b.norm()).item()
            for a, b in zip(found, reference, strict=True)
        ]
    for mine, its in zip(errors["ours"], errors["theirs"], strict=True):
        assert mine < 1.5 * its < 0.01


def gradients(layer: nn.Module, x: torch.Tensor, autocast: bool) -> list[torch.Tensor]:
    """Output, and gradients of input, weight and bias."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(x)
    ahead = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    out.backward(ahead.to(out.dtype))
    return [out.detach(), x.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize(
    ("capabilities", "onednn", "natively"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True, False),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True, True),
        ({"architecture": "arm64", "bf16": True}, True, True),
        ({"architecture": "arm64", "bf16": False}, True, False),
        ({"architecture": "arm64", "bf16": True}, False, False),  # macOS
    ],
)
def test_a_processor_without_bf16_products_multiplies_in_fp32(
    capabilities, onednn, natively, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert convolution.multiplies_bf16.__wrapped__() == natively
    monkeypatch.setattr(convolution, "multiplies_bf16", lambda: natively)
    layer = nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last)
    use_matrix_products(layer)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(2, 8, 9, 9, requires_grad=True))
    assert out.dtype == torch.bfloat16
    convolve = out.grad_fn if natively else out.grad_fn.next_functions[0][0]
    assert {saved.dtype for saved in convolve.saved_tensors} == {
        torch.bfloat16 if natively else torch.float32
    }


@pytest.mark.parametrize("name", ["residual", "resnet18", "densenet121"])
def test_a_model_keeps_its_parameters_and_its_fp32_arithmetic(name):
    plain = build_model(ModelConfig(name=name, initialization="kaiming"), 0.0, 7).eval()
    quick = copy.deepcopy(plain)
    use_matrix_products(quick)
    assert any(type(module) is Convolution for module in quick.modules())
    assert list(plain.state_dict()) == list(quick.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    assert torch.equal(plain(x), quick(x))
    with torch.autocast("cpu", torch.bfloat16):
        difference = (plain(x) - quick(x)).float().norm() / plain(x).float().norm()
    assert difference < 0.05


def test_other_convolutions_stay_as_they_are():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    )
    use_matrix_products(model)
    assert {type(module) for module in model} == {nn.Conv2d}
