"""Entropy of a batch of embeddings, estimated from nearest neighbors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from manyviews import distributed
from manyviews.objectives._precision import in_float32


@in_float32
def koleo(z: Tensor, left_out: Tensor | None = None, all_ranks: bool = False) -> Tensor:
    """`-mean_i log min_{j != i} |z_i - z_j|` of embeddings of length 1 (Sablayrolles et al. 2019; Oquab et al. 2024).

    Neighbors are found without gradient. Distances under 1e-8 count as 1e-8.

    Args:
        z: `b d`, two rows or more, of any length above 0.
        left_out: int64, `b m`, rows that are no neighbors of each row, itself among them; None for itself alone.
        all_ranks: whether neighbors are among the rows of all ranks, `b` on each, instead of this rank's.

    Returns:
        A scalar: -log 2 for two opposite rows, -log(2) / 2 for orthonormal ones; it grows as rows come together.
    """
    z = normalize(z, dim=-1)
    if left_out is None:
        left_out = torch.arange(len(z), device=z.device)[:, None]
    rows, before = (distributed.gather(z), distributed.rank() * len(z)) if all_ranks else (z, 0)
    with torch.no_grad():
        nearest = (z @ rows.T).scatter_(1, left_out + before, -2).argmax(1)
    found: Tensor = -(z - rows.index_select(0, nearest)).norm(dim=-1).clamp(min=1e-8).log().mean()
    return found
