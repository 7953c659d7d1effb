"""What is to be learned, and what came of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder
from manyviews.data.source import Source
from manyviews.evaluation.contract import ImageTask
from manyviews.evaluation.crops import LabeledCrops, again
from manyviews.evaluation.features import encode
from manyviews.progress import Update
from manyviews.tuning.goal import Goal, Score
from manyviews.views import Global


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model before it is calibrated.

    Attributes:
        strategy: name of the strategy.
        encoder: encoder of timm's plain names.
        head: a `Standardize`, then a head.
        head_spec: what `heads.classify.classifier` makes the head from.
        logits: float32, `v outputs`, what the head gives for the validation images, on the CPU.
        score: their score.
        learned: number of parameters that learned.
        setting: what was chosen.
        history: numbers along the way.
        seconds: how long it took.
    """

    strategy: str
    encoder: Encoder
    head: nn.Sequential
    head_spec: Mapping[str, Any]
    logits: Tensor
    score: Score
    learned: int
    setting: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Problem:
    """Labeled images for an encoder.

    Attributes:
        task: the encoder, which stays as it is; features of training and validation images; the images.
        goal: what the labels ask for.
        seed: seed of everything that is drawn.
        deadline: when learning ends, on the monotonic clock; None for never.
        progress: told how far a strategy is.
    """

    task: ImageTask
    goal: Goal
    seed: int = 0
    deadline: float | None = None
    progress: Update | None = None

    @property
    def encoder(self) -> Encoder:
        """The encoder as it came."""
        assert isinstance(self.task.encoder, Encoder)
        return self.task.encoder

    def copied(self, encoder: Encoder) -> Encoder:
        """A copy whose parameters may all learn, on the device."""
        found = copy.deepcopy(encoder).to(self.task.device).to(memory_format=torch.channels_last)
        found.stays = ()
        return found.requires_grad_(True)

    @property
    def images(self) -> Source:
        """The training images."""
        return self.task.trainval.subset(range(len(self.task.frozen.train_y)))

    @property
    def whole(self) -> Problem:
        """The same, where the images that chose are to be learned from, too; nothing can be chosen with it."""
        known = self.task.frozen
        both = replace(known, train_x=known.trainval_x, train_y=known.trainval_y)
        return replace(self, task=replace(self.task, frozen=both), goal=self.goal.of(both.train_y))

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()

    def crops(self, area: tuple[float, float], batch: int) -> LabeledCrops:
        """Training images as mirrored crops of so much of their area, balanced if that is asked for."""
        task, y = self.task, self.task.frozen.train_y
        rows = self.goal.rows(y, self.seed)
        kind = Global(1, size=task.size, area=area, color=None, flip=0.5)
        return LabeledCrops(task, self.images.subset(rows.numpy()), y[rows.to(y.device)], kind, batch, self.seed)

    @cached_property
    def _validation(self) -> Callable[[], Iterable[Tensor]]:
        n = len(self.task.frozen.train_y)
        return again(self.task.trainval.subset(range(n, len(self.task.trainval))), self.task.size)

    def validate(self, encoder: nn.Module, head: nn.Module) -> Tensor:
        """Logits of the validation images, `v classes`, on the CPU, in exact float32."""
        task, net = self.task, nn.Sequential(encoder, head)
        found = [encode(net, x, mean=task.mean, std=task.std, device=task.device) for x in self._validation()]
        return torch.cat(found).cpu()

    def score(self, logits: Tensor) -> Score:
        """The score of logits of the validation images."""
        return self.goal.score(logits, self.task.frozen.val_y)

    def noted(self, score: Score) -> dict[str, float]:
        """A score by the names of its numbers."""
        return {self.goal.metric: score.value, "certainty": score.certainty}

    def tell(self, done: int, total: int, note: str) -> None:
        """Report progress, if anybody listens."""
        if self.progress is not None:
            self.progress(done, total, note)
