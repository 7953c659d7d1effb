"""Decorrelation: VICReg's three terms (Bardes et al. 2022), at the scale its weights 25, 25 and 1 are meant for.

And the cross-correlation of Barlow Twins (Zbontar et al. 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from manyviews import distributed
from manyviews.errors import UserError
from manyviews.objectives._precision import in_float32


@in_float32
def invariance(za: Tensor, zb: Tensor) -> Tensor:
    """The squared difference of two views' embeddings, mean over images and dimensions.

    The printed eq. 5 sums over dimensions, which is d times as much; its weight belongs to this mean.

    Args:
        za: `b d`, not normalized.
        zb: `b d`, of the same images in the same order.

    Returns:
        A scalar, at least 0.
    """
    return mse_loss(za, zb)


@in_float32
def variance(z: Tensor) -> Tensor:
    """How far the dimensions' standard deviations over the batch of all ranks are below one, eq. 1 and 2.

        mean over dimensions of  max(0, 1 - sqrt(var(z) + 1e-4))

    The loss takes the mean of the two branches' terms, not the printed sum.

    Args:
        z: one branch's embeddings, `b d`, not normalized.

    Returns:
        A scalar in [0, 0.99].

    Raises:
        UserError: a batch of one image.
    """
    return (1 - (_batch(z).var(0) + 1e-4).sqrt()).relu().mean()


@in_float32
def covariance(z: Tensor) -> Tensor:
    """The squared covariances of different dimensions over the batch of all ranks, summed, over d, eq. 3 and 4.

    The loss takes the sum of the two branches' terms.

    Args:
        z: one branch's embeddings, `b d`, not normalized.

    Returns:
        A scalar, at least 0; d - 1 when all dimensions are copies of one of unit variance.

    Raises:
        UserError: a batch of one image.
    """
    rows = _batch(z)
    n, d = rows.shape
    centered = rows - rows.mean(0)
    # Not ||C||^2 - ||diag C||^2, whose difference drowns in rounding when the dimensions are nearly uncorrelated.
    cov = (centered.T @ centered / (n - 1)).fill_diagonal_(0)
    return cov.square().sum() / d


@in_float32
def cross_correlation(za: Tensor, zb: Tensor) -> Tensor:
    """How each dimension of one view's embeddings correlates with each of the other's, over the batch of all ranks.

    Dimensions are standardized as by BatchNorm: with the variance over N, not N - 1, and 1e-5 added to it, so that one
    that is constant correlates with none.

    Args:
        za: `b d`, not normalized.
        zb: `b d`, of the same images in the same order.

    Returns:
        `d d`, in [-1, 1]: the rows are dimensions of `za`.

    Raises:
        UserError: a batch of one image.
    """
    a, b = (_standardized(_batch(z)) for z in (za, zb))
    return a.T @ b / len(a)


def _standardized(rows: Tensor) -> Tensor:
    var, mean = torch.var_mean(rows, 0, correction=0)
    return (rows - mean) * (var + 1e-5).rsqrt()


def _batch(z: Tensor) -> Tensor:
    rows = distributed.gather(z)
    if len(rows) < 2:
        raise UserError("This loss needs at least 2 images in a batch: a single one has no variance.")
    return rows
