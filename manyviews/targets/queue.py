"""A queue of earlier batches' keys. Momentum Contrast, He et al. 2020."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from manyviews import distributed
from manyviews.targets.moving import Moving
from manyviews.types import Progress


class Queue(Moving):
    """The newest `size` keys of all ranks, first in, first out. It starts with random directions.

    Args:
        size: keys it holds; batches of any size fit.
        dim: dimensions of a key.

    Attributes:
        rows: float32, `size dim`, normalized, in no particular order.
    """

    rows: Tensor
    seen: Tensor  # keys so far; the next one goes to this place modulo size. A tensor: no step waits for the device

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", normalize(torch.randn(size, dim)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

        self._fresh: list[Tensor] = []  # keys of the step under way

    def push(self, keys: Tensor) -> None:
        """Keys of the step under way, `b dim`; they enter the queue when the step is over."""
        self._fresh.append(keys.detach())

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """The row with the largest cosine similarity to each of `z`, `b dim`: normalized, without gradient."""
        similarity = normalize(z.to(self.rows.dtype)) @ self.rows.T
        return self.rows[similarity.argmax(1)]

    def move(self, at: Progress) -> None:
        self.enqueue(torch.cat(self._fresh))
        self._fresh.clear()

    def forget(self) -> None:
        self._fresh.clear()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest rows by the keys of all ranks, `b dim` on each, in the order of the ranks.

        Call it when the backward pass is over: a loss computed from `rows` may have kept them.
        """
        size = len(self.rows)
        keys = distributed.gather(normalize(keys.to(self.rows.dtype)))
        skipped = max(0, len(keys) - size)  # of two keys for one place, accelerators may write either
        where = (self.seen + torch.arange(skipped, len(keys), device=keys.device)) % size
        self.rows.index_copy_(0, where, keys[skipped:])
        self.seen.add_(len(keys))
