"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from manyviews.errors import UserError

_NUMBER = r"(\d+(?:\.\d+)?)"
_LENGTH = re.compile(rf"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m(?:in)?)?(?:{_NUMBER}s)?")

_PATIENCE = 1.0  # seconds before anything is shown
_EVERY = 10.0  # seconds between plain lines


class Update(Protocol):
    """Takes how much is done, the total, and a few words on the current state."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress(title: str, quiet: bool = False) -> Iterator[Update]:
    """Show the progress of a piece of work on standard error, if it takes more than a moment.

    with progress("decode") as update:
        for i in range(n):
            update(i + 1, n)
    """
    if quiet:
        yield lambda done, total, note="": None
        return
    console = Console(stderr=True)
    with _bar(console, title) if console.is_terminal else _lines(title) as update:
        yield update


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Update]:
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
    )
    task, start = bar.add_task(title, total=None, note=""), time.monotonic()

    def update(done: int, total: int, note: str = "") -> None:
        if time.monotonic() - start > _PATIENCE:
            bar.start()
        bar.update(task, completed=done, total=total, note=note)

    try:
        yield update
    finally:
        bar.stop()


@contextmanager
def _lines(title: str) -> Iterator[Update]:
    start = last = time.monotonic()
    first: int | None = None
    before = 0

    def update(done: int, total: int, note: str = "") -> None:
        nonlocal start, last, first, before
        now = time.monotonic()
        if first is None or done < before:  # another part began, with a speed of its own
            start, first = now, done
        before = done
        if now - last < _EVERY or done <= first:
            return
        last = now
        left = (total - done) * (now - start) / (done - first)
        words = [f"{title}: {done} of {total}", f"{duration(left)} left", note]
        print(", ".join(w for w in words if w), file=sys.stderr, flush=True)

    yield update


def duration(seconds: float) -> str:
    """A length of time in words: "8 s", "3 min 20 s", "2 h 5 min"."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s" if s < 600 else f"{round(s / 60)} min"
    return f"{s // 3600} h {s % 3600 // 60} min"


def seconds(length: str | float) -> float:
    """The seconds of a length of time: "30m", "2h", "1h30m", "90s", or a number of seconds.

    Raises:
        UserError: other words, or nothing.
    """
    if isinstance(length, str):
        match = _LENGTH.fullmatch(length.replace(" ", "").lower())
        if match is None:
            raise UserError(f"A length of time is such as 30m, 2h or 1h30m, not '{length}'.")
        found = sum(float(n or 0) * unit for n, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True))
    else:
        found = float(length)
    if not 0 < found < float("inf"):
        raise UserError(f"A length of time is more than 0 and finite, not '{length}'.")
    return found
