"""The moving mean of a teacher's outputs. DINO, Caron et al. 2021, eq. 4."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manyviews import distributed
from manyviews.objectives import sharpen
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

    def targets(self, outputs: Sequence[Tensor], temperature: float, count: Sequence[Tensor] = ()) -> list[Tensor]:
        """Centered and sharpened distributions of a step's outputs, `... dim` each, without gradient.

        The center moves toward the mean of the outputs when the step is over: it is used before it has seen them. It is
        the mean of all of them, also of those that do not `count`.
        """
        self._seen += [t.detach().float().flatten(0, -2).mean(0) for t in outputs]
        return [sharpen(t, self.value, temperature) for t in outputs]

    def move(self, at: Progress) -> None:
        self.update(torch.stack(self._seen).mean(0))
        self._seen.clear()

    def forget(self) -> None:
        self._seen.clear()

    @torch.no_grad()
    def update(self, mean: Tensor) -> None:
        """Move toward the mean output, `dim`, averaged over all ranks."""
        self.value.lerp_(distributed.mean(mean.to(self.value.dtype)), 1 - self.momentum)
