"""Convolutions by matrix products, for bfloat16 on a CPU.

oneDNN's convolutions run near the machine's limit where images are large. On the 3×3 and 5×5
images at a network's end, its weight gradient reaches a few per cent of that; copying the patches
out (im2col) and one matrix product take a tenth of the time. The sums are the same in another
order, so this serves bf16 only: in fp32, a run stays PyTorch's own arithmetic.

A processor that cannot multiply bf16 itself converts as it goes, at a quarter of its fp32 rate,
and PyTorch without oneDNN, as on macOS, multiplies bf16 in a plain loop. There the numbers are
rounded to bf16 as elsewhere, and multiplied in fp32.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = 25  # positions of an output image up to which all three passes are matrix products
NARROW = 4  # input channels up to which the weight gradient is one, and for every 1×1 kernel

Pair = tuple[int, int]


def use_matrix_products(model: nn.Module) -> None:
    """Let a model's plain convolutions take the faster way; its parameters stay what they are."""
    for module in model.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
        ):
            module.__class__ = Convolution


@functools.cache
def multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bf16, and PyTorch uses them."""
    if not torch.backends.mkldnn.is_available():
        return False
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # bf16: ARM


class Convolution(nn.Conv2d):
    """A 2-d convolution that, under bf16 autocast on a CPU, chooses its way by shape."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        kind = torch.bfloat16 if multiplies_bf16() else torch.float32
        x = x.bfloat16().contiguous(memory_format=torch.channels_last).to(kind)
        weight = self.weight.bfloat16().to(kind)
        bias = None if self.bias is None else self.bias.bfloat16().to(kind)
        with torch.autocast("cpu", enabled=False):
            return _Convolve.apply(x, weight, bias, self.stride, self.padding).bfloat16()


class _Convolve(torch.autograd.Function):
    """Images (n, c, h, w), weights (d, c, k, l), bias (d,) or None → (n, d, h', w')."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
    ) -> Tensor:
        count, channels, *size = x.shape
        kernel = weight.shape[2:]
        shape = [(size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1)]
        ctx.geometry = kernel, stride, padding
        ctx.small = shape[0] * shape[1] <= SMALL
        ctx.product = ctx.small or channels <= NARROW or kernel == (1, 1)
        if not ctx.small:
            ctx.save_for_backward(x, weight)
            return F.conv2d(x, weight, bias, stride, padding)
        patches = _patches(x, *ctx.geometry)
        ctx.save_for_backward(x, weight, patches)
        matrix = _flat(weight).t()
        out = patches @ matrix if bias is None else torch.addmm(bias, patches, matrix)
        return out.view(count, *shape, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        x, weight, *kept = ctx.saved_tensors
        kernel, stride, padding = ctx.geometry
        for_x, for_weight, for_bias = (None,) * 3
        by_onednn = [ctx.needs_input_grad[0] and not ctx.small, not ctx.product, not ctx.product]
        if any(by_onednn):
            for_x, for_weight, for_bias = torch.ops.aten.convolution_backward(
                *(gradient, x, weight, [len(weight)], stride, padding),
                *((1, 1), False, (0, 0), 1, by_onednn),
            )
        if ctx.product:
            rows = _rows(gradient)
            patches = kept[0] if kept else _patches(x, kernel, stride, padding)
            columns = rows.t()
            if patches.shape[1] > len(weight):  # worth a copy: rows of a product go faster
                columns = columns.contiguous()
            flat = columns @ patches
            for_weight = flat.view(len(weight), *kernel, -1).permute(0, 3, 1, 2)
            for_bias = rows.sum(0)
        if ctx.small and ctx.needs_input_grad[0]:
            for_x = _scatter(_rows(gradient) @ _flat(weight), x, gradient, *ctx.geometry)
        return for_x, for_weight, for_bias if ctx.needs_input_grad[2] else None, None, None


def _rows(images: Tensor) -> Tensor:
    """(n, c, h, w), channels last → (n·h·w, c), the same memory."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def _flat(weight: Tensor) -> Tensor:
    """(d, c, k, l), channels last → (d, k·l·c), the same memory."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _patches(images: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """What the kernel meets at each position: (n, c, h, w) → (n·h'·w', k·l·c)."""
    images = F.pad(images.permute(0, 2, 3, 1), (0, 0, *[padding[1]] * 2, *[padding[0]] * 2))
    seen = images.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
    count, height, width = seen.shape[:3]
    return seen.permute(0, 1, 2, 4, 5, 3).reshape(count * height * width, -1)


def _scatter(
    patches: Tensor, images: Tensor, output: Tensor, kernel: Pair, stride: Pair, padding: Pair
) -> Tensor:
    """Add patches up where they were taken from: the transpose of ``_patches``."""
    count, channels, *size = images.shape
    height, width = output.shape[2:]
    parts = patches.view(count, height, width, *kernel, channels)
    room = [size[i] + 2 * padding[i] for i in (0, 1)]
    total = patches.new_zeros(count, *room, channels)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i, i + stride[0] * height, stride[0])
            columns = slice(j, j + stride[1] * width, stride[1])
            total[:, rows, columns] += parts[:, :, :, i, j]
    inner = total[:, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    return inner.contiguous().permute(0, 3, 1, 2)
