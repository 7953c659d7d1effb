"""Alignment: a prediction points in the direction of its target. Nothing pushes images apart.

A row of zeros has no direction: its cosine with any other is 0, and it gets no gradient.
"""

from __future__ import annotations

from torch import Tensor

from manyviews.objectives._directions import directions
from manyviews.objectives._precision import in_float32


@in_float32
def squared_distance(p: Tensor, target: Tensor) -> Tensor:
    """BYOL's loss: the squared distance of the normalized vectors, `2 - 2 cos(p, sg(target))`, mean over rows.

    Grill et al. 2020, eq. 2, one of its two directions. MULAN aligns with it too.

    Args:
        p: predictions, `b d`.
        target: projections of the other view, `b d`; receives no gradient.

    Returns:
        A scalar in [0, 4]: 0 for the same direction, 2 for orthogonal, 4 for opposite ones.
    """
    return 2 + 2 * negative_cosine(p, target)


@in_float32
def negative_cosine(p: Tensor, target: Tensor) -> Tensor:
    """SimSiam's loss: `-cos(p, sg(target))`, mean over rows. Chen & He 2021, eq. 1.

    Args:
        p: predictions, `b d`.
        target: projections of the other view, `b d`; receives no gradient.

    Returns:
        A scalar in [-1, 1]: -1 for the same direction.
    """
    return consistency(p, target.detach())


@in_float32
def consistency(za: Tensor, zs: Tensor) -> Tensor:
    """The rescue of easy samples: `-cos(za, zs)`, mean over rows. Wang et al., eq. 1. Both receive a gradient.

    Args:
        za: projections of ordinary views, `k d`.
        zs: projections of strongly augmented views of the same images, `k d`.

    Returns:
        A scalar in [-1, 1]: -1 for the same direction.
    """
    return -(directions(za) * directions(zs)).sum(-1).mean()
