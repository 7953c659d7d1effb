"""What features look like without labels: how many dimensions they use, and how they lie on the sphere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def singular_values(x: Tensor) -> Tensor:
    """Singular values of features (`n d`), descending: float64, `min(n, d)`.

    From the smaller Gram matrix in float64, which is several times faster than a decomposition of `x`. Values below
    1e-8 of the largest are lost in rounding.
    """
    x = x.double()
    gram = x.T @ x if len(x) > x.shape[1] else x @ x.T
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)


def rankme(x: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of features (`n d`): exp of the entropy of their normalized singular values, in [1, min(n, d)].

    Garrido et al. 2023, equation 1: features are not centered. Compare it along a run, not between methods. Features
    that are all zero have rank 1.
    """
    s = singular_values(x)
    p = s / s.sum().clamp(min=1e-300) + eps
    return max(1.0, torch.exp(-(p * p.log()).sum()).item()) if s.sum() > 0 else 1.0


def spread(x: Tensor) -> float:
    """Standard deviation over images of the l2-normalized features (`n d`), mean over dimensions, times sqrt(d).

    1 when they are uniform on the sphere, 0 when they have collapsed to a point (Chen and He 2021, figure 2).
    """
    z = F.normalize(x.double(), dim=1)
    return (z.std(dim=0, correction=0).mean() * x.shape[1] ** 0.5).item()


def alignment(za: Tensor, zb: Tensor) -> float:
    """Mean squared distance of the l2-normalized features of two views of the same images (both `n d`), in [0, 4].

    Wang and Isola 2020, equation 6 with alpha = 2. Lower is better.
    """
    return (F.normalize(za.double(), dim=1) - F.normalize(zb.double(), dim=1)).square().sum(1).mean().item()


def uniformity(z: Tensor, t: float = 2.0) -> float:
    """Log of the mean Gaussian potential exp(-t ||z_i - z_j||^2) of all pairs i < j of l2-normalized features (`n d`).

    Wang and Isola 2020, equation 7. In [-4 t, 0]; lower is better; 0 is collapse. Memory grows with n^2: give it some
    thousands.
    """
    distances = torch.pdist(F.normalize(z.double(), dim=1)).square()
    return (torch.logsumexp(-t * distances, 0) - torch.tensor(float(len(distances))).log()).item()
