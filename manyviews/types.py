"""What travels between the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Backward = Literal["per_view", "recompute", "joint"]
"""When the terms of a step are backpropagated: see `manyviews.settings.Step`."""


@dataclass(frozen=True)
class Canvases:
    """Images of different shapes in one tensor of bytes, each at a place of its own.

    A *canvas* is a decoded image in its own proportions, upright, and never larger than its file. Indexing by rows
    copies no pixels: the canvases of a whole data set and those of a batch may share their bytes.

    Attributes:
        pool: uint8, flat.
        start: int64, `b`, where each image begins in the pool.
        extent: int64, `b 2`, height and width of each image, in pixels.
        pitch: int64, `b 3`, bytes from one channel of an image to the next, from one row to the next, and from one
            pixel to the next.
        channels: of every image.
        room: height and width in which every image fits, known to the host without asking the device.
    """

    pool: Tensor
    start: Tensor
    extent: Tensor
    pitch: Tensor
    channels: int
    room: tuple[int, int]

    @classmethod
    def dense(cls, pixels: Tensor, extent: Tensor | None = None) -> Canvases:
        """Images that fill `b c h w`, uint8, or its upper left corners of height and width `extent`, `b 2`."""
        b, c, h, w = pixels.shape
        start = torch.arange(b, device=pixels.device) * (c * h * w)
        if extent is None:
            extent = torch.tensor([h, w]).to(pixels.device, non_blocking=pixels.is_cuda).expand(b, 2)
        pitch = torch.tensor([h * w, w, 1]).to(pixels.device, non_blocking=pixels.is_cuda).expand(b, 3)
        return cls(pixels.contiguous().view(-1), start, extent.to(pixels.device), pitch, c, (h, w))

    @classmethod
    def packed(cls, images: Sequence[np.ndarray], *, channels: int = 3, pin: bool = False) -> Canvases:
        """Images uint8 `h w c`, copied one after the other; in pinned memory with `pin`."""
        starts = [0, *accumulate(x.size for x in images)]
        pool = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pin)
        if images:
            np.concatenate([x.reshape(-1) for x in images], out=pool.numpy())
        shapes = [(x.shape[0], x.shape[1]) for x in images]
        return cls.tight(pool, starts[:-1], shapes, channels=channels)

    @classmethod
    def tight(
        cls, pool: Tensor, starts: Sequence[int], shapes: Sequence[tuple[int, int]], *, channels: int
    ) -> Canvases:
        """Images `h w c` of these heights and widths in a pool, without gaps: as decoders give them."""
        extent = torch.tensor(shapes, dtype=torch.int64).view(-1, 2)
        one = torch.ones_like(extent[:, 1])
        pitch = torch.stack([one, channels * extent[:, 1], channels * one], 1)
        room = (max((h for h, _ in shapes), default=1), max((w for _, w in shapes), default=1))
        return cls(pool, torch.tensor(starts, dtype=torch.int64), extent, pitch, channels, room)

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, rows: Tensor | slice) -> Canvases:
        """Some of the images, in this order, in the same pool: int64 indices, or a slice."""
        return replace(self, start=self.start[rows], extent=self.extent[rows], pitch=self.pitch[rows])

    def map(self, f: Callable[[Tensor], Tensor]) -> Canvases:
        """The same images with every tensor in another place."""
        return replace(self, pool=f(self.pool), start=f(self.start), extent=f(self.extent), pitch=f(self.pitch))

    def image(self, i: int) -> Tensor:
        """Image `i`, on the CPU: uint8 `c h w`, which shares the pool's memory."""
        h, w = self.extent[i].tolist()
        at = self.pool.storage_offset() + int(self.start[i])
        return self.pool.as_strided((self.channels, h, w), self.pitch[i].tolist(), at)

    def alone(self, *, pin: bool = False) -> Canvases:
        """The same images in a pool of their own, on the CPU."""
        images = [self.image(i).permute(1, 2, 0).numpy() for i in range(len(self))]
        return Canvases.packed(images, channels=self.channels, pin=pin)

    def cut(self, boxes: Tensor, room: tuple[int, int]) -> Tensor:
        """The pixels of a box of each image.

        Args:
            boxes: int64, `b 4`: top, left, height, width.
            room: height and width of the largest box, or more.

        Returns:
            uint8, `b c room`, with the boxes in the upper left corners and zeros beside them.
        """
        (h, w), device = room, self.pool.device
        top, left, tall, wide = boxes.unbind(1)
        y, x = torch.arange(h, device=device), torch.arange(w, device=device)
        planes = self.start[:, None] + torch.arange(self.channels, device=device) * self.pitch[:, :1]
        rows, columns = (top[:, None] + y) * self.pitch[:, 1:2], (left[:, None] + x) * self.pitch[:, 2:]
        inside = (y < tall[:, None])[:, None, :, None] & (x < wide[:, None])[:, None, None]
        where = planes[:, :, None, None] + rows[:, None, :, None] + columns[:, None, None]
        return self.pool[where.where(inside, 0)].mul_(inside)

    def padded(self, room: tuple[int, int] | None = None) -> Tensor:
        """The images as one tensor: uint8, `b c` and `room`, by default their own, in its upper left corners."""
        whole = torch.cat([torch.zeros_like(self.extent), self.extent], 1)
        return self.cut(whole, self.room if room is None else room)


