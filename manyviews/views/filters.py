"""Gaussian blur, with a width of its own for each image."""

from __future__ import annotations

import torch
from torch import Tensor

from manyviews.views.geometry import resample_columns, resample_rows


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Convolve each image with a Gaussian, reflecting it at the borders, as torchvision's `gaussian_blur` does.

    Args:
        x: float32, `b c h w`.
        sigma: float32, `b`, standard deviations in pixels, positive.
        kernel: odd number of pixels on which the Gaussian is cut off and normalized; half of it, rounded down, is less
            than `h` and `w`.
    """
    h, w = x.shape[-2:]
    rows = _gaussian(sigma, kernel, h)
    columns = rows if h == w else _gaussian(sigma, kernel, w)
    return resample_rows(resample_columns(x, columns), rows)


def _gaussian(sigma: Tensor, kernel: int, side: int) -> Tensor:
    """The matrix that blurs a line of `side` pixels: float32, `b side side`."""
    offset = torch.arange(kernel, device=sigma.device) - kernel // 2
    weights = torch.softmax(-0.5 * (offset / sigma[:, None]).square(), 1)
    taps = (torch.arange(side, device=sigma.device)[:, None] + offset).abs()
    taps = (side - 1) - ((side - 1) - taps).abs()  # reflected at either end, without repeating the edge
    b = len(sigma)
    matrix = weights.new_zeros(b, side, side)
    return matrix.scatter_add_(2, taps.expand(b, -1, -1), weights[:, None].expand(-1, side, -1))
