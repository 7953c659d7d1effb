"""Probabilities that mean what they say."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_BINS = 15
_RANGE = (0.01, 100.0)  # of the inverse temperature


def temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature that makes validation labels likeliest (Guo et al. 2017, section 4.2).

    The mean cross-entropy is convex in the inverse temperature, and bisection finds where its slope is zero. Where all
    answers are right it would be infinite, so each label counts as `(n + 1) / (n + 2)` certain (Platt 1999).

    Args:
        logits: float, `v classes`, finite.
        y: int64, `v`.
    """
    n, classes = logits.shape
    s, target = logits.double().cpu(), F.one_hot(y.cpu(), logits.shape[1]).double()
    certain = (n + 1) / (n + 2)
    target = target * certain + (1 - target) * (1 - certain) / max(1, classes - 1)

    def slope(inverse: float) -> float:
        return float((((inverse * s).softmax(1) - target) * s).sum(1).mean())

    low, high = (torch.tensor(v).log().item() for v in _RANGE)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(float(torch.tensor(middle).exp())) > 0 else (middle, high)
    return float(torch.tensor(-(low + high) / 2).exp())


def calibration_error(probability: Tensor, y: Tensor) -> float:
    """Expected calibration error with 15 bins of equal width: float `v classes`, int64 `v` (Guo et al. 2017, eq. 3)."""
    sure, guess = probability.double().cpu().max(1)
    right = (guess == y.cpu()).double()
    bins = (sure * _BINS).long().clamp(max=_BINS - 1)
    error = sum((right[bins == b] - sure[bins == b]).sum().abs().item() for b in bins.unique())
    return error / max(1, len(y))
