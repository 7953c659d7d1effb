"""Accuracies, and how sure of them a test set of its size makes one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Interval = tuple[float, float]

LEVEL = 0.95
RESAMPLES = 10_000


def hits(ranked: Tensor, y: Tensor, k: int = 1) -> Tensor:
    """Whether labels (`m`) are among the first k of the ranked classes (`m r`, best first): bool, `m`."""
    return (ranked[:, :k] == y[:, None]).any(1)


def top(ranked: Tensor, y: Tensor, k: int = 1) -> float:
    """Top-k accuracy in [0, 1]."""
    return hits(ranked, y, k).double().mean().item()


def per_class(right: Tensor, y: Tensor, classes: int) -> list[float | None]:
    """Accuracy in [0, 1] over the items of each class, None for a class without items."""
    count = torch.bincount(y, minlength=classes).tolist()
    correct = torch.bincount(y[right], minlength=classes).tolist()
    return [c / n if n else None for c, n in zip(correct, count, strict=True)]


def bootstrap(values: Tensor, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap interval of the mean of `values` (`m`), over the items.

    With hits it is an accuracy's interval; with the difference of two classifiers' hits on the same items it is the
    interval of their difference, which is narrower than their two intervals suggest.

    A resample of m items matters only by how often it holds each distinct value, and these counts are multinomial. So
    they are drawn directly: the same distribution as drawing items, and for hits and their differences, which have two
    and three values, in time and memory that do not depend on m.
    """
    distinct, counts = np.unique(values.cpu().double().numpy(), return_counts=True)
    m = int(counts.sum())
    means = np.random.default_rng(seed).multinomial(m, counts / m, size=resamples) @ distinct / m
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
