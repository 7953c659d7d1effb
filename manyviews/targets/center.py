"""The moving mean of a teacher's outputs. DINO, Caron et al. 2021, eq. 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyviews import distributed


class Center(nn.Module):
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

    @torch.no_grad()
    def update(self, mean: Tensor) -> None:
        """Move toward the mean output, `dim`, averaged over all ranks."""
        self.value.lerp_(distributed.mean(mean.to(self.value.dtype)), 1 - self.momentum)
