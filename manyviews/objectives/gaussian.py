"""Gaussian embeddings in masked subspaces: MAST's terms (Huang et al. 2023).

An embedding is a mean `b d` and a diagonal covariance, whose diagonal is also `b d`. A subspace is the embedding times
one column of the masks, `d k`, which are not negative. `applied`, bool `b k`, tells which subspaces count for each
image; None means all. The printed equations sum over dimensions, so the terms scale with d.

The distances are means over the subspaces that count for an image, where the paper prints sums over its K and a weight
of 25 d/K: K is theirs ("setting K = 1 in Eq. (4)", section 3.2), so that it differs from image to image.
"""

from __future__ import annotations

from torch import Tensor

from manyviews.objectives._precision import in_float32

_TINY = 1e-12  # in place of a zero mask or variance: far below any trained value, and its inverse is finite


@in_float32
def masked_distance(z: Tensor, z2: Tensor, masks: Tensor, applied: Tensor | None = None) -> Tensor:
    """The squared distance of two views' embeddings in every subspace, mean over images, eq. 2.

        mean over i of  1/K_i  sum over its K_i subspaces k of  ||z_i * m_k - z2_i * m_k||^2

    Args:
        z: embeddings, `b d`, not normalized.
        z2: embeddings of the other views, `b d`, images in the same order.
        masks: `d k`.
        applied: bool, `b k`; an image without any subspace counts as zero.

    Returns:
        A scalar, at least 0.
    """
    return _counted(_squares(z, z2, masks), applied)


@in_float32
def sparsity(masks: Tensor) -> Tensor:
    """The sum of the masks' absolute entries, eq. 3: `d k` to a scalar."""
    return masks.abs().sum()


@in_float32
def gaussian_distance(
    mu: Tensor,
    mu2: Tensor,
    var: Tensor,
    var2: Tensor,
    masks: Tensor,
    applied: Tensor | None = None,
    *,
    squared: bool = True,
) -> Tensor:
    """The squared distance of two views' means over their mean variance, in every subspace, mean over images, eq. 4.

        mean over i of  1/K_i  sum over its K_i subspaces k of
            2 ||mu_i * m_k - mu2_i * m_k||^2 / (tr(S_i diag(m_k)^2) + tr(S2_i diag(m_k)^2))

    The covariance of x * m is diag(m) S diag(m). The paper prints S diag(m_k), which is that of masks of zeros and ones
    only: a mask of half the size then has half the distance.

    A subspace whose mask is zero has distance zero. The ratio of two sums over dimensions does not scale with d.

    Args:
        mu, mu2: the means of two views of the same images, `b d`.
        var, var2: their variances, `b d`, not negative.
        masks: `d k`.
        applied: bool, `b k`; an image without any subspace counts as zero.
        squared: whether variances are masked twice; once, if not, as printed.

    Returns:
        A scalar, at least 0.
    """
    traces = (var + var2) @ (masks.square() if squared else masks)
    return _counted(2 * _squares(mu, mu2, masks) / traces.clamp(min=_TINY), applied)


@in_float32
def gaussian_kl(mu: Tensor, mu2: Tensor, var: Tensor, var2: Tensor) -> Tensor:
    """The sum of the divergences of two views' Gaussians in both directions, mean over images, eq. 5 and 6.

        KL(N || N2) + KL(N2 || N) = 1/2 sum over j of  [(s - s2)^2 + (mu - mu2)^2 (s + s2)] / (s s2)

    The logarithms cancel. The printed eq. 6 lacks the constant -d, without which equal Gaussians are d apart.

    Args:
        mu, mu2: the means of two views of the same images, `b d`.
        var, var2: their variances s and s2, `b d`, positive; smaller ones than 1e-12 count as 1e-12.

    Returns:
        A scalar, at least 0.
    """
    s, s2 = var.clamp(min=_TINY), var2.clamp(min=_TINY)
    # Two divisions, because the product may underflow.
    terms = ((s - s2).square() + (mu - mu2).square() * (s + s2)) / s / s2
    return terms.sum(1).mean() / 2


@in_float32
def unit_prior(var: Tensor) -> Tensor:
    """The divergence from Gaussians with unit variances and the same means, mean over images; not in the paper.

        1/2 sum over j of  s - log s - 1

    Args:
        var: variances s, `b d`, positive; smaller ones than 1e-12 count as 1e-12.

    Returns:
        A scalar, at least 0.
    """
    s = var.clamp(min=_TINY)
    return (s - s.log() - 1).sum(1).mean() / 2


def _squares(z: Tensor, z2: Tensor, masks: Tensor) -> Tensor:
    """Squared distances in the subspaces, `b k`. A matrix product, because `b k d` would not fit into memory."""
    return (z - z2).square() @ masks.square()


def _counted(distances: Tensor, applied: Tensor | None) -> Tensor:
    """`b k` to the mean over images of the mean over the subspaces that count."""
    if applied is None:
        return distances.mean()
    found = distances.masked_fill(~applied, 0).sum(1) / applied.sum(1).clamp(min=1)
    return found.mean()
