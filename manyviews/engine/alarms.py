"""Signs of collapse and of divergence, in words: of measurements and of the lines of a run's log."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from manyviews.evaluation.unlabeled.spectrum import COLLAPSED

# For features and projections: the prefix of their numbers, the spread below which all images are alike, and the share
# of the best rank below which dimensions are lost. Features come out of a ReLU, so any two are alike at first (those
# of untrained encoders spread 0.05 to 0.5); projections soon spread 0.3 and more. Ranks of healthy runs fall too: they
# peak early and shrink by a third, and a transformer's to two fifths of an untrained one's before they grow.
_WATCHED = {
    "features": ("", COLLAPSED, 1 / 4),
    "projections": ("projection_", 0.1, 1 / 2),
    "features of patches": ("patch_", COLLAPSED, 1 / 4),
}
_WHO = {"features": "the encoder", "projections": "the loss", "features of patches": "the encoder"}
_ALIKE = {"features of patches": "patches"}

# Of the step's own numbers: below which the distributions of images over prototypes say nothing about them (nats), and
# the targets of a prediction are the same for all patches.
_NOTHING, _SAME = 0.02, 0.05
_LASTS = 3  # lines: a young teacher passes through one prototype, until its center has followed
_SLOW = 1.3  # times as long as the middle one
_JUMP, _BEFORE = 20.0, (10, 20)  # times the median of the lines before, of which there are so many: least, most


def of_measurements(seen: Sequence[Mapping[str, float]]) -> list[str]:
    """The warnings due after the last of a run's measurements, which are given in their order.

    Features, projections or features of patches collapse
    - completely, when their spread falls below 0.05 (projections: 0.1) and half of the best so far, or to next to
      nothing, a tenth of that;
    - to few dimensions, when their effective rank falls below an eighth of their dimensions and a quarter (projections:
      half) of the best so far.

    The first measurement, of the untrained encoder, is only compared with, and never an alarm. An alarm is given once,
    and again only after the value has recovered to one and a half times its limit.
    """
    found = []
    for what, (prefix, alike, share) in _WATCHED.items():
        shown = [row for row in seen if f"{prefix}rankme" in row and f"{prefix}dim" in row]
        if shown and shown[-1] is seen[-1]:
            before, now = (_state(shown[:end], prefix, alike, share) for end in (len(shown) - 1, len(shown)))
            # A recovery from a point passes through few dimensions.
            if now and now != before and (before, now) != ("collapse", "few"):
                found.append(_words(what, prefix, now, shown))
    return found


def _state(seen: Sequence[Mapping[str, float]], prefix: str, alike: float, share: float) -> str:
    """The state at the last measurement: "collapse" to a point, "few" dimensions, or ""."""
    state, best_spread, best_rank = "", 0.0, 0.0
    for i, row in enumerate(seen):
        spread, rank, dim = (row[prefix + name] for name in ("spread", "rankme", "dim"))
        best_spread, best_rank = max(best_spread, spread), max(best_rank, rank)
        if i and spread < max(min(alike, best_spread / 2), alike / 10) * (1.5 if state == "collapse" else 1):
            state = "collapse"
        elif i and rank < min(dim / 8, share * best_rank) * (1.5 if state else 1):
            state = "few"
        else:
            state = ""
    return state


def _words(what: str, prefix: str, state: str, seen: Sequence[Mapping[str, float]]) -> str:
    row = seen[-1]
    spread, rank, dim = (row[prefix + name] for name in ("spread", "rankme", "dim"))
    best_spread, best_rank = (max(r[prefix + name] for r in seen) for name in ("spread", "rankme"))
    who, things = _WHO[what], _ALIKE.get(what, "images")
    if state == "collapse":
        happened = (
            f"The {what} have collapsed: all {things} look nearly the same to {who} (spread {spread:.3f} of 1, "
            f"{best_spread:.2f} at best)."
        )
    else:
        happened = (
            f"The {what} use {rank:.0f} of {dim:.0f} dimensions, {best_rank:.0f} at best: {who} can tell few {things} "
            "apart."
        )
    return f"{happened} A lower learning rate or a larger batch may help."


class OfSteps:
    """The warnings that are due after a line of a run's log, which it hears in their order.

    - All images get the same distribution over prototypes: for three lines it tells less than 0.02 nats about an
      image. The first epoch counts only after more than ten times as much, because untrained encoders tell little.
    - All patches have the same target: their spread is below 0.05 and half of the best so far.
    - The largest gradient of the first layer is over 20 times the median of the last 20 lines, of at least 10.
    - For three lines, the same one of several processes takes 1.3 times as long for its own work as the middle one.

    An alarm is given once, and again only after the value has recovered to one and a half times its limit.

    Args:
        rows: the lines of a log so far.

    Attributes:
        jumped: whether the last line warned of a gradient.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._on = set[str]()
        self._best: dict[str, float] = {}
        self._low: dict[str, int] = {}
        self._peaks: deque[float] = deque(maxlen=_BEFORE[1])
        self.jumped = False
        self._slowest = (-1, 0)  # the slow process, and for how many lines it has been
        for row in rows:
            self.hear(row)

    def hear(self, row: Mapping[str, Any]) -> list[str]:
        """The warnings due after this line."""
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        found = []
        self.jumped = False
        for key in (k for k in numbers if k.startswith("watch/") and k.endswith("information")):
            self._low[key] = self._low.get(key, 0) + 1 if numbers[key] < _NOTHING else 0
            known = numbers.get("epoch", 1) >= 1 or self._best.get(key, 0.0) > 10 * _NOTHING
            known = known and (key in self._on or self._low[key] >= _LASTS)
            if self._begins(key, numbers[key], _NOTHING, known):
                found.append(_same_distribution(numbers, key.removesuffix("information")))
        for key in (k for k in numbers if k == "watch/target_spread"):
            best = self._best.get(key, 0.0)
            if self._begins(key, numbers[key], min(_SAME, best / 2), True):
                found.append(
                    f"The features to predict have collapsed: they are nearly the same for all patches (spread "
                    f"{numbers[key]:.3f}, {best:.2f} at best). A slower moving average or a lower learning rate may "
                    "help."
                )
        if "slowness" in numbers:
            rank, lines = int(numbers["slowest"]), self._slowest[1]
            again = lines + 1 if rank == self._slowest[0] else 1
            self._slowest = (rank, again if numbers["slowness"] > _SLOW else 0)
            if self._begins(f"slow {rank}", -numbers["slowness"], -_SLOW, self._slowest[1] >= _LASTS):
                found.append(
                    f"Process {rank} is slow: it takes {numbers['slowness']:.1f} times as long for its own work as the "
                    "middle one, and all wait for it. Something else may run there, or its disk or network is slower."
                )
        if "grad_peak" in numbers:
            peak = numbers["grad_peak"]
            if len(self._peaks) >= _BEFORE[0]:
                usual = median(self._peaks)
                self.jumped = self._begins("grad_peak", -peak, -_JUMP * usual, usual > 0)
                if self.jumped:
                    found.append(
                        f"The largest gradient of the first layer jumped to {peak:.2g}, {peak / usual:.0f} times its "
                        "median before. Such jumps often come before a divergence: a longer warm-up or a lower "
                        "learning rate may help, or a frozen patch projection as in MoCo v3."
                    )
            self._peaks.append(peak)
        return found

    def _begins(self, key: str, x: float, limit: float, known: bool) -> bool:
        """Whether a value has just fallen below its limit."""
        before = key in self._on
        eased = limit * (1.5 if limit > 0 else 1 / 1.5) if before else limit
        now = known and x < eased
        self._on = self._on | {key} if now else self._on - {key}
        self._best[key] = max(self._best.get(key, x), x)
        return now and not before


def _same_distribution(numbers: Mapping[str, float], prefix: str) -> str:
    what = "patches" if prefix.endswith("patch_") else "images"
    told = f"{numbers[f'{prefix}information']:.3f} nats"
    if numbers.get(f"{prefix}teacher_entropy", 0.0) > 0.9:
        how, cure = "nearly the uniform one", "A lower temperature of the teacher may help."
    else:
        how = f"on {numbers.get(f'{prefix}perplexity', 1.0):.1f} prototypes"
        cure = "A higher temperature of the teacher, or a lower learning rate, may help."
    return f"The teacher gives all {what} the same distribution, {how}: it tells {told} about them. {cure}"
