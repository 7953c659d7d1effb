"""Entropy of a batch of embeddings, estimated from nearest neighbors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from manyviews.objectives._precision import in_float32


@in_float32
def koleo(z: Tensor) -> Tensor:
    """`-mean_i log min_{j != i} |z_i - z_j|` of embeddings of length 1 (Sablayrolles et al. 2019; Oquab et al. 2024).

    Neighbors are found without gradient. Distances under 1e-8 count as 1e-8.

    Args:
        z: `b d`, two rows or more, of any length above 0.

    Returns:
        A scalar: -log 2 for two opposite rows, -log(2) / 2 for orthonormal ones; it grows as rows come together.
    """
    z = normalize(z, dim=-1)
    with torch.no_grad():
        nearest = (z @ z.T).fill_diagonal_(-2).argmax(1)
    found: Tensor = -(z - z[nearest]).norm(dim=-1).clamp(min=1e-8).log().mean()
    return found
