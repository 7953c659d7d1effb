"""Classes of unequal size: in the loss, in the batches, and in the number that chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import unknown
from manyviews.evaluation.contract import Task
from manyviews.evaluation.knn import knn
from manyviews.tuning.goal import WORST, Goal, Score

Way = Literal["none", "weights", "sampling", "logits"]
WAYS: tuple[str, ...] = get_args(Way)


@dataclass(frozen=True, eq=False)
class Balance(Goal):
    """One class of each image: cross-entropy, and what is done about classes of unequal size.

    - "none": nothing. Chosen by accuracy; in all other ways, by the mean of the classes' accuracies.
    - "weights": an image's loss is multiplied by `n / (classes * images of its class)`, whose mean is 1.
    - "sampling": rare classes are shown as often as the most frequent one, in epochs that are as many fewer.
    - "logits": the log share of each class is added to its logit in training and not afterwards, which makes the
      balanced error small (Menon et al. 2021, eq. 10 with tau 1).

    Attributes:
        way: one of these.
        counts: int64, `classes`, number of training images of each class, on the device.

    Raises:
        UserError: another way.
    """

    metric: ClassVar[str] = "accuracy"

    way: Way
    counts: Tensor

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise unknown("balance", self.way, WAYS)

    def of(self, y: Tensor) -> Balance:
        return replace(self, counts=torch.bincount(y, minlength=len(self.counts)))

    @property
    def weights(self) -> Tensor:
        """Weight of each class, float32."""
        counts = self.counts.float()
        return counts.sum() / (len(counts) * counts.clamp(min=1))

    @property
    def log_prior(self) -> Tensor:
        """Logarithm of each class's share of the images, float32."""
        counts = self.counts.float().clamp(min=1)
        return (counts / counts.sum()).log()

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Summed cross-entropy of logits, `b classes`, and labels, int64 `b`."""
        if self.way == "logits":
            logits = logits + self.log_prior
        weight = self.weights if self.way == "weights" else None
        return F.cross_entropy(logits, y, weight=weight, reduction="sum")

    def convex(self, logits: Tensor, y: Tensor) -> Tensor:
        """`loss` for all images at once, where a class that is sampled more often has a greater weight."""
        if self.way == "sampling":
            return F.cross_entropy(logits, y, weight=self.weights, reduction="sum")
        return self.loss(logits, y)

    def rows(self, y: Tensor, seed: int) -> Tensor:
        """Rows of an epoch, int64, on the CPU: all, or with "sampling" some several times.

        Args:
            y: int64, `n`, labels.
            seed: seed of which images of a class come once more than others.
        """
        y = y.cpu()
        if self.way != "sampling":
            return torch.arange(len(y))
        most, generator, found = int(self.counts.max()), torch.Generator().manual_seed(seed), []
        for c in range(len(self.counts)):
            own = (y == c).nonzero()[:, 0]
            if len(own):
                shuffled = own[torch.randperm(len(own), generator=generator)]
                found.append(shuffled.repeat(-(-most // len(own)))[:most])
        return torch.cat(found).sort()[0]

    def score(self, logits: Tensor, y: Tensor) -> Score:
        """The score of logits, `v classes`; a network that diverged has accuracy 0."""
        logits, y = logits.float().cpu(), y.cpu()
        certainty = -F.cross_entropy(logits, y).item()
        certainty = certainty if math.isfinite(certainty) else WORST
        right = ((logits.argmax(1) == y) & logits.isfinite().all(1)).double()
        if self.way == "none":
            return Score(right.mean().item(), certainty)
        accuracy = torch.stack([right[y == c].mean() for c in y.unique()]).mean().item()
        return Score(accuracy, certainty)

    def gain(self, ours: Tensor, theirs: Tensor, y: Tensor) -> tuple[bool, str]:
        better, images = gain(ours, theirs, y, self.way != "none")
        return better, f"{images:+d} images"

    def known(self, task: Task) -> tuple[float, float, str]:
        n, classes = len(task.train_y), task.classes
        k = max(1, min(20, n // classes // 2))
        found = knn(task.train_x, task.train_y, task.val_x, task.val_y, ks=(k,), classes=classes)
        share = max(0.0, (next(iter(found.weighted.values())) - 1 / classes) / (1 - 1 / classes))
        return n / classes, share, f"{n / classes:.0f} training images a class"


def gain(ours: Tensor, theirs: Tensor, y: Tensor, balanced: bool = False) -> tuple[bool, int]:
    """Whether accuracy is better by at least the standard error of the difference, and how many more images are right.

    Args:
        ours: logits, `v classes`.
        theirs: logits of the same images.
        y: int64, `v`, labels.
        balanced: whether accuracy is the mean over classes.
    """
    difference = (ours.argmax(1) == y).double() - (theirs.argmax(1) == y).double()
    weight = 1 / y.bincount().double()[y] if balanced else torch.ones(len(y), dtype=torch.float64)
    # Images that both get right or wrong do not vary: the variance of the sum is at most the sum of the squares.
    total, deviation = float((weight * difference).sum()), float((weight * difference).square().sum()) ** 0.5
    return total > 0 and total >= deviation - 1e-9, int(difference.sum())
