"""Classes of unequal size: in the loss, in the batches, and in the number that chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import unknown

Way = Literal["none", "weights", "sampling", "logits"]
WAYS: tuple[str, ...] = get_args(Way)

_NONE = -1e6  # certainty of a network that diverged: JSON has no infinity


class Score(NamedTuple):
    """How good logits are on validation images. A greater tuple is better.

    Attributes:
        accuracy: share of the images, or mean over classes where classes are balanced.
        certainty: mean log probability of the labels, which tells equal accuracies apart.
    """

    accuracy: float
    certainty: float


@dataclass(frozen=True, eq=False)
class Balance:
    """What is done about classes of unequal size.

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

    way: Way
    counts: Tensor

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise unknown("balance", self.way, WAYS)

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
        certainty = certainty if math.isfinite(certainty) else _NONE
        right = ((logits.argmax(1) == y) & logits.isfinite().all(1)).double()
        if self.way == "none":
            return Score(right.mean().item(), certainty)
        accuracy = torch.stack([right[y == c].mean() for c in y.unique()]).mean().item()
        return Score(accuracy, certainty)
