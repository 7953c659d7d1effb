"""BYOL: predict a slowly moving copy of oneself, seeing another view.

The online network predicts the target network's projection of another view of the same image; the target follows the
online weights by exponential moving average and receives no gradient. Nothing pushes images apart; the predictor and
the moving target keep the solution from collapsing.

Bootstrap your own latent, Grill et al. 2020. With several tasks this is MULAN (2026), eq. 1: one predictor for each
view type over one shared encoder and projector; each online view is compared with every global target but its own.

    L = sum_tasks w_task  mean over the task's (view, target) pairs of  2 - 2 cos(predictor_task(z), sg(z'))

Differs from the papers: BYOL sums its two directions; here a task is the mean of its pairs, so BYOL's own loss is
`weights=2`. MULAN writes the alignment for one pair and leaves the averaging open; the mean is its authors'.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from manyviews.backbones import Encoder
from manyviews.heads import Predictors, mlp, others, pairs, task_weights
from manyviews.methods.method import Branch, Method, Terms, paired
from manyviews.objectives import squared_distance
from manyviews.schedules import Cosine, Schedule
from manyviews.targets import EMA
from manyviews.types import At
from manyviews.views import BYOL_PAIR, Global, View, Views


class BYOL(Method):
    """See the module's docstring.

    Args:
        encoder: what is trained and kept.
        tasks: view types, the global ones with targets. The default is BYOL; the recipe `byol_mulan` adds MULAN's.
        weights: of the tasks in the loss; one for each, or one number for all.
        predictor: "own" for each task, or one "shared" (naive multi-crop).
        hidden_dim: width of the projector's and the predictor's hidden layer.
        output_dim: dimensions of the space in which views are compared.
        momentum: of the target's moving average.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        tasks: tuple[View, ...] = (Global(2, color=BYOL_PAIR),),
        weights: tuple[float, ...] | float = 1.0,
        predictor: Literal["own", "shared"] = "own",
        hidden_dim: int = 4096,
        output_dim: int = 256,
        momentum: Schedule | float = Cosine(0.996, 1.0),
    ) -> None:
        super().__init__()
        self.looks = paired(*tasks, target="global")
        self.weights = task_weights(tasks, weights)
        self.online = Branch(encoder, mlp(encoder.embed_dim, hidden_dim, output_dim))
        self.predictors = Predictors(tasks, lambda: mlp(output_dim, hidden_dim, output_dim), predictor)
        self.target = EMA(self.online, momentum)

    @property
    def keep(self) -> Encoder:
        return self.online.encoder

    def loss(self, views: Views, at: At) -> Iterator[Terms]:
        targets = [self.target(x) for x in views.all("global")]
        for task, i, x in views.each():
            p = self.predictors(task, self.online(x))
            total = torch.stack([squared_distance(p, z) for z in others(targets, task, i)]).sum()
            yield {task.name: self.weights[task.name] * total / pairs(task, len(targets))}

    def after_update(self, at: At) -> None:
        self.target.update(self.online, at)
