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
        y: int64, `v`, of a softmax; or bool, `v classes`, of a sigmoid for each class.
    """
    s, y = logits.double().cpu(), y.cpu()
    certain = (len(s) + 1) / (len(s) + 2)
    several = y.ndim == 2
    target = y.double() if several else F.one_hot(y, s.shape[1]).double()
    target = target * certain + (1 - target) * (1 - certain) / (1 if several else max(1, s.shape[1] - 1))

    def slope(inverse: float) -> float:
        found = (inverse * s).sigmoid() if several else (inverse * s).softmax(1)
        return float(((found - target) * s).sum(1).mean())

    low, high = (torch.tensor(v).log().item() for v in _RANGE)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(float(torch.tensor(middle).exp())) > 0 else (middle, high)
    return float(torch.tensor(-(low + high) / 2).exp())


def thresholds(probability: Tensor, y: Tensor) -> tuple[float, ...]:
    """The probability of each class from which on an image has it: the greatest F1 on validation images.

    It lies halfway between two images. A class that no validation image has, or all have, gets 0.5.

    Args:
        probability: float, `v classes`.
        y: bool, `v classes`.
    """
    found = []
    for p, has in zip(probability.double().cpu().T, y.cpu().T, strict=True):
        if not has.any() or has.all():
            found.append(0.5)
            continue
        order = p.argsort(descending=True, stable=True)
        ranked, hits = p[order], has[order].cumsum(0).double()
        f1 = 2 * hits / (torch.arange(1, len(p) + 1) + has.sum())
        f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal probabilities are on one side
        k = int(f1.argmax())
        below = ranked[k + 1].item() if k + 1 < len(p) else 0.0
        found.append((ranked[k].item() + below) / 2)
    return tuple(found)


def calibration_error(probability: Tensor, y: Tensor) -> float:
    """Expected calibration error with 15 bins of equal width: float `v classes`, int64 `v` (Guo et al. 2017, eq. 3)."""
    sure, guess = probability.double().cpu().max(1)
    right = (guess == y.cpu()).double()
    bins = (sure * _BINS).long().clamp(max=_BINS - 1)
    error = sum((right[bins == b] - sure[bins == b]).sum().abs().item() for b in bins.unique())
    return error / max(1, len(y))
