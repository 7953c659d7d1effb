"""Schedules: pure functions of the progress of a run.

A schedule is a frozen dataclass, so it prints, compares and saves like any other setting. A plain number may stand
wherever a schedule is expected, and means `Constant`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from manyviews.types import Progress


@dataclass(frozen=True)
class Schedule(ABC):
    """A value that follows the progress of a run."""

    @abstractmethod
    def __call__(self, at: Progress) -> float: ...


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value throughout."""

    value: float

    def __call__(self, at: Progress) -> float:
        return self.value


@dataclass(frozen=True)
class Cosine(Schedule):
    """From `start` to `end` along half a cosine, step by step.

    `Cosine(0.996, 1.0)` is BYOL's momentum: 0.996 at first, 0.998 at half time, 1.0 at the end.
    """

    start: float
    end: float

    def __call__(self, at: Progress) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * at.progress)) / 2


@dataclass(frozen=True)
class Linear(Schedule):
    """From `start` to `end` over the first `epochs` epochs (None: the whole run), then `end`."""

    start: float
    end: float
    epochs: float | None = None

    def __call__(self, at: Progress) -> float:
        length = at.steps if self.epochs is None else self.epochs * at.steps_per_epoch
        done = 1.0 if length <= 0 else min(1.0, at.step / length)
        return self.start + (self.end - self.start) * done


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linear from `warmup_start` to `peak` over `warmup` epochs, then half a cosine to `end`.

    The first step already has a positive value: step `i` of `n` warm-up steps has gone `(i + 1) / n` of the way.
    `per_epoch=True` holds the cosine constant within an epoch, as SimSiam does.
    """

    peak: float = 1.0
    warmup: float = 10
    end: float = 0.0
    warmup_start: float = 0.0
    per_epoch: bool = False

    def __call__(self, at: Progress) -> float:
        # A run shorter than its warm-up would never reach the peak: it warms up for a tenth of its steps.
        steps = self.warmup * at.steps_per_epoch
        if steps >= at.steps:
            steps = at.steps / 10
        if at.step < steps:
            return self.warmup_start + (self.peak - self.warmup_start) * min(1.0, (at.step + 1) / steps)
        step = at.epoch * at.steps_per_epoch if self.per_epoch else at.step
        done = max(0.0, step - steps) / max(1.0, at.steps - steps)
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class Repeat(Schedule):
    """A schedule that begins anew in each of `times` equal parts of the run, such as dBOT's stages."""

    schedule: Schedule
    times: int = 2

    def __call__(self, at: Progress) -> float:
        part = self.times * at.step // at.steps
        first, end = (-(-k * at.steps // self.times) for k in (part, part + 1))
        return self.schedule(Progress(at.step - first, end - first, at.steps_per_epoch))


@dataclass(frozen=True)
class Stretched(Schedule):
    """Another schedule, as if the run were `factor` times as long: it ends before the schedule does (I-JEPA)."""

    schedule: Schedule
    factor: float = 1.25

    def __call__(self, at: Progress) -> float:
        return self.schedule(replace(at, steps=max(1, round(at.steps * self.factor))))


def value(schedule: Schedule | float, at: Progress) -> float:
    """The value of a schedule, or the plain number that stands for one."""
    return schedule(at) if isinstance(schedule, Schedule) else float(schedule)
