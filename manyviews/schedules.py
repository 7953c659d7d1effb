"""Schedules: pure functions of the place in the run.

A schedule is a frozen dataclass that is called with a `Progress` and returns a float, so it prints, compares and saves
like any other setting. Wherever a schedule is expected, a plain number means `Constant`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from manyviews.types import Progress


@dataclass(frozen=True)
class Constant:
    """The same value throughout."""

    value: float

    def __call__(self, at: Progress) -> float:
        return self.value


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` along half a cosine, per step.

    With `Cosine(0.996, 1.0)` this is BYOL's momentum: 0.996, 0.998 at half time, 1.0 at the end.
    """

    start: float
    end: float

    def __call__(self, at: Progress) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * at.progress)) / 2


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` over the first `epochs` epochs (the whole run when None), then `end`."""

    start: float
    end: float
    epochs: float | None = None

    def __call__(self, at: Progress) -> float:
        length = at.steps if self.epochs is None else self.epochs * at.steps_per_epoch
        done = 1.0 if length <= 0 else min(1.0, at.step / length)
        return self.start + (self.end - self.start) * done


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from `warmup_start` to `peak` over `warmup` epochs, then half a cosine to `end`.

    The first step already has a positive value: step `i` of `n` warm-up steps gives `(i + 1) / n` of the way.
    `per_epoch=True` holds the cosine constant within an epoch, as SimSiam does.
    """

    peak: float = 1.0
    warmup: float = 10
    end: float = 0.0
    warmup_start: float = 0.0
    per_epoch: bool = False

    def __call__(self, at: Progress) -> float:
        # A run shorter than its warm-up would never reach the peak: warm up for a tenth of it at most then.
        steps = self.warmup * at.steps_per_epoch
        if steps >= at.steps:
            steps = at.steps / 10
        if at.step < steps:
            return self.warmup_start + (self.peak - self.warmup_start) * min(1.0, (at.step + 1) / steps)
        step = at.epoch * at.steps_per_epoch if self.per_epoch else at.step
        done = max(0.0, step - steps) / max(1.0, at.steps - steps)
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * done)) / 2


Schedule = Constant | Cosine | Linear | WarmupCosine


def value(schedule: Schedule | float, at: Progress) -> float:
    """The value of a schedule, or of a plain number, at a place in the run."""
    return schedule(at) if callable(schedule) else float(schedule)
