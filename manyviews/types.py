"""What travels between the stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Memory = Literal["views", "constant", "all"]
"""How much of a step is held at a time: see `manyviews.recipe.Step`."""


@dataclass(frozen=True)
class Canvases:
    """A batch of decoded images, before any view is made of them.

    A canvas is an image resampled onto an `s` by `s` grid, whatever its shape, so that a batch is one tensor
    without padding. `extent` keeps the true shape, from which crops get their true aspect ratio.

    Attributes:
        pixels: uint8, `b 3 s s`, RGB.
        extent: int64, `b 2`, height and width of the original images in pixels.
        index: int64, `b`, each image's stable number in its source.
    """

    pixels: Tensor
    extent: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> Canvases:
        """Some of the batch, in this order: int64 indices."""
        return Canvases(self.pixels[rows], self.extent[rows], self.index[rows])

    def to(self, device: torch.device | str) -> Canvases:
        """The same batch on `device`; asynchronous when the memory is pinned."""
        move = [x.to(device, non_blocking=True) for x in (self.pixels, self.extent, self.index)]
        return Canvases(*move)

    def chunk(self, parts: int) -> list[Canvases]:
        """Split into `parts` batches of nearly equal size, without copying."""
        fields = zip(self.pixels.chunk(parts), self.extent.chunk(parts), self.index.chunk(parts), strict=True)
        return [Canvases(*f) for f in fields]


@dataclass(frozen=True)
class At:
    """A place in the training schedule.

    Attributes:
        step: optimizer steps taken so far, from 0.
        steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one pass over the data.
    """

    step: int
    steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """Passes over the data completed so far."""
        return self.step // self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Fraction of the run completed, in [0, 1)."""
        return self.step / self.steps
