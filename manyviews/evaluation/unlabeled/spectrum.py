"""Features without labels: the dimensions that they use, and their distribution on the sphere.

All in float64. None of these numbers tells how good an encoder is for a task: noise has full rank. They compare
checkpoints and settings of one method (Garrido et al. 2023), and reveal a collapse.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

FIT = (4, 100)
"""First and last eigenvalue, counted from 1, for the fit of alpha-ReQ's line."""

COLLAPSED = 0.05
"""The spread of features below which all images look the same."""

_ROUNDING = 1e-14  # share of the mean squared length of float32 features; a smaller variance is rounding


def singular_values(x: Tensor) -> Tensor:
    """Singular values of features (`n d`), descending: float64, `min(n, d)`.

    They come from the smaller Gram matrix in float64, several times faster than a decomposition of `x`. Values below
    1e-8 of the largest are lost in rounding.
    """
    x = x.double()
    gram = x.T @ x if len(x) > x.shape[1] else x @ x.T
    found: Tensor = torch.linalg.eigvalsh(gram)
    return found.clamp(min=0).sqrt().flip(0)


def eigenvalues(x: Tensor) -> Tensor:
    """Eigenvalues of the covariance (divided by n) of features (`n d`), descending: float64, `min(n, d)`.

    0 where features vary by rounding alone.
    """
    x = x.double()
    found = singular_values(x - x.mean(0)).square() / len(x)
    return torch.where(found > _ROUNDING * x.square().sum(1).mean(), found, 0.0)


