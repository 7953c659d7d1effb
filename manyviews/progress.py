"""Progress of long work: a bar on a terminal; elsewhere a line at the start, and one at least every half a minute."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.text import Text

from manyviews.errors import UserError, printable

_NUMBER = r"(\d+(?:\.\d+)?)"
_LENGTH = re.compile(rf"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m(?:in)?)?(?:{_NUMBER}s)?")

_PATIENCE = 1.0  # seconds before anything is shown
_EVERY = (9.0, 25.0)  # seconds from the first plain line to the second, and between all others
_GRACE = 4.0  # seconds that a line may wait for work to report, so that it says something new
_FRESH = 3.0  # seconds after which the words about the state are asked for again
# Seconds of the recent past that the rate is of, at least and at most: a quarter of all between.
_WINDOW = (30.0, 300.0)

Note = str | Callable[[], str]
"""A few words on the current state, or what gives them, which is asked only when they are shown."""


class Update(Protocol):
    """Takes how much is done, the total, and a few words on the current state.

    Whole numbers are things done, and the time left is at their rate in the recent past. Floats are seconds of work, of
    which the caller estimates the total.
    """

    def __call__(self, done: float, total: float, note: Note = "") -> None: ...


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
    console, outer = Console(stderr=True), _OUTER.get()
    state = _State(title if outer is None else f"{outer.title}: {title}", outer)
    with _bar(console, state) if console.is_terminal else _lines(state) as update:
        yield update


@dataclass(frozen=True)
class Outer:
    """A larger piece of work.

    Attributes:
        title: where it stands, such as "sweep 3 of 12".
        rest: seconds that it takes after the part that now runs; None if nobody knows.
        part: title of the progress that measures this part.
    """

    title: str
    rest: float | None
    part: str


_OUTER: ContextVar[Outer | None] = ContextVar("_OUTER", default=None)


@contextmanager
def within(outer: Outer) -> Iterator[None]:
    """Let all progress in this context say of which larger work it is a part, and how long that takes."""
    token = _OUTER.set(outer)
    try:
        yield
    finally:
        _OUTER.reset(token)


def outer() -> Outer | None:
    """The larger piece of work that this one is a part of."""
    return _OUTER.get()


@dataclass
class Rate:
    """How fast a piece of work has gone lately.

    A pause counts, so the time left grows while nothing happens.
    """

    _begun: float = 0.0
    _seen: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, now: float, done: float) -> None:
        """So much is done at this time."""
        if not self._seen or done < self._seen[-1][1]:  # another part begins, with a speed of its own
            self._seen.clear()
            self._begun = now
        elif now - self._seen[-1][0] < 0.5:
            return
        self._seen.append((now, done))
        least, most = _WINDOW
        window = min(max(least, (now - self._begun) / 4), most)
        while len(self._seen) > 2 and self._seen[1][0] < now - window:
            self._seen.popleft()

    def left(self, now: float, done: float, total: float) -> float | None:
        """Seconds until all is done; None if nothing was done yet."""
        if not self._seen or done <= self._seen[0][1]:
            return None
        since, before = self._seen[0]
        return (total - done) * (now - since) / (done - before)


class _State:
    """What is known of a piece of work, for whoever shows it from another thread."""

    def __init__(self, title: str, outer: Outer | None = None) -> None:
        self.title, self.done, self.total, self.note = title, 0.0, 0.0, ""
        self._rate, self._outer, self._told_at, self._noted_at = Rate(), outer, 0.0, -_FRESH

    def tell(self, done: float, total: float, note: Note, shown: bool) -> None:
        now = time.monotonic()
        self.done, self.total, self._told_at = done, total, now
        self._rate.add(now, done)
        if isinstance(note, str):
            self.note = note
        elif shown and now - self._noted_at >= _FRESH:
            self.note, self._noted_at = note(), now

    @property
    def counted(self) -> str:
        """How much is done of how much."""
        if not self.total:
            return ""
        if isinstance(self.total, float):
            return f"{100 * self.done / self.total:.0f} %"
        return f"{self.done} of {self.total}"

    @property
    def left(self) -> str:
        """How long it takes yet, and the larger work."""
        if not self.total:
            return ""
        now = time.monotonic()
        if isinstance(self.total, float):
            seconds: float | None = max(0.0, self.total - self.done - (now - self._told_at))
        else:
            seconds = self._rate.left(now, self.done, self.total)
        if seconds is None:
            return ""
        words = f"{duration(seconds)} left"
        if self._outer is not None and self._outer.rest and self.title.endswith(self._outer.part):
            words += f", {duration(seconds + self._outer.rest)} of all"
        return words


class _Left(ProgressColumn):
    max_refresh = 0.5

    def __init__(self, state: _State) -> None:
        super().__init__()
        self._state = state

    def render(self, task: Task) -> Text:
        return Text("  ".join(word for word in (self._state.counted, self._state.left) if word))


@contextmanager
def _bar(console: Console, state: _State) -> Iterator[Update]:
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        _Left(state),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
    )
    task = bar.add_task(state.title, total=None, note="")
    lock, ended = threading.Lock(), threading.Event()

    def begin() -> None:  # also where the first part of the work takes long
        if not ended.wait(_PATIENCE):
            with lock:
                if not ended.is_set():
                    bar.start()

    def update(done: float, total: float, note: Note = "") -> None:
        state.tell(done, total, note, shown=True)
        bar.update(task, completed=done, total=total, note=state.note)

    threading.Thread(target=begin, daemon=True).start()
    try:
        yield update
    finally:
        with lock:
            ended.set()
            bar.stop()


@contextmanager
def _lines(state: _State) -> Iterator[Update]:
    lock, ended = threading.Lock(), threading.Event()
    due, lines = time.monotonic() + _PATIENCE, 0

    def show() -> None:
        nonlocal due, lines
        begun = "nothing to count yet" if lines else "started"
        words = [f"{state.title}: {state.counted or begun}", state.left, state.note]
        print(printable(", ".join(w for w in words if w)), file=sys.stderr, flush=True)
        due, lines = time.monotonic() + _EVERY[lines > 0], lines + 1

    def watch() -> None:  # work that does not report for long is shown too
        while not ended.wait(1.0):
            with lock:
                if time.monotonic() >= due + (_GRACE if lines else 0) and not ended.is_set():
                    show()

    def update(done: float, total: float, note: Note = "") -> None:
        is_due = time.monotonic() >= due
        state.tell(done, total, note, shown=is_due)
        if is_due and done < total:
            with lock:
                show()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield update
    finally:
        with lock:
            ended.set()


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
