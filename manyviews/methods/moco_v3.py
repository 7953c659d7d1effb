"""MoCo v3: momentum contrast without a queue, with a predictor, made for vision transformers.

The online network's prediction of one view must pick out the target network's projection of another view of the same
image among those of the whole batch, on all ranks.

An Empirical Study of Training Self-Supervised Vision Transformers, Chen et al. 2021. With several tasks: MULAN (2026),
where the alignment of each task is this method's own contrastive loss.

    ctr(q, k) = -2 temperature log( exp(q.k+ / temperature) / sum_k exp(q.k / temperature) )

Differs from the paper: it sums its two directions; here a task is the mean of its pairs, so its own loss is
`weights=2`. The moving average leaves the predictor out, which the paper's pseudo-code copies along by mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from manyviews.backbones import Encoder
from manyviews.heads import Predictors, Sharing, mlp
from manyviews.methods import Branch, Method, Terms
from manyviews.objectives import cross_info_nce
from manyviews.schedules import Cosine, Schedule
from manyviews.targets import EMA
from manyviews.types import Progress
from manyviews.views import BYOL_PAIR, Global, View, Views


class MoCoV3(Method):
    """See the module's docstring.

    Args:
        encoder: the network that is trained and kept.
        tasks: view types, the global ones with targets. The default is MoCo v3 itself.
        weights: weight of each task in the loss, or one number for all.
        predictor: "own", "shared" or "conditioned": see `manyviews.heads.Predictors`.
        hidden_dim: width of the heads' hidden layers.
        output_dim: dimensions of the contrasted space.
        projector_layers: 2 for ResNets, 3 for vision transformers.
        temperature: temperature of the softmax; 1.0 for ResNets, 0.2 for vision transformers.
        momentum: momentum of the target's moving average.
        freeze_patch_embed: keep a transformer's patch projection as it was initialized, which keeps training stable.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        tasks: tuple[View, ...] = (Global(2, area=(0.2, 1.0), color=BYOL_PAIR),),
        weights: tuple[float, ...] | float = 1.0,
        predictor: Sharing = "own",
        hidden_dim: int = 4096,
        output_dim: int = 256,
        projector_layers: int = 2,
        temperature: float = 1.0,
        momentum: Schedule | float = Cosine(0.996, 1.0),
        freeze_patch_embed: bool = False,
    ) -> None:
        super().__init__()
        self.views = tasks
        self.temperature = temperature
        if freeze_patch_embed:
            encoder.freeze_patch_embed()
        hidden = [hidden_dim] * (projector_layers - 1)
        self.online = Branch(encoder, mlp(encoder.embed_dim, *hidden, output_dim, last_norm="bn_no_affine"))
        self.predictors = Predictors(
            tasks,
            output_dim,
            lambda dim: mlp(dim, hidden_dim, output_dim, last_norm="bn_no_affine"),
            predictor,
            weights,
        )
        self.target = EMA(self.online, momentum)

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        targets = {name: views.all(name, self.target) for name in self.predictors.targets}
        term = self.predictors.term(views, targets, partial(cross_info_nce, temperature=self.temperature))
        yield from views.terms(self.online, term, self.predictors.tasks)
