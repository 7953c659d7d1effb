"""The moving mean of a teacher's outputs. DINO, Caron et al. 2021, eq. 4."""

from __future__ import annotations

import torch
from torch import Tensor

from manyviews import distributed
from manyviews.targets.moving import Moving
from manyviews.types import Progress


class Center(Moving):
    """A running mean over batches, from zero. Subtracted from the teacher's outputs, it keeps any one dimension from
    dominating.

    Args:
        dim: dimensions of the outputs.
        momentum: how much of the center stays at each update, in [0, 1].

    Attributes:
        value: float32, `dim`.
    """

    value: Tensor

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(dim))
        self.momentum = momentum
        self._seen: list[Tensor] = []  # mean outputs in the step under way

    @torch.no_grad()
    def push(self, outputs: Tensor) -> None:
        """Outputs of the step under way, `... dim`; the center moves toward their mean when the step is over."""
        self._seen.append(outputs.float().flatten(0, -2).mean(0))

    def move(self, at: Progress) -> None:
        self.update(torch.stack(self._seen).mean(0))
        self._seen.clear()

    @torch.no_grad()
    def update(self, mean: Tensor) -> None:
        """Move toward the mean output, `dim`, averaged over all ranks."""
        self.value.lerp_(distributed.mean(mean.to(self.value.dtype)), 1 - self.momentum)
