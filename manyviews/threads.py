"""How many CPU threads a loop computes with: chosen by measurement, again when the machine gets busy or idle.

The threads of one operation wait for each other, and inside oneDNN they wait without sleeping. If another process has
one of the cores, all of them wait for the one that is not running, many times a step. Fewer threads are then faster,
from two and a half times on one processor to a reported sixty on another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

WINDOW = 1.0
"""Seconds over which a speed is measured, at least; and at least two steps, or three times as many seconds."""

PATIENCE = 10.0, 160.0
"""Seconds before another number of threads is tried again after it was no better: at first, and at most."""

BLIND = 40.0
"""Seconds before more threads are tried although no core is idle, at first."""

_SLOW = 0.6  # a speed below this share of the usual one asks for fewer threads, whatever the cores seem to do
_GAIN = 1.05  # more threads must be this much faster to be kept
_GLANCE = 0.25  # seconds of looking at the machine before the first step
_HOPELESS = 3.0  # a step of this many times the usual length ends a trial


class Clocks(NamedTuple):
    """What was used since some moment in the past.

    Attributes:
        wall: seconds.
        own: processor seconds of this process, of all its threads.
        idle: seconds in which the cores that it may use were idle, summed over them; None where nobody counts them.
    """

    wall: float
    own: float
    idle: float | None


def clocks() -> Clocks:
    """The clocks of now."""
    import psutil

    times = os.times()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        cores = psutil.cpu_times(percpu=True)
        idle = sum(
            core.idle + getattr(core, "iowait", 0.0) for i, core in enumerate(cores) if not allowed or i in allowed
        )
    except (OSError, RuntimeError):  # a container may hide them
        idle = None
    return Clocks(time.monotonic(), times.user + times.system, idle)


@contextmanager
def threads_of(device: torch.device | str) -> Iterator[Threads]:
    """What chooses the threads of a loop on a device; where another device than a processor computes, it does nothing.

    Afterwards PyTorch has as many threads as before.
    """
    threads = Threads(None if str(device).startswith("cpu") else 1)
    try:
        yield threads
    finally:
        threads.stop()


class Threads:
    """Chooses the number of threads of a loop. Call `begin` before it, and `step` after each of its steps.

    The cores that a process can have are those that it uses and those that are idle. If they are not as many as its
    threads, another number is tried, and kept if the steps are faster. More threads are also tried from time to time
    while no core is idle, because a process of a lower priority gives way.

    Args:
        most: the largest number; PyTorch's own if None.
        read: the clocks.
        use: makes PyTorch compute with that many threads.
        wall: the first of the clocks alone, which costs next to nothing.
    """

    def __init__(
        self,
        most: int | None = None,
        read: Callable[[], Clocks] = clocks,
        use: Callable[[int], None] | None = None,
        wall: Callable[[], float] = time.monotonic,
    ) -> None:
        import torch

        self.most = self.now = torch.get_num_threads() if most is None else most
        self._read, self._wall, self._use = read, wall, torch.set_num_threads if use is None else use
        self._usual: dict[int, float] = {}
        self._trial: tuple[int, float] | None = None  # the number of threads before, and the speed with it
        self._warm = False
        self.restart()
        self._forget(self._start.wall)

    def begin(self, sleep: Callable[[float], None] = time.sleep) -> str | None:
        """Choose a number to begin with, by the cores that are idle. Returns a sentence if they are not all."""
        if self.most == 1:
            return None
        self.restart()
        sleep(_GLANCE)
        now = self._read()
        cores = self._cores(now)
        if cores is None or self._fits(cores) == self.most:
            return None
        self._set(self._fits(cores))
        return f"Other processes are busy: computing with {self.now} of {self.most} threads."

    def restart(self) -> None:
        """Forget the steps since the last decision: something else than steps took time."""
        self._steps, self._start = 0, self._read()

    def step(self) -> str | None:
        """Count a step. Returns a sentence when the number of threads has changed for good."""
        if self.most == 1:
            return None
        self._steps += 1
        seconds = self._wall() - self._start.wall
        hopeless = self._trial is not None and self._steps * _HOPELESS < seconds * self._trial[1]
        if not hopeless and (seconds < WINDOW or (self._steps < 2 and seconds < 3 * WINDOW)):
            return None
        now = self._read()
        speed, cores = self._steps / seconds, self._cores(now)
        self.restart()
        if not self._warm:  # the first steps allocate and compile
            self._warm = True
            return None
        if self._trial is not None:
            return self._decide(*self._trial, speed, now.wall)
        usual = self._usual[self.now] = max(speed, 0.98 * self._usual.get(self.now, speed))
        wanted = self._wanted(speed < _SLOW * usual, cores, now.wall)
        if wanted != self.now:
            self._trial = self.now, speed
            self._set(wanted)
        return None

    def stop(self) -> None:
        """Go back to the number of threads from before."""
        if self.now != self.most:
            self._set(self.most)

    def _cores(self, now: Clocks) -> float | None:
        """How many cores the process could have had since the last decision."""
        if now.idle is None or self._start.idle is None:
            return None
        return (now.own - self._start.own + now.idle - self._start.idle) / max(1e-9, now.wall - self._start.wall)

    def _fits(self, cores: float) -> int:
        return min(self.most, max(1, round(cores - 0.1)))

    def _wanted(self, slow: bool, cores: float | None, wall: float) -> int:
        """The number of threads to try next."""
        fits = self.now if cores is None else self._fits(cores)
        if self.now > 1 and (slow or (fits < self.now and wall >= self._again["fewer"])):
            return fits if fits < self.now else self.now // 2
        if self.now < self.most:
            if fits > self.now and wall >= self._failed + PATIENCE[0]:
                return fits
            if wall >= self._again["more"]:
                return min(self.most, 2 * self.now)
        return self.now

    def _decide(self, before: int, usual: float, speed: float, wall: float) -> str | None:
        """Keep the number that was tried, or go back."""
        self._trial = None
        fewer = self.now < before
        if speed > usual * (1 if fewer else _GAIN):
            self._usual[self.now] = speed
            self._forget(wall)
            return (
                f"{'Other processes are busy' if fewer else 'The machine is less busy'}: computing with {self.now} of "
                f"{self.most} threads, {speed / usual:.1f} times as fast as with {before}."
            )
        self._set(before)
        self._usual[before] = usual
        direction = "fewer" if fewer else "more"
        self._again[direction] = wall + self._patience[direction]
        self._patience[direction] = min(2 * self._patience[direction], PATIENCE[1])
        self._failed = wall
        return None

    def _forget(self, wall: float) -> None:
        """What failed before may help now."""
        self._patience = {"fewer": PATIENCE[0], "more": BLIND}
        self._again = {"fewer": 0.0, "more": wall + BLIND}
        self._failed = wall

    def _set(self, threads: int) -> None:
        self.now = threads
        self._use(threads)
        self.restart()
