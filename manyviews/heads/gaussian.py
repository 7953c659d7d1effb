"""A projector that says where an image lies and how sure it is of that. MAST, Huang et al. 2023."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from manyviews.backbones.pooling import GeM


class GaussianProjector(nn.Module):
    """Features of places, `b n embed_dim`, to the mean and the variances of a diagonal Gaussian, `b output_dim` each.

    Two hidden layers with BatchNorm and ReLU are shared; the mean and the variance have a `GeM` and a last layer each
    of their own (section 3.2, appendix A).

    In the paper each head begins with its pooling, behind the shared layers. That is "last", which sends every place
    through the shared layers, at n times the cost: 49 times at 224 pixels. "first", here the default, saves this: it
    pools the places twice, once for each head, and sends both through the shared layers, as one batch, so that
    BatchNorm has the same statistics in evaluation as in training.

    The paper makes variances positive with a ReLU, whose zeros are infinitely sure: two views' divergence is infinite
    then. By default it is a softplus, and a floor is added to either.

    Args:
        embed_dim: width of the features.
        hidden_dim: width of both hidden layers.
        output_dim: dimensions of the Gaussian.
        pooling: before or after the shared layers.
        positive: function that makes variances positive; None if all are one and have no head.
        floor: the least variance.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int = 8192,
        output_dim: int = 4096,
        *,
        pooling: Literal["first", "last"] = "first",
        positive: Literal["softplus", "relu"] | None = "softplus",
        floor: float = 1e-4,
    ) -> None:
        super().__init__()
        self.pooling, self.positive, self.floor = pooling, positive, floor
        heads = 1 if positive is None else 2
        self.pools = nn.ModuleList(GeM() for _ in range(heads))
        self.shared = nn.Sequential(
            *(nn.Linear(embed_dim, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)),
            *(nn.Linear(hidden_dim, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)),
        )
        self.heads = nn.ModuleList(nn.Linear(hidden_dim, output_dim) for _ in range(heads))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.pooling == "first":
            pooled = torch.stack([pool(x) for pool in self.pools], 1)
            # An image's rows are neighbors, so that a batch of several views can be parted into them.
            hidden = self.shared(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2]).unbind(1)
        else:
            places = self.shared(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            hidden = tuple(pool(places) for pool in self.pools)
        mean, *spread = (head(h) for head, h in zip(self.heads, hidden, strict=True))
        if not spread:
            return mean, torch.ones_like(mean)
        # In float32 even under autocast: a divergence is of small differences.
        raw = spread[0].to(torch.promote_types(spread[0].dtype, torch.float32))
        return mean, (softplus(raw) if self.positive == "softplus" else raw.relu()) + self.floor
