"""SimSiam: two views, one network, a predictor and a stop-gradient.

One view's prediction is aligned with the other view's projection, through which no gradient flows. There are no
negatives and no moving average.

Exploring Simple Siamese Representation Learning, Chen & He 2021. With several tasks: MULAN (2026), one predictor per
view type.

    L = mean over pairs of  -cos(predictor(z), sg(z'))          (the paper's halves, for two views)

MULAN's authors project the global views once more to get targets. The projections at hand give the same numbers at two
thirds of the cost. So the global views are backpropagated together, and further views after them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from manyviews.backbones import Encoder
from manyviews.heads import Predictors, Sharing, mlp
from manyviews.methods import Branch, Method, Terms, sum_of
from manyviews.objectives import negative_cosine
from manyviews.types import Progress
from manyviews.views import SIMSIAM, Global, View, Views


class SimSiam(Method):
    """See the module's docstring.

    Args:
        encoder: the network that is trained and kept.
        tasks: view types, the global ones with targets. The default is SimSiam itself.
        weights: weight of each task in the loss, or one number for all.
        predictor: "own", "shared" or "conditioned": see `manyviews.heads.Predictors`.
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
        self.views = tasks
        self.online = Branch(
            encoder, mlp(encoder.embed_dim, hidden_dim, hidden_dim, output_dim, last_norm="bn_no_affine")
        )
        self.predictors = Predictors(
            tasks, output_dim, lambda dim: mlp(dim, bottleneck_dim, output_dim), predictor, weights
        )

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        # Views that give targets and predict some themselves are projected once for both.
        giving = [task for task in self.predictors.tasks if task.name in self.predictors.targets]
        projections = {task.name: views.all(task.name, self.online) for task in giving}
        targets = {name: [z.detach() for z in found] for name, found in projections.items()}
        with torch.no_grad():
            for name in self.predictors.targets:
                if name not in targets:
                    targets[name] = views.all(name, self.online)
        term = self.predictors.term(views, targets, negative_cosine)
        if giving:
            yield {t.name: sum_of(term(t, i, z) for i, z in enumerate(projections.pop(t.name))) for t in giving}
        yield from views.terms(self.online, term, [task for task in self.predictors.tasks if task not in giving])
