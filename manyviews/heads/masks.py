"""Masks that each select a subspace of an embedding. MAST, Huang et al. 2023."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

Kind = Literal["learned", "disjoint", "none"]


class Masks(nn.Module):
    """Masks of `dim` dimensions, none of them negative: called without arguments, `dim count`.

    "learned" masks are the ReLU of a matrix. Every mask starts near one on dimensions of its own, a `count`-th of them,
    and near zero on the others (appendix A). There its own follow "a Gaussian distribution" that is not named, here of
    mean 1 and standard deviation 0.1, and on all dimensions noise of mean 0.2 and variance 0.01 is added.

    "disjoint" masks are fixed at one on each one's own dimensions and at zero elsewhere (table 5, row 7). "none" is a
    single mask of ones, whatever the `count` (table 6, "uncertainty only").

    The ReLU alone leaves masks "free" to shrink, and they do in MAST's loss, whose terms are the smaller the smaller
    they are, until they are zero and stay so. "fixed" gives each the length of a disjoint one, the root of
    `dim / count`, so that it changes its shape and not its size; this is not in the paper.

    An optimizer that tells weights from biases by their shape treats learned masks as it does a layer's weights: they
    decay, LARS gives all of them one rate by the norm of the matrix, and Muon makes their updates orthogonal.

    Attributes:
        weight: `dim count`, the matrix; a parameter if it is learned.
    """

    weight: Tensor

    def __init__(
        self, dim: int, count: int, kind: Kind = "learned", *, norm: Literal["free", "fixed"] = "free"
    ) -> None:
        super().__init__()
        self.length = (dim / count) ** 0.5 if norm == "fixed" and kind == "learned" else None
        # Parts differ by one dimension where `count` does not divide `dim`, as 5 does not divide 4096.
        owner = torch.arange(dim) * count // dim
        own = (owner[:, None] == torch.arange(count)).float()
        if kind == "learned":
            drawn = own * (1 + 0.1 * torch.randn(dim, count)) + 0.2 + 0.1 * torch.randn(dim, count)
            self.weight = nn.Parameter(drawn)
        else:
            self.register_buffer("weight", own if kind == "disjoint" else torch.ones(dim, 1), persistent=False)

    def forward(self) -> Tensor:
        masks = self.weight.relu()
        return masks if self.length is None else self.length * normalize(masks, dim=0)
