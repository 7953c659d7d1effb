"""Pooling whose kind is learned. Radenovic et al. 2019."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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
        x = x.to(torch.promote_types(x.dtype, self.p.dtype)).clamp(min=self.eps)
        # In units of the largest, on which the result does not depend: powers neither overflow nor all vanish.
        unit = x.detach().amax(1, keepdim=True)
        p = _AtLeastOne.apply(self.p)
        return (x / unit).pow(p).mean(1).pow(1 / p) * unit[:, 0]


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
