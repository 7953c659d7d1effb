"""BYOL: predict a slowly moving copy of oneself, seeing another view.

The online network predicts the target network's projection of another view of the same image; the target follows the
online weights by exponential moving average and receives no gradient. Nothing pushes images apart; the predictor and
the moving target keep the solution from collapsing.

Bootstrap your own latent, Grill et al. 2020. With several tasks this is MULAN (2026), eq. 1: one predictor for each
view type over one shared encoder and projector; each online view is compared with every global target but its own.
A lone global view is a target only, so that cutout can stand alone (section 4.2).

    L = sum_tasks w_task  mean over the task's (view, target) pairs of  2 - 2 cos(predictor_task(z), sg(z'))

Differs from the papers: BYOL sums its two directions; here a task is the mean of its pairs, so BYOL's own loss is
`weights=2`. MULAN prints eq. 1 with vectors as they are, and their squared distance; BYOL's are normalized, and so are
its authors'. It writes the alignment for one pair and leaves the averaging open; the mean is its authors'.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from manyviews.backbones import Encoder
from manyviews.heads import Predictors, Sharing, mlp
from manyviews.methods import Branch, Method, Terms
from manyviews.objectives import squared_distance
from manyviews.schedules import Cosine, Schedule
from manyviews.targets import EMA
from manyviews.types import Progress
from manyviews.views import BYOL_PAIR, Global, View, Views


class BYOL(Method):
    """See the module's docstring.

    Args:
        encoder: the network that is trained and kept.
        tasks: view types, the global ones with targets. The default is BYOL; the recipe `byol_mulan` adds MULAN's.
        weights: weight of each task in the loss, or one number for all.
        predictor: "own", "shared" or "conditioned": see `manyviews.heads.Predictors`.
        hidden_dim: width of the projector's and the predictor's hidden layer.
        output_dim: dimensions of the space in which views are compared.
        projector_layers: 2, or MoCo v3's 3, which MULAN has for vision transformers (appendix E).
        output_norm: BatchNorm without scale and shift on the outputs of both heads, as MoCo v3 has it; MULAN's vision
            transformers take MoCo v3's heads.
        freeze_patch_embed: keep a transformer's patch projection as it was initialized; MULAN trains it.
        momentum: momentum of the target's moving average.
        kept: which network is evaluated and exported; with vision transformers MULAN finds the "target" slightly
            better (appendix A).
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        tasks: tuple[View, ...] = (Global(2, color=BYOL_PAIR),),
        weights: tuple[float, ...] | float = 1.0,
        predictor: Sharing = "own",
        hidden_dim: int = 4096,
        output_dim: int = 256,
        projector_layers: int = 2,
        output_norm: bool = False,
        freeze_patch_embed: bool = False,
        momentum: Schedule | float = Cosine(0.996, 1.0),
        kept: Literal["online", "target"] = "online",
    ) -> None:
        super().__init__()
        self.views = tasks
        if freeze_patch_embed:
            encoder.freeze_patch_embed()
        norm: Literal["bn_no_affine"] | None = "bn_no_affine" if output_norm else None
        hidden = [hidden_dim] * (projector_layers - 1)
        self.online = Branch(encoder, mlp(encoder.embed_dim, *hidden, output_dim, last_norm=norm))
        self.predictors = Predictors(
            tasks, output_dim, lambda dim: mlp(dim, hidden_dim, output_dim, last_norm=norm), predictor, weights
        )
        self.target = EMA(self.online, momentum)
        self.kept = kept

    @property
    def kept_encoder(self) -> Encoder:
        return self.online.encoder if self.kept == "online" else self.target.module.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        targets = {name: views.all(name, self.target) for name in self.predictors.targets}
        term = self.predictors.term(views, targets, squared_distance)
        yield from views.terms(self.online, term, self.predictors.tasks)
