"""SimSiam: two views, one network, a predictor and a stop-gradient.

One view's prediction is aligned with the other view's projection, through which no gradient flows. There are no
negatives and no moving average.

Exploring Simple Siamese Representation Learning, Chen & He 2021. With several tasks: MULAN (2026), one predictor per
view type.

    L = mean over pairs of  -cos(predictor(z), sg(z'))          (the paper's halves, for two views)

Differs from MULAN's authors: they project the global views once more, without gradient, to get targets; the same
numbers come from the projections at hand, at two thirds of the cost. So both global views are backpropagated together,
and every further view alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from manyviews.backbones import Encoder
from manyviews.heads import Predictors, mlp, others, pairs, task_weights
from manyviews.methods.method import Branch, Method, Terms, paired
from manyviews.objectives import negative_cosine
from manyviews.types import At
from manyviews.views import SIMSIAM, Global, View, Views


class SimSiam(Method):
    """See the module's docstring.

    Args:
        encoder: what is trained and kept.
        tasks: view types, the global ones with targets. The default is SimSiam itself.
        weights: of the tasks in the loss; one for each, or one number for all.
        predictor: "own" for each task, or one "shared".
        hidden_dim: width of the projector's two hidden layers.
        output_dim: dimensions of the space in which views are compared.
        bottleneck_dim: width of the predictor's hidden layer.
    """

    constant_lr = ("predictors.",)  # the predictor's learning rate does not decay: 68.1 against 67.7 (paper, table 1)

    def __init__(
        self,
        encoder: Encoder,
        *,
        tasks: tuple[View, ...] = (Global(2, area=(0.2, 1.0), color=SIMSIAM),),
        weights: tuple[float, ...] | float = 1.0,
        predictor: Literal["own", "shared"] = "own",
        hidden_dim: int = 2048,
        output_dim: int = 2048,
        bottleneck_dim: int = 512,
    ) -> None:
        super().__init__()
        self.looks = paired(*tasks, target="global")
        self.weights = task_weights(tasks, weights)
        self.online = Branch(
            encoder, mlp(encoder.embed_dim, hidden_dim, hidden_dim, output_dim, last_norm="bn_no_affine")
        )
        self.predictors = Predictors(tasks, lambda: mlp(output_dim, bottleneck_dim, output_dim), predictor)

    @property
    def keep(self) -> Encoder:
        return self.online.encoder

    def loss(self, views: Views, at: At) -> Iterator[Terms]:
        projections = [self.online(x) for x in views.all("global")]
        targets = [z.detach() for z in projections]

        def term(task: View, i: int, z: Tensor) -> Tensor:
            p = self.predictors(task, z)
            total = torch.stack([negative_cosine(p, t) for t in others(targets, task, i)]).sum()
            return self.weights[task.name] * total / pairs(task, len(targets))

        globals_ = next(t for t in self.looks if t.name == "global")
        total = torch.stack([term(globals_, i, z) for i, z in enumerate(projections)]).sum()
        yield {"global": total}
        del projections, total
        for task, i, x in views.each(t for t in self.looks if t is not globals_):
            yield {task.name: term(task, i, self.online(x))}