def rankme(x: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of features (`n d`): exp of the entropy of their normalized singular values, in [1, min(n, d)].

    Garrido et al. 2023, equation 1: features are not centered. Compare it along a run, not between methods. Features
    that are all zero have rank 1.
    """
    return _effective_rank(singular_values(x), eps)


def _effective_rank(s: Tensor, eps: float) -> float:
    p = s / s.sum().clamp(min=1e-300) + eps
    return max(1.0, torch.exp(-(p * p.log()).sum()).item()) if s.sum() > 0 else 1.0


def participation(x: Tensor) -> float:
    """Participation ratio of features (`n d`): (sum of eigenvalues)^2 / sum of their squares, of the covariance.

    In [1, min(n, d)], and 1 for features that do not vary. It counts the few dimensions in which features vary most,
    while `rankme` counts many small ones as well.
    """
    return _participation(eigenvalues(x))


def _participation(v: Tensor) -> float:
    return (v.sum().square() / v.square().sum()).item() if v.sum() > 0 else 1.0


def alpha_req(x: Tensor, fit: tuple[int, int] = FIT) -> float:
    """Decay of the eigenvalues of the covariance of features (`n d`): alpha of the power law i^-alpha.

    Agrawal et al. 2022 (alpha-ReQ) find features good near alpha = 1: below it the tail is noise, above it few
    dimensions hold everything. A line is fitted to log eigenvalue over log i by least squares with weights 1/i, over
    the middle of the spectrum: from the 4th to the 100th eigenvalue, as in the authors' code, or to nine tenths of the
    nonzero ones if these are fewer, because the last ones fall off. The range matters: compare only fits over the same
    range, of features with the same width.

    NaN where fewer than two eigenvalues lie in the range.
    """
    return _alpha(eigenvalues(x), fit)


def _alpha(v: Tensor, fit: tuple[int, int] = FIT) -> float:
    v = v[v > 0]
    first, last = fit
    last = min(last, math.floor(0.9 * len(v)))
    if last - first < 1:
        return math.nan
    i = torch.arange(first, last + 1, dtype=torch.float64)
    return -_slope(i.log(), v[first - 1 : last].log().cpu(), 1 / i)


def _slope(x: Tensor, y: Tensor, weight: Tensor) -> float:
    """Slope of the line through weighted points."""
    weight = weight / weight.sum()
    dx, dy = x - (weight * x).sum(), y - (weight * y).sum()
    return ((weight * dx * dy).sum() / (weight * dx.square()).sum()).item()


def spectrum_auc(x: Tensor) -> float:
    """Area under the cumulative explained-variance curve of features (`n d`), in (1/2, 1]. Lower is better.

    Li et al. 2022: mean over i of the share of the i largest singular values of the centered features in the sum of
    all. It is 1/2 + 1/2d when all dimensions are used alike, 1 when one holds everything, and 1 for features that do
    not vary. With fewer images than dimensions the rest counts as unused.
    """
    return _auc(eigenvalues(x), x.shape[1])


def _auc(v: Tensor, d: int) -> float:
    s = v.sqrt()
    if not s.sum() > 0:
        return 1.0
    return ((s.cumsum(0).sum() / s.sum() + (d - len(s))) / d).item()


def lidar(views: Tensor, ridge: float = 1e-4, eps: float = 1e-7) -> float:
    """Effective rank of the linear discriminant matrix of features of `q` views of each of `n` images: `n q d`.

    Thilak et al. 2024 (LiDAR): each image is a class, and its views are the items. S_b is the covariance of the
    classes' means, S_w that of the views around them plus `ridge` times the identity. LiDAR is exp of the entropy of
    the normalized eigenvalues of S_w^-1/2 S_b S_w^-1/2, in [1, min(n - 1, d)]: the number of dimensions that tell
    images apart in spite of the augmentations. Unlike RankMe it weighs a dimension by its signal.

    The paper takes 50 views of 1,000 images, finds 10 views within a percent of that, and needs more images than
    dimensions. It prints neither constant: the ridge is that of other implementations, `eps` is RankMe's. The ridge is
    absolute, so scale features with variances near it up first. Features that do not vary have rank 1.

    Raises:
        ValueError: fewer than two images or two views.
    """
    n, q = views.shape[:2]
    if n < 2 or q < 2:
        raise ValueError(f"LiDAR needs two or more images of two or more views, not {n} of {q}")
    views = views.double()
    centers = views.mean(1)
    if not eigenvalues(centers).sum() > 0:
        return 1.0
    within = (views - centers[:, None]).flatten(0, 1)
    values, vectors = torch.linalg.eigh(within.T @ within / (n * (q - 1)))
    # In the basis of S_w's eigenvectors its inverse root is diagonal, and a rotation leaves singular values alone.
    whitened = (centers - centers.mean(0)) @ vectors / (values.clamp(min=0) + ridge).sqrt()
    return _effective_rank(singular_values(whitened / math.sqrt(n - 1)).square(), eps)


def deviations(x: Tensor) -> Tensor:
    """Standard deviation over images of each dimension of features (`n d`): float64, `d`. VICReg keeps them up."""
    return x.double().std(dim=0, correction=0)


def correlation(x: Tensor) -> float:
    """Mean squared correlation of two different dimensions of features (`n d`), over all pairs, in [0, 1].

    0 means no linear redundancy; n images with independent dimensions give 1/(n - 1). Dimensions that do not vary are
    left out; with fewer than two that do it is 0.
    """
    alive = varying(x)
    d = int(alive.sum())
    if d < 2:
        return 0.0
    x = x[:, alive].double()
    z = (x - x.mean(0)) / deviations(x)
    gram = z.T @ z if len(z) > d else z @ z.T  # of the same Frobenius norm
    return max(0.0, ((gram / len(x)).square().sum().item() - d) / (d * (d - 1)))


def varying(x: Tensor) -> Tensor:
    """Whether each dimension of features (`n d`) varies by more than rounding: bool, `d`."""
    std = deviations(x)
    found: Tensor = std > _ROUNDING**0.5 * (x.double().mean(0).abs() + std.max())
    return found


def describe(x: Tensor) -> dict[str, float]:
    """All numbers of features (`n d`) of one view of each image, with one decomposition of each kind.

    `rankme`, `participation`, `alpha_req` (missing where there is nothing to fit), `auc` (`spectrum_auc`),
    `correlation`, `constant` (number of dimensions that do not vary) and `spread`.
    """
    v = eigenvalues(x)
    alpha = _alpha(v)
    return {
        "rankme": rankme(x),
        "participation": _participation(v),
        **({} if math.isnan(alpha) else {"alpha_req": alpha}),
        "auc": _auc(v, x.shape[1]),
        "correlation": correlation(x),
        "constant": int((~varying(x)).sum()),
        "spread": spread(x),
    }


def spread(x: Tensor) -> float:
    """Standard deviation over images of the l2-normalized features (`n d`), mean over dimensions, times sqrt(d).

    1 when they are uniform on the sphere, 0 when they have collapsed to a point (Chen and He 2021, figure 2).
    """
    z = F.normalize(x.double(), dim=1)
    return float(z.std(dim=0, correction=0).mean() * x.shape[1] ** 0.5)


def alignment(za: Tensor, zb: Tensor) -> float:
    """Mean squared distance of the l2-normalized features of two views of the same images (both `n d`), in [0, 4].

    Wang and Isola 2020, equation 6 with alpha = 2. Lower is better.
    """
    return (F.normalize(za.double(), dim=1) - F.normalize(zb.double(), dim=1)).square().sum(1).mean().item()


def uniformity(z: Tensor, t: float = 2.0) -> float:
    """Log of the mean Gaussian potential exp(-t ||z_i - z_j||^2) of all pairs i < j of l2-normalized features (`n d`).

    Wang and Isola 2020, equation 7. In [-4 t, 0]; lower is better; 0 is collapse. Memory grows with n^2: give it a few
    thousand.
    """
    distances = torch.pdist(F.normalize(z.double(), dim=1)).square()
    return (torch.logsumexp(-t * distances, 0) - torch.tensor(float(len(distances))).log()).item()
