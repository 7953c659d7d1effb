"""Batches of canvases for training, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from manyviews.data.canvas import Progress, hold_canvases, in_threads, largest, load_canvas, reading_ahead, sample
from manyviews.data.columns import Column, column, complete
from manyviews.data.decode import BadImage
from manyviews.data.order import nearby, order
from manyviews.data.source import Source
from manyviews.errors import UserError
from manyviews.machine import cores, free_memory
from manyviews.types import Batch, Canvases


class Loader:
    """Shuffled batches of a source's canvases, resumable at any step.

    The order of an epoch is a pure function of (seed, epoch). A global batch is `world_size` batches of that order, and
    rank r takes the r-th, so the global batch does not depend on the number of ranks. An incomplete last one is
    dropped. A good image of a later step replaces a bad one: the next in its column of the epoch's batches. So no batch
    is full of one image when all images of a folder are bad.

    A source of many blocks that are best read together has another order. It keeps the images of a block near each
    other, and each rank reads only its own blocks, about once an epoch (see `nearby`). Only this order depends on the
    number of ranks. It is the same in memory, so that a run does not depend on how much memory is free.

    If `memory` can hold all canvases, they are decoded at the start: a few images tell whether it can. Otherwise a
    thread for each core decodes the next batches while earlier ones are in use. The batches are the same. Canvases in
    memory move to the GPU if they take at most a quarter of its free memory; other batches reach it from pinned memory.

    Args:
        source: the images.
        size: longest short side of the canvases, in pixels: see `manyviews.data.to_canvas`. Canvases that `prepare`
            made are taken as they are, unless they are larger.
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
        self._pin = torch.cuda.is_available()
        self._columns: dict[str, Column] = {}
        for name in columns:
            self._columns[name], notes = column(name, source, seed)
            self.notes += notes
        self.steps_per_epoch = len(source) // (batch * world_size)
        free = free_memory() // (2 * _processes_here())
        blocks = source.blocks
        # Few or sparse blocks are as fast in any order: all stay in memory, or each gives one image.
        self.by_rank = blocks is not None and source.window < len(blocks) <= len(source) // 2
        self._bad: dict[str, str] = {}
        self._skipped: set[int] = set()
        most, held = free if memory is None else min(memory, free), None
        if most > 0 and (len(source) * largest(source, size) <= most or self._expected() <= most):
            held = hold_canvases(source, size, most, progress)
        self.in_memory = held is not None
        if held is not None:
            canvases, bad = held
            self._bad.update(bad)
            if not len(canvases):
                raise self._nothing_good()
            if len(canvases) < batch * world_size:
                where, reason = self.bad[0]
                raise UserError(
                    f"Of the {len(source)} images of {source.name} only {len(canvases)} can be used, fewer than "
                    f"one batch of {batch * world_size} ({where}: {reason}): repair them, or set a smaller batch size."
                )
            self._canvases = _near(canvases, device)

    def _expected(self) -> float:
        """Bytes that all canvases take together, by those of a few images."""
        source = self.source

        def size(i: int) -> int | None:
            try:
                return load_canvas(source, i, self.size).size
            except BadImage:
                return None

        with closing(in_threads(size, [sample(source)])) as found:
            sizes = [n for n in next(found) if n is not None]
        return len(source) * float(np.mean(sizes or [largest(source, self.size)]))

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(where, reason) of each bad image that this rank has met so far."""
        return sorted(self._bad.items())

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch, from the step `start_step` of that epoch on."""
        every, mine = self._order(epoch)
        found: Generator[tuple[Batch, np.ndarray], None, None]
        if self.in_memory:
            found = self._held(self._substituted(every)[start_step:, mine])
        elif self.source.canvases is not None and (self.source.side or 0) <= self.size:
            found = self._mapped(every[start_step:, mine])
        else:
            found = self._streamed(every, mine, start_step)
        with closing(found):
            for batch, items in found:
                further = {name: _beside(batch, rows(items, epoch)) for name, rows in self._columns.items()}
                yield Batch(batch.index, batch.canvases, further)

    def _order(self, epoch: int) -> tuple[np.ndarray, slice]:
        """Items of the steps of an epoch, int64, `steps n`, and which n are this rank's.

        They are those of all ranks, where one order is for all: the substitute of a bad image may be another rank's.
        """
        whole, blocks = self.batch * self.world_size, self.source.blocks
        if not self.by_rank or blocks is None:
            steps = order(self.seed, epoch, len(self.source))[: self.steps_per_epoch * whole].reshape(-1, whole)
            return steps, slice(self.rank * self.batch, (self.rank + 1) * self.batch)
        items = nearby(self.seed, epoch, blocks, self.source.window, self.rank, self.world_size)
        return items[: self.steps_per_epoch * self.batch].reshape(-1, self.batch), slice(0, self.batch)

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
        """Batches of the canvases in memory, which share their bytes where the device can read them."""
        held, there = self._canvases, self._canvases.index.device
        index = held.index.cpu().numpy()
        for items in batches:
            rows = torch.from_numpy(np.searchsorted(index, items))
            if there.type == "cuda":
                yield held[rows.pin_memory().to(there, non_blocking=True)], items
            elif self._pin:
                batch = held[rows]
                yield Batch(batch.index.pin_memory(), batch.canvases.alone(pin=True)), items
            else:
                yield held[rows], items

    def _mapped(self, batches: np.ndarray) -> Generator[tuple[Batch, np.ndarray], None, None]:
        """Batches of canvases on disk. Threads read the next ones while earlier ones are in use."""
        ready, threads = self.source.canvases, max(1, cores() // _processes_here())
        assert ready is not None

        def jobs() -> Iterator[list[np.ndarray]]:
            for items in batches:
                yield np.array_split(items, min(threads, len(items)))

        with closing(in_threads(ready, jobs(), threads)) as read:
            for parts, items in zip(read, batches, strict=True):
                images = [part.canvases.image(i).permute(1, 2, 0).numpy() for part in parts for i in range(len(part))]
                yield self._packed(images, items), items

    def _packed(self, images: Sequence[np.ndarray], items: np.ndarray) -> Batch:
        """A batch of canvases, in pinned memory if there is a GPU."""
        index = torch.from_numpy(np.array(items, dtype=np.int64))
        canvases = Canvases.packed(images, channels=self.source.reading.count, pin=self._pin)
        return Batch(index.pin_memory() if self._pin else index, canvases)

    def _streamed(
        self, batches: np.ndarray, mine: slice, start: int
    ) -> Generator[tuple[Batch, np.ndarray], None, None]:
        steps, size = len(batches), self.batch

        def read(job: tuple[int, int]) -> tuple[int, np.ndarray] | None:
            step, row = job
            reached((step - start) * size + row)
            return self._good(mine.start + row, batches, step)

        jobs = ([(step, row) for row in range(size)] for step in range(start, steps))
        with (
            reading_ahead(self.source, batches[start:, mine].ravel()) as reached,
            closing(in_threads(read, jobs, cores() // _processes_here())) as decoded,
        ):
            for results in decoded:
                found = [one for one in results if one is not None]
                if len(found) < size:
                    raise self._nothing_good()
                items = np.array([i for i, _ in found])
                yield self._packed([canvas for _, canvas in found], items), items

    def _good(self, row: int, batches: np.ndarray, step: int) -> tuple[int, np.ndarray] | None:
        """The image of a row of a batch, or its substitute, with its number. None if there is no good image."""
        column, place = batches.T, row * len(batches) + step
        later = (int(column.flat[k % batches.size]) for k in range(place, place + batches.size))
        for i in chain(later, range(len(self.source))):
            if i in self._skipped:
                continue
            try:
                return i, load_canvas(self.source, i, self.size)
            except BadImage as error:
                self._skipped.add(i)
                self._bad[self.source.where(i)] = error.reason
        return None

    def _nothing_good(self) -> UserError:
        where, reason = self.bad[0]
        return UserError(f"None of the {len(self.source)} images of {self.source.name} can be used; {where}: {reason}.")


def _beside(batch: Batch, column: Tensor) -> Tensor:
    """A column on the batch's device, or in pinned memory on its way to a GPU."""
    column = column.pin_memory() if torch.cuda.is_available() else column
    return column.to(batch.index.device, non_blocking=batch.index.is_cuda)


def _near(canvases: Batch, device: torch.device | None) -> Batch:
    """The canvases, on the GPU if it has room."""
    if device is None or device.type != "cuda":
        return canvases
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # left over from an earlier run
    return canvases.to(device) if len(canvases.canvases.pool) <= free // 4 else canvases


def _processes_here() -> int:
    """How many processes of this run share the machine, according to torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
