"""Heads that score an embedding against learned prototypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from manyviews.errors import UserError
from manyviews.targets.moving import Moving
from manyviews.types import Progress


class Prototypes(Moving):
    """Cosine similarities with `k` learned directions: `b dim` to `b k`, in [-1, 1]. SwAV, Caron et al. 2020.

    The prototypes are of unit length at the start and after every optimizer step; between them the gradient is that of
    a plain linear layer. The scores are computed in float32 even under autocast: they are divided by 0.05 before their
    exponential is taken.

    Attributes:
        weight: `k dim`.
    """

    def __init__(self, dim: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normalize(torch.randn(k, dim)))

    def forward(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return linear(normalize(z.to(self.weight.dtype)), self.weight)

    def move(self, at: Progress) -> None:
        self.normalize_()

    @torch.no_grad()
    def normalize_(self) -> None:
        """Give each prototype unit length again, in place."""
        self.weight.copy_(normalize(self.weight))


class DINOHead(nn.Module):
    """Three layers, a normalized bottleneck, and a layer of prototypes: `... embed_dim` to `... prototypes`.

    DINO, Caron et al. 2021, appendix C. GELU between the layers; BatchNorm before it, if `norm`, as for ResNets.

    Attributes:
        last: the layer of prototypes, whose weight vectors count by their direction only.
    """

    def __init__(
        self, embed_dim: int, prototypes: int, hidden_dim: int = 2048, bottleneck_dim: int = 256, norm: bool = False
    ) -> None:
        super().__init__()

        def hidden(n_in: int) -> list[nn.Module]:
            return [nn.Linear(n_in, hidden_dim), *([nn.BatchNorm1d(hidden_dim)] if norm else []), nn.GELU()]

        self.mlp = nn.Sequential(*hidden(embed_dim), *hidden(hidden_dim), nn.Linear(hidden_dim, bottleneck_dim))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = _Directions(bottleneck_dim, prototypes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.mlp(x)
        # The smallest length that `normalize` divides by is zero in float16.
        z = z.to(torch.promote_types(z.dtype, self.last.weight.dtype))
        found: Tensor = self.last(normalize(z, dim=-1))
        return found


class _Directions(nn.Linear):
    """A weight-normalized linear layer with a gain of 1 (Salimans & Kingma 2016), in float32 like `Prototypes`."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return linear(x.to(self.weight.dtype), normalize(self.weight))


def centers(x: Tensor, k: int) -> Tensor:
    """k-means of features of unit length, `n d` to `k d`, on the CPU; rows of zeros do not count.

    Raises:
        UserError: fewer features than centers.
    """
    from sklearn.cluster import MiniBatchKMeans

    there = normalize(x[x.abs().sum(1) > 0].float())
    if len(there) < k:
        raise UserError(f"There are {len(there)} images and {k} prototypes: lower --set method.prototypes.")
    means = MiniBatchKMeans(k, n_init=1, batch_size=max(4096, 4 * k), random_state=0).fit(there.cpu().numpy())
    return normalize(torch.from_numpy(means.cluster_centers_).to(x))
