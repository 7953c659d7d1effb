"""Directions of embeddings, also of those that have none."""

from __future__ import annotations

from torch import Tensor

_SHORTEST = 1e-12


def directions(x: Tensor) -> Tensor:
    """Rows of length 1; a row shorter than 1e-12 has no direction and becomes zero, without a gradient.

    PyTorch's `normalize` and `cosine_similarity` divide such a row by their epsilon, and so its gradient: a row of
    zeros, which is all that a dead layer gives, then has a gradient of 1e11 and more.
    """
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length.masked_fill(length < _SHORTEST, float("inf"))