@dataclass(frozen=True)
class Batch:
    """The images of a step, before any view is made of them.

    Attributes:
        index: int64, `b`, each image's stable number in its source.
        canvases: the images.
        columns: what else is known of them, such as captions, by name, `b ...` each: what a view needs.
    """

    index: Tensor
    canvases: Canvases
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, pixels: Tensor, extent: Tensor | None = None, index: Tensor | None = None, **columns: Tensor) -> Batch:
        """A batch of images that fill `b c h w`, uint8, or its upper left corners, `extent`; numbered from 0."""
        index = torch.arange(len(pixels), device=pixels.device) if index is None else index
        return cls(index, Canvases.dense(pixels, extent), columns)

    @property
    def pixels(self) -> Tensor:
        """A copy of the images as one tensor: uint8, `b c h w`, with zeros beside those that are smaller.

        It waits for the device.
        """
        height, width = self.extent.amax(0).tolist() if len(self) else self.canvases.room
        return self.canvases.padded((height, width))

    @property
    def extent(self) -> Tensor:
        """int64, `b 2`, height and width of each image, in pixels."""
        return self.canvases.extent

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor | slice) -> Batch:
        """Some of the images, in this order: int64 indices, or a slice."""
        return Batch(self.index[rows], self.canvases[rows], {name: x[rows] for name, x in self.columns.items()})

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor in another place."""
        return Batch(f(self.index), self.canvases.map(f), {name: f(x) for name, x in self.columns.items()})

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; asynchronous when its memory is pinned, which it is for NVIDIA's GPUs alone."""
        return self.map(lambda x: x.to(device, non_blocking=torch.device(device).type == "cuda"))

    def tensors(self) -> list[Tensor]:
        """Everything that takes memory."""
        canvases = self.canvases
        return [self.index, canvases.pool, canvases.start, canvases.extent, canvases.pitch, *self.columns.values()]

    def chunk(self, parts: int) -> list[Batch]:
        """Split into `parts` batches of nearly equal size, without copying."""
        size = -(-len(self) // parts)
        return [self[slice(start, start + size)] for start in range(0, len(self), size)]


@dataclass(frozen=True)
class Packed:
    """Images of several sizes that go through a transformer in one pass: see `manyviews.backbones.packing`.

    Attributes:
        groups: `b c h w` each, of sizes of their own.
    """

    groups: tuple[Tensor, ...]

    def __len__(self) -> int:
        """Images of all groups."""
        return sum(map(len, self.groups))


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
