"""How long an evaluation takes yet: the images that are to be read, and the protocols that are to be run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from manyviews import machine
from manyviews.progress import Note, Update


class Part(NamedTuple):
    """One run of a protocol.

    Attributes:
        protocol: its name.
        images: how many images it sends through the encoder again.
        products: how many multiplications it does with features.
    """

    protocol: str
    images: float
    products: float


class Remaining:
    """Tells a progress how long an evaluation has taken, and how long it takes in all, in seconds.

    An image costs what it did when images were read, and a multiplication what it does in a product of matrices here.
    A protocol that was run before corrects its next run, and one that reports its own progress corrects itself.

    Args:
        tell: shows the progress; None if nobody looks.
        images: images to read.
        parts: the runs after that, in their order.
        device: device of the features.
    """

    def __init__(self, tell: Update | None, images: int, parts: Sequence[Part], device: torch.device) -> None:
        self._tell, self._unread, self._parts = tell, images, list(parts)
        self._start = self._begun = time.monotonic()
        self._products = 1.0 if tell is None else _products_per_second(device)
        self._per_image = 0.0
        self._read = 0
        self._factor: dict[str, float] = {}
        self._running: Part | None = None
        self._expected = 0.0

    def read(self, images: int, note: Note = "reading images") -> None:
        """So many more images were read."""
        self._read, self._unread = self._read + images, max(0, self._unread - images)
        self._per_image = (time.monotonic() - self._start) / max(1, self._read)
        self._show(self._unread * self._per_image, note)

    def begin(self, note: Note) -> float:
        """The next run of a protocol begins. Returns the seconds that it is expected to take."""
        self._unread, self._begun = 0, time.monotonic()
        self._running = self._parts.pop(0)
        self._expected = self._cost(self._running)
        self._show(self._expected, note)
        return self._expected

    def within(self, done: float, of: float, note: Note) -> None:
        """So much of this run is done."""
        spent, share = time.monotonic() - self._begun, done / max(1, of)
        left = spent * (1 - share) / share if share > 0 and spent > 1 else self._expected * (1 - share)
        self._show(left, note)

    def end(self) -> None:
        """This run is over."""
        assert self._running is not None
        spent, name = time.monotonic() - self._begun, self._running.protocol
        self._factor[name] = self._factor.get(name, 1.0) * spent / max(1e-9, self._expected)

    def finish(self) -> None:
        """Everything is done."""
        self._parts.clear()
        self._show(0.0, "")

    def _cost(self, part: Part) -> float:
        """Seconds of a run."""
        plain = part.images * self._per_image + part.products / self._products
        return max(1e-3, plain) * self._factor.get(part.protocol, 1.0)

    def _show(self, left: float, note: Note) -> None:
        if self._tell is not None:
            spent = time.monotonic() - self._start
            self._tell(spent, spent + left + sum(map(self._cost, self._parts)), note)


def _products_per_second(device: torch.device) -> float:
    """Multiplications a second in products of the size that probes have."""
    rows, dims, columns = 256, 512, 1024
    x, w = torch.ones(rows, dims, device=device), torch.ones(dims, columns, device=device)
    seconds = []
    for _ in range(4):  # the first allocates
        begun = time.monotonic()
        _ = x @ w
        machine.wait(device)
        seconds.append(time.monotonic() - begun)
    return rows * dims * columns / max(1e-9, min(seconds))
