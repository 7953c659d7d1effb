"""Blocks of a source: runs of items that are read together and kept in memory for a while."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from manyviews.data.decode import BadImage

HELD = 2**29
"""Bytes of blocks that a process keeps in memory."""


def window(sizes: np.ndarray) -> int:
    """How many blocks of these sizes, in bytes, may be read in turns: half of `HELD`, as others are on their way.

    Counts with a mean that is weighted by size, so neither small blocks nor a single large one mislead.
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    return max(1, int(HELD / 2 / max(1.0, (sizes**2).sum() / max(1.0, sizes.sum()))))


class Blocks:
    """The most recent blocks, within `HELD` bytes, and at least two: one in use and the next.

    Threads share them. One thread fetches a block while the others that need it wait; different blocks are fetched at
    the same time. A copy in another process begins empty.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._held: OrderedDict[int, Future[Any]] = OrderedDict()
        self._bad: dict[int, str] = {}  # reasons only: an error keeps alive everything in its traceback
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type[Blocks], tuple[()]]:
        return Blocks, ()

    def get(self, block: int, fetch: Callable[[int], Any]) -> Any:
        """`fetch(block)`, an object with `nbytes`, or its earlier result. An error is raised in every waiting thread.

        A bad block is remembered, so one try is enough for all its images. After other errors it is fetched again.
        """
        if self._process != os.getpid():  # a forked worker must not wait for its parent's threads
            self._forget()
        with self._lock:
            if block in self._bad:
                raise BadImage(self._bad[block])
            found = self._held.get(block)
            if mine := found is None:
                found = self._held[block] = Future()
            self._held.move_to_end(block)
        if not mine:
            return found.result()
        try:
            found.set_result(fetch(block))
        except BaseException as error:
            with self._lock:
                self._held.pop(block, None)
                if isinstance(error, BadImage):
                    self._bad[block] = error.reason
            found.set_exception(error)
            raise
        self._drop()
        return found.result()

    def _drop(self) -> None:
        with self._lock:
            done = {block: future.result().nbytes for block, future in self._held.items() if future.done()}
            total = sum(done.values())
            for block in list(done)[:-2]:
                if total <= HELD:
                    break
                total -= done[block]
                del self._held[block]
