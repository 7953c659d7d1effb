"""Masks that each select a subspace of an embedding. MAST, Huang et al. 2023."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

Kind = Literal["gates", "learned", "disjoint", "none"]


class Masks(nn.Module):
    """Masks of `dim` dimensions, none of them negative: called without arguments, `dim count`.

    "learned" masks are the paper's, the ReLU of a matrix. Every mask starts near one on dimensions of its own, a
    `count`-th of them, and near zero on the others (appendix A). There its own follow "a Gaussian distribution" that is
    not named, here of mean 1 and standard deviation 0.1, and on all dimensions noise of mean 0.2 and variance 0.01 is
    added.

    "gates" start from the same matrix, and each column is projected: see `gates`. They are not in the paper.

    "disjoint" masks are fixed at one on each one's own dimensions and at zero elsewhere (table 5, row 7). "none" is a
    single mask of ones, whatever the `count` (table 6, "uncertainty only").

    The ReLU alone leaves masks "free" to shrink, and they do in MAST's loss, whose terms are the smaller the smaller
    they are, until they are zero and stay so. "fixed" gives each the length of a disjoint one, the root of
    `dim / count`. That does not help: within some epochs each mask has a single dimension left, and it is one that the
    embedding has given up. It is here to be compared with. Neither is in the paper.

    An optimizer that tells weights from biases by their shape treats learned masks as it does a layer's weights: they
    decay, LARS gives all of them one rate by the norm of the matrix, and Muon makes their updates orthogonal.

    Attributes:
        kind: as given.
        weight: `dim count`, the matrix; a parameter if it is learned.
    """

    weight: Tensor

    def __init__(
        self, dim: int, count: int, kind: Kind = "learned", *, norm: Literal["free", "fixed"] = "free"
    ) -> None:
        super().__init__()
        self.kind, self.total = kind, dim / count
        self.length = self.total**0.5 if norm == "fixed" and kind == "learned" else None
        # Parts differ by one dimension where `count` does not divide `dim`, as 5 does not divide 4096.
        owner = torch.arange(dim) * count // dim
        own = (owner[:, None] == torch.arange(count)).float()
        if kind in ("gates", "learned"):
            drawn = own * (1 + 0.1 * torch.randn(dim, count)) + 0.2 + 0.1 * torch.randn(dim, count)
            self.weight = nn.Parameter(drawn)
        else:
            self.register_buffer("weight", own if kind == "disjoint" else torch.ones(dim, 1), persistent=False)

    def forward(self) -> Tensor:
        if self.kind == "gates":
            return gates(self.weight, self.total)
        masks = self.weight.relu()
        return masks if self.length is None else self.length * normalize(masks, dim=0)


def gates(u: Tensor, total: float) -> Tensor:
    """The nearest columns whose entries lie in [0, 1] and add up to `total`: `d k`, with the projection's gradient.

        m_j = min(1, max(0, u_j - t)),  t such that  sum over j of m_j = total

    So a mask can neither shrink nor have fewer than `total` dimensions; disjoint masks are such columns. Entries
    strictly between 0 and 1 have a gradient, which adds up to zero over them; the others have none.

    Args:
        u: `d k`, any values.
        total: in [0, d].
    """
    d = len(u)
    with torch.no_grad():
        # The sum falls with t, along lines whose corners are where an entry leaves 1 and where it reaches 0.
        corners, order = torch.cat([u - 1, u]).sort(0)
        moving = torch.where(order < d, 1.0, -1.0).cumsum(0)
        sums = d - torch.cat([torch.zeros_like(u[:1]), (moving[:-1] * corners.diff(dim=0)).cumsum(0)])
        at = ((sums >= total).sum(0, keepdim=True) - 1).clamp(0)
        t = corners.gather(0, at) + (sums.gather(0, at) - total) / moving.gather(0, at).clamp(min=1)
        inner, full = (u > t) & (u < t + 1), u >= t + 1
    # Once more, from the entries between the bounds: free of the rounding of long sums, and with a gradient.
    count = inner.sum(0)
    exact = ((u * inner).sum(0) + full.sum(0) - total) / count.clamp(min=1)
    return (u - torch.where(count > 0, exact, t)).clamp(0, 1)
