"""A handful of labeled images of each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from manyviews.evaluation import metrics
from manyviews.evaluation.contract import Count, LabeledTask, Metric, MetricProtocol
from manyviews.evaluation.linear import Standardizer, logistic_fit
from manyviews.evaluation.subsets import balanced


@dataclass(frozen=True)
class FewShot(MetricProtocol):
    """Logistic regression on a few labeled images of each class, its penalty fixed: the mean of several draws.

    Nothing is chosen, because validation labels would be more than the few. Features have unit length and the penalty
    is scikit-learn's default, C = 1, as in Tian et al. 2020, "Rethinking few-shot image classification". Before that
    they are standardized by all training and validation images, which takes no labels. Images are drawn from both; a
    draw takes those whose names have the smallest hashes (see `subsets.balanced`), and all images of a class that has
    fewer.

    The interval is over the test images, which all draws are asked about. The deviation over draws, which share images
    where classes are small, is in the details, next to the accuracy of the nearest class mean of the same features
    (Snell et al. 2017).

    Args:
        draws: number of draws.
    """

    shots: ClassVar[int]
    """Labeled images of each class."""

    draws: Count = 10

    def run(self, task: LabeledTask, seed: int) -> Metric:
        known, test_y = task.frozen, task.test_y.cpu()
        x, y = known.trainval_x, known.trainval_y
        standard, names = Standardizer.of(x), task.trainval.ids
        x, test_x = F.normalize(standard(x)), F.normalize(standard(known.test_x))
        share = self.shots * len(y.unique()) / len(y)
        right, nearest = [], []
        for draw in range(self.draws):
            rows = balanced(names, y.cpu(), share, seed * self.draws + draw).to(x.device)
            few, labels = x[rows], y[rows]
            logits = logistic_fit(few, labels, test_x, classes=known.classes, penalty=1 / len(few))
            right.append((logits.argmax(1).cpu() == test_y).double())
            found = labels.unique()
            means = torch.stack([few[labels == c].mean(0) for c in found])
            nearest.append((found[torch.cdist(test_x, means).argmin(1)].cpu() == test_y).double().mean().item())
        hits = torch.stack(right)
        of_draws = hits.mean(1)
        details = {
            "standard deviation over draws": of_draws.std().item() if self.draws > 1 else 0.0,
            "lowest": of_draws.min().item(),
            "highest": of_draws.max().item(),
            "nearest class mean": sum(nearest) / self.draws,
        }
        setting = {"images": float(len(rows)), "draws": float(self.draws), "C": 1.0}
        return Metric("mean accuracy", hits.mean().item(), metrics.bootstrap(hits.mean(0), seed), details, setting)


@dataclass(frozen=True)
class FewShot5(FewShot):
    """Logistic regression on 5 labeled images of each class, its penalty fixed: the mean of 10 draws.

    See `FewShot`.
    """

    name = "few_shot_5"
    title = "5 labels per class"
    shots = 5


@dataclass(frozen=True)
class FewShot10(FewShot):
    """Logistic regression on 10 labeled images of each class, its penalty fixed: the mean of 10 draws.

    See `FewShot`.
    """

    name = "few_shot_10"
    title = "10 labels per class"
    shots = 10
