"""Memory for pictures while they are decoded, shared by all threads: a file of kilobytes may hold one of gigabytes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from manyviews.data.formats import BadImage
from manyviews.machine import free_memory

SMALL = 2**26
"""Bytes below which a picture does not ask: ordinary photographs never wait."""


class Room:
    """Bytes that the pictures which are decoded at the same time may take together: half of the free memory.

    A thread claims the bytes of a large picture before it reads its pixels, and waits until others have given back
    enough of theirs. Whoever waits longest comes first. A picture that has no room alone is refused.

    Args:
        free: how many bytes this process can still allocate.
    """

    def __init__(self, free: Callable[[], int] = free_memory) -> None:
        self._free = free
        self._forget()

    def _forget(self) -> None:
        self._line, self._changed = threading.Lock(), threading.Condition()
        self._used = self._most = 0
        self._process = os.getpid()
        self._own = threading.local()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """This thread's claims last until the end of the block, or of the one around it."""
        if self._process != os.getpid():  # a forked worker must not wait for its parent's threads
            self._forget()
        own = self._own
        if getattr(own, "depth", 0) == 0:
            own.depth, own.held, own.claims = 0, 0, {}
        own.depth += 1
        try:
            yield
        finally:
            own.depth -= 1
            if not own.depth:
                self._give_back()

    def claim(self, size: int, what: str) -> None:
        """Wait until there is room for `size` bytes of `what`, of which a turn has one. Nothing outside of a turn.

        Raises:
            BadImage: there is never so much room.
        """
        own = self._own
        if not getattr(own, "depth", 0) or size <= own.claims.get(what, 0):
            return
        own.claims[what] = size
        total = sum(own.claims.values())
        if total <= SMALL:
            return
        # Two threads that held some and waited for more would wait forever, so all of it is claimed anew.
        self._give_back()
        with self._line, self._changed:
            if not self._used:
                self._most = self._free() // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
            if total > self._most:
                raise BadImage(
                    f"it takes about {total / 1e9:.1f} GB to decode, and {self._most / 1e9:.1f} GB may be used here: "
                    "make it smaller, or free some memory"
                )
            self._changed.wait_for(lambda: self._used + total <= self._most)
            self._used += total
            own.held = total

    def _give_back(self) -> None:
        if self._own.held:
            with self._changed:
                self._used -= self._own.held
                self._changed.notify_all()
            self._own.held = 0


ROOM = Room()
"""The room of this process."""
