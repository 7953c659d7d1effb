"""Decorrelation: VICReg's terms (Bardes et al. 2022) and Barlow Twins' cross-correlation (Zbontar et al. 2021).

VICReg's terms have the scale for which its weights 25, 25 and 1 are meant.
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

    The printed eq. 5 sums over dimensions, which gives d times as much. The published weight belongs to this mean.

    Args:
        za: embeddings, `b d`, not normalized.
        zb: embeddings of the other views, `b d`, images in the same order.

    Returns:
        A scalar, at least 0.
    """
    return mse_loss(za, zb)


@in_float32
def variance(z: Tensor, weight: Tensor | None = None) -> Tensor:
    """How far each dimension's standard deviation over the batch of all ranks is below one, eq. 1 and 2.

        mean over dimensions of  max(0, 1 - sqrt(var(z) + 1e-4))

    The loss averages the two branches' terms; the paper prints their sum.

    Args:
        z: one branch's embeddings, `b d`, not normalized.
        weight: `d`, of sum 1, for a weighted mean over dimensions; None if all count the same.

    Returns:
        A scalar in [0, 0.99].

    Raises:
        UserError: a batch of one image.
    """
    short = (1 - (_batch(z).var(0) + 1e-4).sqrt()).relu()
    return short.mean() if weight is None else (weight * short).sum()


@in_float32
def covariance(z: Tensor) -> Tensor:
    """The sum of squared covariances of different dimensions over the batch of all ranks, divided by d, eq. 3 and 4.

    The loss adds the two branches' terms.

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
    # ||C||^2 - ||diag C||^2 would drown in rounding when the dimensions are nearly uncorrelated.
    cov = (centered.T @ centered / (n - 1)).fill_diagonal_(0)
    return cov.square().sum() / d


@in_float32
def cross_correlation(za: Tensor, zb: Tensor) -> Tensor:
    """The correlation of each dimension of one view with each dimension of the other, over the batch of all ranks.

    Dimensions are standardized as in BatchNorm, with the variance over N plus 1e-5. A constant dimension therefore
    correlates with none.

    Args:
        za: embeddings, `b d`, not normalized.
        zb: embeddings of the other views, `b d`, images in the same order.

    Returns:
        `d d`, in [-1, 1]. Rows are the dimensions of `za`.

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
