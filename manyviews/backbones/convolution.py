"""Convolutions on CPUs: fast on the smallest maps, and safe when they are narrow."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_FEWEST = 16  # smallest batch; smaller ones use the convolution, whose last bits differ


class SmallMapConv2d(nn.Conv2d):
    """A 3x3 convolution that computes maps of at most 2x2 pixels as one dense layer on a CPU.

    On such a map a padded 3x3 kernel mostly meets padding: 20 of 36 products for 2x2 pixels, 8 of 9 for one. A CPU's
    convolution computes all of them and is slow on small maps. The function is the same, up to the order of its sums.
    """

    def forward(self, x: Tensor) -> Tensor:
        # Exported graphs take any batch size, so do not branch on it.
        exported = torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None
        here = not exported and x.ndim == 4 and x.device.type == "cpu"
        # LoRA makes 1x1 convolutions of the class of those that it adapts.
        if here and max(x.shape[-2:]) <= 2 and len(x) >= _FEWEST and self.kernel_size == (3, 3):
            return dense_conv3x3(x, self.weight, self.bias, self.stride[0])
        return super().forward(x)


def quicken(model: nn.Module) -> None:
    """Turn every convolution of a model that qualifies into a `SmallMapConv2d` with the same parameters."""
    for m in model.modules():
        usual = type(m) is nn.Conv2d and m.kernel_size == (3, 3) and m.padding == (1, 1) and m.padding_mode == "zeros"
        if usual and m.stride in ((1, 1), (2, 2)) and m.dilation == (1, 1) and m.groups == 1:
            m.__class__ = SmallMapConv2d  # a new module would have to replace this one wherever it is held


# Channels in oneDNN's blocks: the float32 numbers in a vector. Processors without AVX-512 have vectors of 8, or other
# kernels.
_BLOCK = 16 if getattr(torch.cpu, "_is_avx512_supported", lambda: True)() else 8


def protect(model: nn.Module) -> None:
    """Keep a model's narrow strided 1x1 convolutions away from a kernel that writes beyond its memory.

    oneDNN copies the pixels of such a convolution to a buffer of `pixels * channels` numbers. The gradient of the
    weights fills it in steps of a block of channels (github.com/uxlfoundation/oneDNN issue 6035, open in 3.12, which
    PyTorch 2.14 has). With fewer channels than a block, it overwrites the memory behind the buffer. Here a view takes
    the pixels first and the stride is 1: the same function without a buffer.

    Networks this narrow are for tests and small experiments. Wider convolutions stay as they are, and a second call
    changes nothing.
    """
    for m in model.modules():
        if not isinstance(m, (nn.Conv1d, nn.Conv2d)) or m.in_channels >= _BLOCK or m.groups > 1:
            continue
        if max(m.kernel_size) == 1 and max(m.stride) > 1 and m.padding in ("valid", (0,) * len(m.stride)):
            m.register_forward_pre_hook(partial(_take, stride=m.stride))
            m.stride = (1,) * len(m.stride)


def _take(module: nn.Module, inputs: tuple[Any, ...], stride: tuple[int, ...]) -> tuple[Any, ...]:
    """Every `stride`-th pixel of the first input."""
    x, *others = inputs
    return x[(..., *(slice(None, None, s) for s in stride))], *others


def dense_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """`conv2d(x, weight, bias, stride, padding=1)` of a map that the kernel covers whole at every position.

    Args:
        x: `b i h w`, with h and w 1 or 2.
        weight: `o i 3 3`.
        bias: `o`, or None.
        stride: 1 or 2.

    Returns:
        `b o h' w'`, channels last in memory; h' and w' equal h and w, or 1 for a stride of 2.
    """
    (b, inputs, h, w), outputs = x.shape, len(weight)
    tall, wide = (1, 1) if stride == 2 else (h, w)
    # The result at (p, q) multiplies the pixel at (y, x) by the tap (y - p + 1, x - q + 1).
    rows = torch.arange(h) - torch.arange(tall)[:, None] + 1
    columns = torch.arange(w) - torch.arange(wide)[:, None] + 1
    taps = (3 * rows[:, None, :, None] + columns[None, :, None, :]).flatten()
    layers = weight.permute(2, 3, 0, 1).reshape(9, outputs, inputs)[taps]
    layers = layers.view(tall * wide, h * w, outputs, inputs).transpose(1, 2).reshape(-1, h * w * inputs)
    y = x.permute(0, 2, 3, 1).reshape(b, -1) @ layers.T
    y = y.view(b, tall, wide, outputs)
    return (y if bias is None else y + bias.to(y.dtype)).permute(0, 3, 1, 2)
