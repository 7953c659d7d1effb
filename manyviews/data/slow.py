"""Images that take very long to read are named: a disk or a pipe may never answer, and that looks like work."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from manyviews.errors import say

PATIENCE = 60.0
"""Seconds after which an image that is still being read is named."""


class Reads:
    """The images that this process is reading, and a thread that looks at them: others cannot be ended from outside."""

    def __init__(self) -> None:
        self._process, self._lock = 0, threading.Lock()
        self._under_way: dict[int, tuple[Callable[[int], str], int, float]] = {}

    @contextmanager
    def one(self, where: Callable[[int], str], i: int) -> Iterator[None]:
        """This thread reads image `i`, whose place for people is `where(i)`, until the end of the block."""
        if self._process != os.getpid():  # the first read, or one in a forked process, which has no such thread
            self._start()
        me = threading.get_ident()
        self._under_way[me] = where, i, time.monotonic()
        try:
            yield
        finally:
            self._under_way.pop(me, None)

    def _start(self) -> None:
        if self._process:
            self._lock = threading.Lock()  # the parent's may have been held
        with self._lock:
            if self._process != os.getpid():
                self._process, self._under_way = os.getpid(), {}
                threading.Thread(target=self._look, name="slow images", daemon=True).start()

    def _look(self) -> None:
        named = set[tuple[int, float]]()
        while True:
            time.sleep(PATIENCE / 4)
            now, slow = time.monotonic(), set[tuple[int, float]]()
            for me, (where, i, since) in self._under_way.copy().items():
                if now - since > PATIENCE:
                    slow.add((me, since))
                    if (me, since) not in named:
                        say(
                            f"Warning: {where(i)} has been read for {now - since:.0f} s, and the work waits for it. "
                            "Its disk or network does not answer, or it is no plain file: remove it, or stop and "
                            "resume."
                        )
            named = slow


READS = Reads()
"""What this process reads."""
