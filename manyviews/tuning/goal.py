"""What labels ask for: the loss to learn from, the number that chooses, and how much a gain must be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from manyviews.evaluation.contract import Task

WORST = -1e6  # score of a network that diverged: JSON has no infinity


class Score(NamedTuple):
    """How good outputs are on validation images. A greater tuple is better.

    Attributes:
        value: the goal's `metric`.
        certainty: the negative mean loss, which tells equal values apart.
    """

    value: float
    certainty: float


class Goal(ABC):
    """What labels ask for.

    Attributes:
        metric: name of the number that chooses.
        way: what is done about classes of unequal size: see `Balance`.
    """

    metric: ClassVar[str]
    way: str

    def of(self, y: Tensor) -> Goal:
        """The same for other training labels, `n ...`."""
        return self

    @abstractmethod
    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Summed loss of a head's outputs, `b outputs`, and labels, `b ...`."""

    def convex(self, outputs: Tensor, y: Tensor) -> Tensor:
        """`loss` for all images at once."""
        return self.loss(outputs, y)

    def rows(self, y: Tensor, seed: int) -> Tensor:
        """Rows of an epoch, int64, on the CPU: all of the labels `y`, `n ...`."""
        return torch.arange(len(y))

    @abstractmethod
    def score(self, outputs: Tensor, y: Tensor) -> Score:
        """The score of outputs for validation images, `v outputs`, and their labels."""

    @abstractmethod
    def gain(self, ours: Tensor, theirs: Tensor, y: Tensor) -> tuple[bool, str]:
        """Whether outputs are better by at least the standard error of the difference, and by how much, in words.

        Args:
            ours: `v outputs`.
            theirs: outputs for the same images.
            y: their labels, on the CPU.
        """

    @abstractmethod
    def known(self, task: Task) -> tuple[float, float, str]:
        """What the ladder asks of frozen features.

        Returns:
            training images of a class; the share of what chance leaves that k-NN gets right; the images in words.
        """
