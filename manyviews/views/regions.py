"""Which images of a batch, and which pixels of a view, something is done to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def apply_to(mask: Tensor, f: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
    """`f(x, *parameters)` for the images in `mask`, the others as they are.

    On the CPU `f` sees only those images. Elsewhere, to count them the host would have to wait for the device, and `f`
    sees them all.

    Args:
        mask: bool, `b`.
        f: maps `n c h w` and parameters of `n` rows to `n c h w`.
        x: `b c h w`, which may be overwritten.
        parameters: `b ...` each.
    """
    if x.device.type != "cpu":
        return torch.where(mask[:, None, None, None], f(x, *parameters), x)
    chosen = mask.nonzero()[:, 0]
    if len(chosen) == len(x):
        return f(x, *parameters)
    if len(chosen) == 0:
        return x
    return x.index_copy_(0, chosen, f(x[chosen], *(p[chosen] for p in parameters)))


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels are in each image's box: bool, `b 1 height width`.

    Args:
        boxes: int64, `b 4`: top, left, height, width.
        height, width: of the images, in pixels.
    """
    top, left, tall, wide = boxes[:, :, None].unbind(1)
    y, x = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    rows, columns = (y >= top) & (y < top + tall), (x >= left) & (x < left + wide)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def erase(x: Tensor, boxes: Tensor, color: tuple[float, ...] | None = None) -> Tensor:
    """Fill a box of each image with a color, in place.

    Args:
        x: `b c h w`.
        boxes: int64, `b 4`: top, left, height, width.
        color: a value for each channel; None for zero, which in a normalized view is the mean color.
    """
    there = inside(boxes, *x.shape[-2:])
    if color is None:
        return x.masked_fill_(there, 0)
    for channel, value in enumerate(color):  # filled with numbers, which no device has to wait for
        x[:, channel : channel + 1].masked_fill_(there, value)
    return x
