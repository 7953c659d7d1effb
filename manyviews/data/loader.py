"""Batches of canvases for training: which images, in which order, whoever asks and from wherever they come."""

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
    """Shuffled batches of a source's canvases, endlessly resumable.

    The order of an epoch is a pure function of (seed, epoch). A global batch is `world_size` batches of that order and
    rank r takes the r-th, so it is the same however many ranks share it. The last, incomplete global batch is dropped.
    In the place of a bad image stands a good one of a later step: the next in its column of the epoch's batches, so
    that no batch is full of one image where all images of a folder are bad.

    A source of many blocks that are best read together has another order, in memory too, so that a run does not depend
    on how much of it is free: it keeps the images of a block near each other, and a rank reads its own blocks only,
    about once an epoch (see `nearby`). This order alone depends on the number of ranks.

    All canvases are decoded into memory at the start if `memory` holds them; else threads, as many as there are cores,
    decode each batch while those before it are in use. The batches are the same. Batch in memory that take no more
    than a quarter of what a GPU has free are held there; others come to it from pinned memory.

    Attributes:
        source: the images that have all the columns asked for; the others are left out.
        notes: sentences about what is left out or cut, for people.
        steps_per_epoch: global batches in one epoch.
        in_memory: whether all canvases were decoded at the start.
        by_rank: whether the order depends on the number of ranks.

    Args:
        source: the images.
        size: side of the canvases, in pixels.
        batch: images per rank and step.
        columns: further columns of the batches. "label": int64, `b`, in [0, number of classes). "text": uint8, `b n`, a
            caption in UTF-8 and then zeros, where `n` bytes hold the longest caption of the source and are at most 512;
            an image with several captions has one of them in each epoch.
        seed: of the order, and of the choice of captions.
        rank: this process's number.
        world_size: how many processes share the global batch.
        memory: bytes that canvases may take in this process, and at most half of its share of what is free.
        device: where batches will be used; they are there already if their canvases fit, else on the CPU.
        progress: called with (done, total) while canvases are decoded into memory.

    Raises:
        UserError: the source has fewer images than one global batch, or fewer good ones, if all are decoded at the
            start; else it is raised where there is none. Also an unknown column, or one that no image has.
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
            raise UserError(
                f"{source.name} has {len(source)} images, fewer than one batch of {batch * world_size}; "
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
        # Few or sparse blocks are read as fast in any order: all stay in memory, or each gives one image.
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
                    f"one batch of {batch * world_size} ({where}: {reason}): mend them, or set a smaller batch size."
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
        """Items of this rank's steps of an epoch, `steps batch`."""
        whole, blocks = self.batch * self.world_size, self.source.blocks
        if not self.by_rank or blocks is None:
            steps = order(self.seed, epoch, len(self.source))[: self.steps_per_epoch * whole].reshape(-1, whole)
            return steps[:, self.rank * self.batch : (self.rank + 1) * self.batch]
        items = nearby(self.seed, epoch, blocks, self.source.window, self.rank, self.world_size)
        return items[: self.steps_per_epoch * self.batch].reshape(-1, self.batch)

    def _substituted(self, batches: np.ndarray) -> np.ndarray:
        """An epoch's batches with good images in the places of bad ones, when it is known which are good."""
        good = np.zeros(len(self.source), dtype=bool)
        good[self._canvases.index.cpu().numpy()] = True
        column = batches.T.ravel()
        there = np.flatnonzero(good[column])
        if len(there) == len(column):
            return batches
        if not len(there):  # the good ones are all among those that this epoch leaves out
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
        """From canvases on disk: threads fetch what the disk has not given yet while earlier batches are in use."""
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
        """A batch to be filled, in memory from which a GPU takes it without a copy."""
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
        """Decode an image, or what stands for it, into its row of a batch. False when there is no good one."""
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
    """A column where the batch is, or in memory from which it will follow the batch to a GPU."""
    return (column.pin_memory() if torch.cuda.is_available() else column).to(batch.index.device, non_blocking=True)


def _near(canvases: Batch, device: torch.device | None) -> Batch:
    """On the GPU if there is one with room."""
    if device is None or device.type != "cuda":
        return canvases
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # left by an earlier run
    return canvases.to(device) if canvases.pixels.numel() <= free // 4 else canvases


def _processes_here() -> int:
    """How many processes of this run share the machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
