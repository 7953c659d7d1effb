"""Ctrl-C and a scheduler's SIGTERM become a question that the loop asks between steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

PATIENCE = 3.0
"""Seconds within which a second signal counts as the first one again."""


class Stopped(Exception):
    """The run was asked to stop, and has saved its state."""


class Lost(Exception):
    """Another process of the run is gone."""


class Request:
    """Whether somebody asked the run to stop, and how."""

    signal: str | None = None
    at: float = 0.0
    save: Callable[[], object] | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def saving(self, save: Callable[[], object]) -> Iterator[None]:
        """Inside, a signal calls `save` at once: what is done inside may take longer than a scheduler waits."""
        before, self.save = self.save, save
        try:
            yield
        finally:
            self.save = before


@contextmanager
def watch() -> Iterator[Request]:
    """Inside, the first SIGINT or SIGTERM is only noted; one that comes seconds later acts as usual.

    The delay is there because a launcher may pass on a signal that its processes have already received as a group.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal is None:
            request.signal, request.at = signal.Signals(number).name, time.monotonic()
            # The reader may be gone, such as `tee` after Ctrl-C, and an error here would interrupt a step.
            with suppress(OSError):
                os.write(2, b"Stopping after this step, to save. Once more to stop at once.\n")
            if request.save is not None:
                request.save()
        elif time.monotonic() - request.at > PATIENCE:
            signal.signal(number, before[signal.Signals(number)])
            os.kill(os.getpid(), number)

    for s in before:
        signal.signal(s, note)
    try:
        yield request
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
