"""Fixed position embeddings of patches."""

from __future__ import annotations

import torch
from torch import Tensor

from manyviews.errors import UserError


def sincos(grid: tuple[int, int], dim: int) -> Tensor:
    """Sines and cosines of each patch's row and column at geometrically spaced frequencies.

    Vaswani et al. 2017. Half of the dimensions belong to each axis, as in MAE and MoCo v3.

    Args:
        grid: rows and columns of patches.
        dim: width of the embeddings, divisible by 4.

    Returns:
        Float32, `rows*columns dim`, in [-1, 1], patches row by row.

    Raises:
        UserError: `dim` is not divisible by 4.
    """
    if dim % 4:
        raise UserError(f"Sine-cosine positions need a width divisible by 4, not {dim}.")
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (rows, columns)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1).float()
