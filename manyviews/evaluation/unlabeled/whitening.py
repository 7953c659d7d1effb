"""Whitening: features without a mean and without correlations, so that one similarity means the same everywhere.

SSCD (Pizzi et al. 2022, section 4.4) whitens its descriptors before it compares them, by statistics of many images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

_LEAST = 0.01  # share of the mean variance that a direction has at least
_EACH = 4  # images for each dimension that statistics need
_MOST = 100_000  # images that they are taken from
_ROWS = 65536


@dataclass(frozen=True)
class Whitening:
    """`(x - mean) @ matrix`, of length one.

    Attributes:
        mean: float32, `d`.
        matrix: float32, `d d`, the inverse square root of the covariance.
    """

    mean: Tensor
    matrix: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Whitening | None:
        """From features, `n d`; None if they are fewer than four for each dimension.

        A direction whose variance is below a hundredth of the mean variance counts as having that.
        """
        if len(x) < _EACH * x.shape[1]:
            return None
        z = x[torch.linspace(0, len(x) - 1, min(len(x), _MOST)).long()].double()
        values, vectors = torch.linalg.eigh(z.T.cov())
        scale = values.clamp(min=_LEAST * float(values.mean())).rsqrt()
        return cls(z.mean(0).float(), (vectors * scale @ vectors.T).float())

    def __call__(self, x: Tensor) -> Tensor:
        """Whitened features of length one: `n d`, of the type of `x`."""
        parts = [normalize((part.float() - self.mean) @ self.matrix, dim=1).to(x.dtype) for part in x.split(_ROWS)]
        return torch.cat(parts)
