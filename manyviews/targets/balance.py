"""Sinkhorn's balance of a teacher's outputs, in the place of a center. DINOv2, Oquab et al. 2024, after SwAV."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from manyviews.objectives import sinkhorn


class Balance(nn.Module):
    """Distributions that use each prototype equally often over the batch of all ranks: see `objectives.sinkhorn`.

    It has no state: a center remembers earlier batches, and a balance needs none.

    Args:
        iterations: of Sinkhorn's algorithm; 3 in the papers.
    """

    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations

    def targets(self, outputs: Sequence[Tensor], temperature: float, count: Sequence[Tensor] = ()) -> list[Tensor]:
        """Distributions of a step's outputs, `... dim` each, balanced together, without gradient.

        Args:
            outputs: of the step's views.
            temperature: above 0.
            count: bool `...` for each, the outputs that are compared; all if empty.
        """
        rows = torch.cat([x.detach().flatten(0, -2) for x in outputs])
        used = torch.cat([c.flatten() for c in count]) if count else None
        found = sinkhorn(rows, temperature, self.iterations, used).split([x.shape[:-1].numel() for x in outputs])
        return [q.view(x.shape) for q, x in zip(found, outputs, strict=True)]
