"""How far a run goes: so many steps, a span of time, or to an early end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from manyviews.types import Progress

_END = 3.0  # seconds that a run with a budget keeps for writing its results
_MEMORY = 20.0  # seconds over which the speed of a run with a budget is averaged, a tenth of a short budget at most


@dataclass(frozen=True)
class Early:
    """An early end: the schedule runs out over fewer steps than it would have.

    Attributes:
        since: steps that the run had taken.
        of: steps that the schedule had been for.
        over: steps from `since` to the end.
    """

    since: int
    of: int
    over: int


class Plan:
    """The number of steps of a run, and the progress of each.

    With a budget the number follows from the time that is left and the speed of late, so that the schedule ends in
    time whatever else the machine does.

    Args:
        steps: steps of the whole run, or how many are expected if there is a budget.
        per_epoch: steps of one pass over the images.
        budget: seconds of the whole run.
        early: an early end.

    Attributes:
        pause: seconds of a measurement, as the last one took; 0 before the first.
    """

    def __init__(self, steps: int, per_epoch: int, budget: float | None = None, early: Early | None = None) -> None:
        self._steps, self._per_epoch, self._budget, self._early = steps, per_epoch, budget, early
        self._pace: float | None = None
        self._every, self.pause = 0, 0.0

    @property
    def last(self) -> int:
        """The steps after which the run ends, as far as is known now."""
        return self._early.since + self._early.over if self._early else self._steps

    @property
    def timed(self) -> bool:
        """Whether the number of steps depends on the time."""
        return self._budget is not None and self._early is None

    def at(self, step: int) -> Progress:
        """The progress before a step. After an early end was asked for, it goes faster than the steps."""
        early, steps = self._early, self._steps
        if early is not None:
            gone = max(0, step - early.since)
            step, steps = min(step, early.since) + gone * (early.of - early.since) // early.over, early.of
        return Progress(min(step, steps - 1), steps, self._per_epoch)

    def expect(self, every: int, pause: float) -> None:
        """What else takes time: a pause of so many seconds after every so many steps, and at the end."""
        self._every, self.pause = every, pause

    def tick(self, step: int, spent: float, pace: float, seconds: float) -> None:
        """Plan anew, with a budget.

        Args:
            step: steps taken.
            spent: seconds spent on the run so far.
            pace: seconds of a step of late, without pauses.
            seconds: over which this was measured.
        """
        assert self._budget is not None
        pause = self.pause / self._every if self._every else 0.0
        left = self._budget - self.pause - _END - spent
        if self._pace is None:  # of the first steps, which compile and allocate, the plan's own is the better one
            self._pace = max(1e-6, left / max(1, self._steps - step) - pause)
        memory = min(_MEMORY, self._budget / 10)
        self._pace += (1 - math.exp(-seconds / memory)) * (pace - self._pace)
        self._steps = step + max(0, round(left / (self._pace + pause)))

    def agree(self, last: int) -> None:
        """Take the number of steps that the first process has planned."""
        self._steps = last

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of the plan."""
        pause = {"pause": round(self.pause, 3)} if self.timed else {}
        return {"end": self.last} | pause if self.timed or self._early else {}

    def resume(self, step: int, facts: dict[str, Any]) -> None:
        """Go on from a checkpoint with these facts."""
        if self.timed and facts.get("end") is not None:
            self._steps = max(step, int(facts["end"]))
            self.pause = float(facts.get("pause", 0.0))
