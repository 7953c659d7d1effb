"""Generalized-mean pooling (Radenovic et al. 2019), and the descriptor of copies that is made with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


def gem(x: Tensor, p: Tensor | float, eps: float = 1e-6) -> Tensor:
    """`(mean over n of max(x, eps)^p)^(1/p)`, `b n d` to `b d`, at least in float32: see `GeM`."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(min=eps)
    # In units of the largest, on which the result does not depend: powers neither overflow nor all vanish.
    unit = x.detach().amax(1, keepdim=True)
    return (x / unit).pow(p).mean(1).pow(1 / p) * unit[:, 0]


class GeM(nn.Module):
    """Generalized mean over places, `b n d` to `b d`: the mean for p = 1, the more like the maximum the larger p is.

        (mean over n of  max(x, eps)^p)^(1/p)

    p is one learned number for all dimensions, and counts as 1 where it is less; there its gradient is that at 1 if it
    leads up, and none if it leads further down, so that p can come back. Features are taken for what follows a ReLU: of
    those that are negative, as a vision transformer's may be, nothing is left. In float32 even under autocast.

    Args:
        p: to start from.
        eps: the least a feature counts as, so that its gradient is finite.

    Attributes:
        p: a vector of one number.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return gem(x.to(torch.promote_types(x.dtype, self.p.dtype)), _AtLeastOne.apply(self.p), self.eps)


class Descriptor(nn.Module):
    """What SSCD (Pizzi et al. 2022) puts in the place of a network's pooling: a map `b d h w` to unit rows, `b dim`.

    GeM with p = 3, which stays, a linear layer, and length one.

    Args:
        width: dimensions of the map.
        dim: dimensions of the descriptor.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return normalize(self.proj(gem(x.flatten(2).transpose(1, 2), 3.0)), dim=1)


class _AtLeastOne(torch.autograd.Function):
    """max(1, p), whose gradient below 1 is kept where descent along it raises p."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        ctx.save_for_backward(p)
        return p.clamp(min=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return torch.where((p < 1) & (grad > 0), 0, grad)
