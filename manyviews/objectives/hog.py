"""Histograms of oriented gradients, in batches. Dalal and Triggs 2005; as targets, MaskFeat, Wei et al. 2022."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import UserError
from manyviews.objectives._precision import in_float32


@in_float32
def hog(images: Tensor, cell: int = 8, orientations: int = 9) -> Tensor:
    """A histogram of the gradients' orientations in each cell of each channel, with a norm of 1.

    A pixel's gradient is the difference of its two neighbors in each direction, and zero across the border. Its
    magnitude falls into the bin of its orientation in [0, 180) degrees. Each channel's histogram of a cell is divided
    by its L2 norm. The same as scikit-image's `hog` of each channel with one cell per block and the norm "L2".

    Args:
        images: `b c h w`.
        cell: side of a cell in pixels, a divisor of h and w.
        orientations: number of bins.

    Returns:
        `b rows columns c orientations`, for rows and columns of cells; without gradient.

    Raises:
        UserError: the cells do not tile the image.
    """
    h, w = images.shape[-2:]
    if h % cell or w % cell:
        raise UserError(f"Cells of {cell} pixels do not tile an image of {h} x {w}: change the view's size.")
    x = images.detach()
    down, right = torch.zeros_like(x), torch.zeros_like(x)
    down[..., 1:-1, :] = x[..., 2:, :] - x[..., :-2, :]
    right[..., 1:-1] = x[..., 2:] - x[..., :-2]
    # Rounding may give 180 degrees, which is the last bin's upper end.
    angle = torch.atan2(down, right).remainder(math.pi) * (orientations / math.pi)
    which = angle.long().clamp(max=orientations - 1)
    bins = torch.arange(orientations, device=x.device).view(-1, 1, 1)
    magnitude = torch.hypot(down, right)[:, :, None] * (which[:, :, None] == bins)
    sums = F.avg_pool2d(magnitude.flatten(1, 2), cell).unflatten(1, (-1, orientations))
    found: Tensor = sums / (sums.square().sum(2, keepdim=True) + 1e-10).sqrt()
    return found.permute(0, 3, 4, 1, 2)
