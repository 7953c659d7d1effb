"""Accuracies and average precisions, with intervals for the size of the test set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Interval = tuple[float, float]

LEVEL = 0.95
RESAMPLES = 10_000
MAP_RESAMPLES = 1000
"""Resamples for a mean average precision, each of which reads all scores again."""


def hits(ranked: Tensor, y: Tensor, k: int = 1) -> Tensor:
    """Whether labels (`m`) are among the first k of the ranked classes (`m r`, best first): bool, `m`."""
    return (ranked[:, :k] == y[:, None]).any(1)


def top(ranked: Tensor, y: Tensor, k: int = 1) -> float:
    """Top-k accuracy in [0, 1]."""
    return hits(ranked, y, k).cpu().double().mean().item()


def per_class(right: Tensor, y: Tensor, classes: int) -> list[float | None]:
    """Accuracy in [0, 1] over the items of each class, None for a class without items."""
    count = torch.bincount(y, minlength=classes).tolist()
    correct = torch.bincount(y[right], minlength=classes).tolist()
    return [c / n if n else None for c, n in zip(correct, count, strict=True)]


def bootstrap(values: Tensor, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap interval of the mean of `values` (`m`), over the items.

    Hits give the interval of an accuracy. The difference of two classifiers' hits on the same items gives the interval
    of their difference, which is narrower than their two intervals suggest.

    A resample of m items matters only by its counts of each distinct value, and these counts are multinomial. They are
    drawn directly: the distribution is that of drawing items, and for hits and their differences, with two and three
    values, time and memory do not depend on m.
    """
    distinct, counts = np.unique(values.cpu().double().numpy(), return_counts=True)
    m = int(counts.sum())
    means = np.random.default_rng(seed).multinomial(m, counts / m, size=resamples) @ distinct / m
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


@dataclass(frozen=True)
class Ranking:
    """Items in the order of their scores, for each class: the basis of average precisions.

    Equal scores are one step of the ranking, as in scikit-learn. An item whose score is -inf or not a number was not
    found, but counts among those that should have been: a mean over found items would reward short lists.

    Attributes:
        order: int64, `c m`, items by descending score.
        relevant: bool, `c m`, whether these are of the class.
        found: bool, `c m`, whether these were ranked at all.
        end: int64, `c m`, the last position with the same score.
    """

    order: np.ndarray
    relevant: np.ndarray
    found: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, scores: Tensor, targets: Tensor) -> Ranking:
        """The ranking of items by their scores for each class (`m c`), and their targets (bool, `m c`)."""
        s = torch.where(scores.isnan(), -torch.inf, scores).T.cpu().double().numpy()
        order = np.argsort(-s, axis=1, kind="stable")
        ranked, m = np.take_along_axis(s, order, 1), s.shape[1]
        last = np.ones(s.shape, dtype=bool)
        last[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
        end = np.minimum.accumulate(np.where(last, np.arange(m), m)[:, ::-1], axis=1)[:, ::-1]
        return cls(order, np.take_along_axis(targets.T.cpu().numpy(), order, 1), ranked > -np.inf, end)

    def average_precision(self, weight: np.ndarray | None = None) -> np.ndarray:
        """Average precision of each class, float64 `c` in [0, 1]: the mean precision at the positions of its items.

        All points count, without interpolation, as in scikit-learn. (VOC since 2010 takes at each point the best
        precision of any higher recall, which is never less.) A class without items has NaN.

        Args:
            weight: float, `m`, number of times that each item occurs; 1 if None.
        """
        classes, m = self.order.shape
        w = np.ones(m) if weight is None else weight
        row, position, end, last = self._hits
        above = w.take(self.order).cumsum(1)[row, end]
        mine = w[self.order[row, position]]
        hits = np.concatenate([[0.0], mine.cumsum(dtype=np.float64)])
        hits_above = hits[last + 1] - hits[np.searchsorted(row, row)]
        with np.errstate(invalid="ignore"):  # nothing above, or nothing in the class
            precision = np.where(self.found[row, position] & (mine > 0), hits_above / above, 0.0)
            return np.bincount(row, mine * precision, classes) / np.bincount(row, mine, classes)

    @cached_property
    def _hits(self) -> tuple[np.ndarray, ...]:
        """Class, position and `end` of each relevant item, and the last relevant item up to there, class by class."""
        row, position = np.nonzero(self.relevant)
        end, m = self.end[row, position], self.order.shape[1]
        return row, position, end, np.searchsorted(row * m + position, row * m + end, side="right") - 1

    def eleven_points(self) -> np.ndarray:
        """VOC 2007's average precision, float64 `c`: the mean best precision at recalls of at least 0, 0.1, ..., 1.

        A class without items has NaN.
        """
        total = self.relevant.sum(1, keepdims=True)
        hits = np.take_along_axis((self.relevant & self.found).cumsum(1), self.end, 1)
        precision = np.where(self.found, hits / (1 + self.end), 0.0)
        reached = [10 * hits >= tenth * total for tenth in range(11)]  # in integers: 0.1 is no binary fraction
        best = np.mean([np.where(r, precision, 0.0).max(1) for r in reached], axis=0)
        return np.where(total[:, 0] > 0, best, np.nan)

    def bootstrap(self, seed: int = 0, level: float = LEVEL, resamples: int = MAP_RESAMPLES) -> Interval:
        """Percentile bootstrap interval of the mean over classes of their average precisions, over the items.

        Classes that a resample has no items of are left out of its mean, and a resample that has items of no class is
        left out of all.
        """
        rng, m = np.random.default_rng(seed), self.order.shape[1]
        draws = (rng.multinomial(m, np.full(m, 1 / m)).astype(np.float32) for _ in range(resamples))  # counts: exact
        precisions = (self.average_precision(weight) for weight in draws)
        means = [np.nanmean(p) for p in precisions if not np.isnan(p).all()]
        low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
        return float(low), float(high)
