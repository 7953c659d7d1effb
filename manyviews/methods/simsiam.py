"""SimSiam: two views, one network, a predictor and a stop-gradient.

One view's prediction is aligned with the other view's projection, through which no gradient flows. There are no
negatives and no moving average.

Exploring Simple Siamese Representation Learning, Chen & He 2021. With several tasks: MULAN (2026), one predictor per
view type.

    L = mean over pairs of  -cos(predictor(z), sg(z'))          (the paper's halves, for two views)

Differs from MULAN's authors: they project the global views once more, without gradient, to get targets; the same
numbers come from the projections at hand, at two thirds of the cost. So both global views are backpropagated together,
and further views after them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from manyviews.backbones import Encoder
from manyviews.heads import Predictors, Sharing, comparable, mlp, task_weights
from manyviews.methods.method import Branch, Method, Terms, totals
from manyviews.objectives import negative_cosine
from manyviews.types import Progress
from manyviews.views import SIMSIAM, Global, View, Views


class SimSiam(Method):
    """See the module's docstring.

    Args:
        encoder: what is trained and kept.
        tasks: view types, the global ones with targets. The default is SimSiam itself.
        weights: of the tasks in the loss; one for each, or one number for all.
        predictor: "own" for each task, one "shared" (naive multi-crop), or "conditioned": own ones that are also told
            where a view lies as seen from its target, and what was done to it.
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
        predictor: Sharing = "own",
        hidden_dim: int = 2048,
        output_dim: int = 2048,
        bottleneck_dim: int = 512,
    ) -> None:
        super().__init__()
        self.views = comparable(tasks)
        self.weights = task_weights(tasks, weights)
        self.online = Branch(
            encoder, mlp(encoder.embed_dim, hidden_dim, hidden_dim, output_dim, last_norm="bn_no_affine")
        )
        self.predictors = Predictors(tasks, output_dim, lambda dim: mlp(dim, bottleneck_dim, output_dim), predictor)

    @property
    def kept_encoder(self) -> Encoder:
        return self.online.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        # Views that give targets and predict some themselves are projected once for both.
        giving = [t for t in self.predictors.tasks if t.name in self.predictors.targets]
        projections = {t.name: views.all(t.name, self.online) for t in giving}
        targets = {name: [z.detach() for z in found] for name, found in projections.items()}
        with torch.no_grad():
            for name in self.predictors.targets:
                if name not in targets:
                    targets[name] = views.all(name, self.online)

        def term(task: View, i: int, z: Tensor) -> Tensor:
            pairs = self.predictors.pairs(views, task, i, z, targets)
            mean = torch.stack([negative_cosine(p, t) for p, t in pairs]).mean()
            return self.weights[task.name] * mean / task.count

        if giving:
            yield totals((t.name, term(t, i, z)) for t in giving for i, z in enumerate(projections[t.name]))
            del projections
        for group in views.groups(self.online, [t for t in self.predictors.tasks if t not in giving], beside=giving):
            yield totals((task.name, term(task, i, z)) for task, i, z in group)
