"""Labels other than one class of each image: several classes, and numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.evaluation.contract import Task
from manyviews.evaluation.knn import neighbors
from manyviews.evaluation.metrics import Ranking
from manyviews.tuning.goal import WORST, Goal, Score

_NEIGHBORS = 20
_RESAMPLES = 200
_CLASSES = 10  # numbers are as much to learn as so many classes


@dataclass(frozen=True)
class Several(Goal):
    """Any number of classes of each image: binary cross-entropy, chosen by mean average precision (mAP).

    Labels are bool, `n classes`.
    """

    metric: ClassVar[str] = "mAP"

    way: str = "none"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Binary cross-entropy, summed over images and averaged over classes."""
        return F.binary_cross_entropy_with_logits(outputs, y.to(outputs.dtype), reduction="sum") / y.shape[1]

    def convex(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Summed over classes too: each has a logistic regression of its own, as in the protocol `multilabel`."""
        return self.loss(outputs, y) * y.shape[1]

    def score(self, outputs: Tensor, y: Tensor) -> Score:
        outputs, y = outputs.float().cpu(), y.cpu()
        certainty = -self.loss(outputs, y).item() / max(1, len(y))
        if not math.isfinite(certainty):
            return Score(0.0, WORST)
        return Score(_mean(Ranking.of(outputs, y).average_precision()), certainty)

    def gain(self, ours: Tensor, theirs: Tensor, y: Tensor) -> tuple[bool, str]:
        """Better by the standard error that a bootstrap over the images gives the difference."""
        rankings = [Ranking.of(outputs, y) for outputs in (ours, theirs)]
        by = _mean(rankings[0].average_precision()) - _mean(rankings[1].average_precision())
        rng, n = np.random.default_rng(0), len(y)
        drawn = (rng.multinomial(n, np.full(n, 1 / n)).astype(np.float32) for _ in range(_RESAMPLES))
        pairs = ([_mean(r.average_precision(weight)) for r in rankings] for weight in drawn)
        deviation = float(np.std([a - b for a, b in pairs]))
        return by > 0 and by >= deviation, f"{100 * by:+.1f} points of mAP"

    def known(self, task: Task) -> tuple[float, float, str]:
        found = _nearest(task)
        chance = _mean(Ranking.of(torch.zeros_like(found), task.val_y).average_precision())
        share = (_mean(Ranking.of(found, task.val_y).average_precision()) - chance) / max(1e-6, 1 - chance)
        each = task.train_y.sum(0).double().mean().item()
        return each, max(0.0, share), f"{each:.0f} training images with a class, on average"


@dataclass(frozen=True)
class Numbers(Goal):
    """Numbers of each image: squared error, chosen by the share of their variance that is explained (R²).

    Labels are float32, `n columns`, standardized by the training images. R² is the mean over the columns.
    """

    metric: ClassVar[str] = "R²"

    way: str = "none"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Half the squared error, summed over images and averaged over columns."""
        return (outputs - y).square().sum() / (2 * y.shape[1])

    def score(self, outputs: Tensor, y: Tensor) -> Score:
        outputs, y = outputs.float().cpu(), y.cpu()
        error = (outputs - y).square().mean().item()
        if not math.isfinite(error):
            return Score(WORST, WORST)
        return Score(sum(explained(outputs, y)) / y.shape[1], -error)

    def gain(self, ours: Tensor, theirs: Tensor, y: Tensor) -> tuple[bool, str]:
        """Better by the standard error of the mean difference of squared errors."""
        a, b = ((outputs - y).double().square().mean(1) for outputs in (ours, theirs))
        total, deviation = float((b - a).sum()), float((b - a).square().sum()) ** 0.5
        by = sum(explained(ours, y)) / y.shape[1] - sum(explained(theirs, y)) / y.shape[1]
        return total > 0 and total >= deviation, f"{by:+.3f} R²"

    def known(self, task: Task) -> tuple[float, float, str]:
        found, n = _nearest(task).cpu(), len(task.train_y)
        share = max(0.0, sum(explained(found, task.val_y.cpu())) / task.classes)
        return n / _CLASSES, share, f"{n:,} training images, {n / _CLASSES:.0f} for each of {_CLASSES} classes"


def explained(outputs: Tensor, y: Tensor) -> list[float]:
    """R² of each column, `v columns`: 1 less the squared error over that of the mean; 0 where `y` does not vary."""
    outputs, y = outputs.double(), y.double()
    left, all_ = (outputs - y).square().sum(0), (y - y.mean(0)).square().sum(0)
    return torch.where(all_ > 0, 1 - left / all_.clamp(min=1e-30), 0.0).tolist()


def _nearest(task: Task) -> Tensor:
    """The mean labels of the nearest training images: float32, `v outputs`."""
    _, index = neighbors(task.train_x, task.val_x, min(_NEIGHBORS, len(task.train_x)))
    return task.train_y.float()[index].mean(1)


def _mean(precisions: np.ndarray) -> float:
    """Their mean without the classes that no image has; 0 if there are none."""
    return 0.0 if np.isnan(precisions).all() else float(np.nanmean(precisions))
