"""Batches of canvases for training, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain, pairwise

import numpy as np
import torch
from torch import Tensor

from manyviews.data.canvas import Progress, in_threads, load_canvas, load_canvases, reading_ahead
from manyviews.data.columns import Column, column, complete
from manyviews.data.decode import BadImage
from manyviews.data.order import nearby, order
from manyviews.data.source import Source
from manyviews.errors import UserError
from manyviews.machine import cores, free_memory
from manyviews.types import Batch


class Loader:
    """Shuffled batches of a source's canvases, resumable at any step.

    The order of an epoch is a pure function of (seed, epoch). A global batch is `world_size` batches of that order, and
    rank r takes the r-th, so the global batch does not depend on the number of ranks. An incomplete last one is
    dropped. A good image of a later step replaces a bad one: the next in its column of the epoch's batches. So no batch
    is full of one image when all images of a folder are bad.

    A source of many blocks that are best read together has another order. It keeps the images of a block near each
    other, and each rank reads only its own blocks, about once an epoch (see `nearby`). Only this order depends on the
    number of ranks. It is the same in memory, so that a run does not depend on how much memory is free.

    If `memory` can hold all canvases, they are decoded at the start. Otherwise a thread for each core decodes the next
    batches while earlier ones are in use. The batches are the same. Canvases in memory move to the GPU if they take at
    most a quarter of its free memory; other batches reach it from pinned memory.

    Args:
        source: the images.
        size: side of the canvases, in pixels.
        batch: images per rank and step.
        columns: further columns of the batches. "label": int64, `b`, in [0, number of classes). "text": uint8, `b n`, a
            caption in UTF-8 followed by zeros; `n` is the length in bytes of the longest caption, at most 512. An image
            with several captions gets one of them in each epoch.
        seed: seed of the order and of the choice of captions.
        rank: this process's number.
        world_size: how many processes share the global batch.
        memory: most bytes of canvases in this process; half of its share of the free memory is the limit anyway.
        device: the device that uses the batches. They are on it already if all canvases fit, else on the CPU.
        progress: called with (done, total) while canvases are decoded into memory.

    Attributes:
        source: the images, without those that lack one of the columns.
        notes: sentences for people about images left out and captions cut.
        steps_per_epoch: global batches in one epoch.
        in_memory: whether all canvases were decoded at the start.
        by_rank: whether the order depends on the number of ranks.

    Raises:
        UserError: the source has fewer images than one global batch. If all are decoded at the start, this counts good
            ones; otherwise iterating raises when there is no good image. Also if a column is unknown, or no image has
            it.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        batch: int,
        *,
        columns: Sequence[str] = (),
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        memory: int | None = None,
        device: torch.device | None = None,
        progress: Progress | None = None,
    ) -> None:
        source, self.notes = complete(source, columns)
        if len(source) < batch * world_size:
            which = " with a caption" if self.notes else ""
            raise UserError(
                f"{source.name} has {len(source)} images{which}, fewer than one batch of {batch * world_size}; "
                f"set the batch size to {len(source)} or less."
            )
        self.source, self.size, self.batch, self.seed = source, size, batch, seed
        self.rank, self.world_size = rank, world_size
        self._columns: dict[str, Column] = {}
        for name in columns:
            self._columns[name], notes = column(name, source, seed)
            self.notes += notes
        self.steps_per_epoch = len(source) // (batch * world_size)
        free = free_memory() // (2 * _processes_here())
        self.in_memory = len(source) * 3 * size**2 <= (free if memory is None else min(memory, free))
        blocks = source.blocks
        # Few or sparse blocks are as fast in any order: all stay in memory, or each gives one image.
        self.by_rank = blocks is not None and source.window < len(blocks) <= len(source) // 2
        self._bad: dict[str, str] = {}
        self._skipped: set[int] = set()
        if self.in_memory:
            self._canvases, bad = load_canvases(source, size, progress)
            self._bad.update(bad)
            if not len(self._canvases):
                raise self._nothing_good()
            if len(self._canvases) < batch * world_size:
                where, reason = self.bad[0]
                raise UserError(
                    f"Of the {len(source)} images of {source.name} only {len(self._canvases)} can be used, fewer than "
                    f"one batch of {batch * world_size} ({where}: {reason}): repair them, or set a smaller batch size."
                )
            self._canvases = _near(self._canvases, device)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(where, reason) of each bad image that this rank has met so far."""
        return sorted(self._bad.items())

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch, from the step `start_step` of that epoch on."""
        mine = self._order(epoch)
        found: Generator[tuple[Batch, np.ndarray], None, None]
        if self.in_memory:
            found = self._held(self._substituted(mine)[start_step:])
        elif self.source.side == self.size:
            found = self._mapped(mine[start_step:])
        else:
            found = self._streamed(mine, start_step)
        with closing(found):
            for batch, items in found:
                further = {name: _beside(batch, rows(items, epoch)) for name, rows in self._columns.items()}
                yield Batch(batch.index, {**batch.columns, **further})

    def _order(self, epoch: int) -> np.ndarray:
        """Items of this rank's steps in an epoch, int64, `steps batch`."""
        whole, blocks = self.batch * self.world_size, self.source.blocks
        if not self.by_rank or blocks is None:
            steps = order(self.seed, epoch, len(self.source))[: self.steps_per_epoch * whole].reshape(-1, whole)
            return steps[:, self.rank * self.batch : (self.rank + 1) * self.batch]
        items = nearby(self.seed, epoch, blocks, self.source.window, self.rank, self.world_size)
        return items[: self.steps_per_epoch * self.batch].reshape(-1, self.batch)

    def _substituted(self, batches: np.ndarray) -> np.ndarray:
        """An epoch's batches with good images in place of bad ones, once it is known which are good."""
        good = np.zeros(len(self.source), dtype=bool)
        good[self._canvases.index.cpu().numpy()] = True
        column = batches.T.ravel()
        there = np.flatnonzero(good[column])
        if len(there) == len(column):
            return batches
        if not len(there):  # this epoch leaves out all good images
            there, column = np.arange(int(good.sum())), np.flatnonzero(good)
        place = np.searchsorted(there, np.arange(batches.size)) % len(there)
        return column[there[place]].reshape(batches.shape[::-1]).T

    def _held(self, batches: np.ndarray) -> Generator[tuple[Batch, np.ndarray], None, None]:
        held, pin = self._canvases, torch.cuda.is_available()
        index = held.index.cpu().numpy()
        for items in batches:
            rows = torch.from_numpy(np.searchsorted(index, items))
            if held.pixels.is_cuda:
                yield held[rows.pin_memory().to(held.pixels.device, non_blocking=True)], items
                continue
            pixels = torch.empty(len(rows), *held.pixels.shape[1:], dtype=torch.uint8, pin_memory=pin)
            torch.index_select(held.pixels, 0, rows, out=pixels)
            extent, chosen = held.extent[rows], held.index[rows]
            yield Batch.of(pixels, *(x.pin_memory() if pin else x for x in (extent, chosen))), items

    def _mapped(self, batches: np.ndarray) -> Generator[tuple[Batch, np.ndarray], None, None]:
        """Batches of canvases on disk. Threads read the next ones while earlier ones are in use."""
        ready, threads = self.source.canvases, max(1, cores() // _processes_here())
        assert ready is not None
        begun: deque[Batch] = deque()

        def fill(job: tuple[Batch, slice, np.ndarray]) -> None:
            batch, rows, items = job
            found = ready(items)
            batch.pixels[rows], batch.extent[rows], batch.index[rows] = found.pixels, found.extent, found.index

        def jobs() -> Iterator[list[tuple[Batch, slice, np.ndarray]]]:
            for items in batches:
                begun.append(self._empty(len(items)))
                ends = np.linspace(0, len(items), min(threads, len(items)) + 1, dtype=np.int64).tolist()
                yield [(begun[-1], slice(a, b), items[a:b]) for a, b in pairwise(ends)]

        with closing(in_threads(fill, jobs(), threads)) as filled:
            for _ in filled:
                batch = begun.popleft()
                yield batch, batch.index.numpy()

    def _empty(self, n: int) -> Batch:
        """An empty batch, in pinned memory if there is a GPU."""
        pin = torch.cuda.is_available()
        pixels = torch.empty(n, 3, self.size, self.size, dtype=torch.uint8, pin_memory=pin)
        extent = torch.empty(n, 2, dtype=torch.int64, pin_memory=pin)
        return Batch.of(pixels, extent, torch.empty(n, dtype=torch.int64, pin_memory=pin))

    def _streamed(self, batches: np.ndarray, start: int) -> Generator[tuple[Batch, np.ndarray], None, None]:
        begun: deque[Batch] = deque()
        steps, size = batches.shape

        def fill(job: tuple[Batch, int, int]) -> bool:
            batch, step, row = job
            reached((step - start) * size + row)
            return self._fill(batch, row, batches, step)

        def jobs() -> Iterator[list[tuple[Batch, int, int]]]:
            for step in range(start, steps):
                begun.append(self._empty(size))
                yield [(begun[-1], step, row) for row in range(size)]

        with (
            reading_ahead(self.source, batches[start:].ravel()) as reached,
            closing(in_threads(fill, jobs(), cores() // _processes_here())) as filled,
        ):
            for found in filled:
                if not all(found):
                    raise self._nothing_good()
                batch = begun.popleft()
                yield batch, batch.index.numpy()

    def _fill(self, batch: Batch, row: int, batches: np.ndarray, step: int) -> bool:
        """Decode an image or its substitute into its row of a batch. False if there is no good image."""
        column, place = batches.T, row * len(batches) + step
        later = (int(column.flat[k % batches.size]) for k in range(place, place + batches.size))
        for i in chain(later, range(len(self.source))):
            if i in self._skipped:
                continue
            try:
                canvas, extent = load_canvas(self.source, i, self.size)
            except BadImage as error:
                self._skipped.add(i)
                self._bad[self.source.where(i)] = error.reason
                continue
            batch.pixels[row] = torch.from_numpy(canvas)
            batch.extent[row] = torch.tensor(extent)
            batch.index[row] = i
            return True
        return False

    def _nothing_good(self) -> UserError:
        where, reason = self.bad[0]
        return UserError(f"None of the {len(self.source)} images of {self.source.name} can be used; {where}: {reason}.")


def _beside(batch: Batch, column: Tensor) -> Tensor:
    """A column on the batch's device, or in pinned memory on its way to a GPU."""
    return (column.pin_memory() if torch.cuda.is_available() else column).to(batch.index.device, non_blocking=True)


def _near(canvases: Batch, device: torch.device | None) -> Batch:
    """The canvases, on the GPU if it has room."""
    if device is None or device.type != "cuda":
        return canvases
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # left over from an earlier run
    return canvases.to(device) if canvases.pixels.numel() <= free // 4 else canvases


def _processes_here() -> int:
    """How many processes of this run share the machine, according to torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
