"""The projectors and predictors of nearly every method."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import nn


def mlp(*dims: int, norm: bool = True, last_norm: Literal["bn", "bn_no_affine"] | None = None) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them: `b dims[0]` to `b dims[-1]`.

    A linear layer has no bias where BatchNorm follows, which would remove it.

    Args:
        dims: dimensions of the input, the hidden layers and the output.
        norm: whether hidden layers have BatchNorm.
        last_norm: normalization of the output: none, BatchNorm, or BatchNorm without scale and shift.
    """
    *hidden, (last_in, last_out) = pairwise(dims)
    layers: list[nn.Module] = []
    for n_in, n_out in hidden:
        layers.append(nn.Linear(n_in, n_out, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm1d(n_out))
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(last_in, last_out, bias=last_norm is None))
    if last_norm is not None:
        layers.append(nn.BatchNorm1d(last_out, affine=last_norm == "bn"))
    return nn.Sequential(*layers)
