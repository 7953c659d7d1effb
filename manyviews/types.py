"""What travels between the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Backward = Literal["per_view", "recompute", "joint"]
"""When the terms of a step are backpropagated: see `manyviews.settings.Step`."""


@dataclass(frozen=True)
class Batch:
    """The images of a step, before any view is made of them: an index, and columns with one row per image.

    Two columns are always there. A *canvas* is an image resampled onto an `s` by `s` grid, whatever its shape, so that
    a batch is one tensor without padding; its *extent* is the true shape, from which crops get their true aspect ratio.
    Further columns, such as captions, are there when a view needs them.

    Attributes:
        index: int64, `b`, each image's stable number in its source.
        columns: by name, `b ...` each. "pixels": uint8, `b 3 s s`, RGB. "extent": int64, `b 2`, height and width of the
            original images in pixels.
    """

    index: Tensor
    columns: Mapping[str, Tensor]

    @classmethod
    def of(cls, pixels: Tensor, extent: Tensor, index: Tensor, **columns: Tensor) -> Batch:
        """A batch of canvases and what else is known of them."""
        return cls(index, {"pixels": pixels, "extent": extent, **columns})

    @property
    def pixels(self) -> Tensor:
        return self.columns["pixels"]

    @property
    def extent(self) -> Tensor:
        return self.columns["extent"]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor | slice) -> Batch:
        """Some of the images, in this order: int64 indices, or a slice."""
        return self.map(lambda x: x[rows])

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `f` applied to its index and to every column."""
        return Batch(f(self.index), {name: f(x) for name, x in self.columns.items()})

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; asynchronous when its memory is pinned."""
        return self.map(lambda x: x.to(device, non_blocking=True))

    def chunk(self, parts: int) -> list[Batch]:
        """Split into `parts` batches of nearly equal size, without copying."""
        size = -(-len(self) // parts)
        return [self[slice(start, start + size)] for start in range(0, len(self), size)]


@dataclass(frozen=True)
class Progress:
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
