"""MSN: a masked view gets the prototypes of another, unmasked view of the image; nothing is rebuilt.

Some global views lose patches at random, and small crops see little from the start: these are the anchors. The last
global view is whole, and a moving copy of the network assigns it to prototypes, sharply. Each anchor must give the same
distribution, and the mean distribution of all anchors must use all prototypes.

Masked Siamese Networks for Label-Efficient Learning, Assran et al. 2022. With a power law as the prior: PMSN, The
Hidden Uniform Cluster Prior in Self-Supervised Learning, Assran et al. 2023.

    L = mean over anchors m of  H( p+, p_m ) + w KL( mean p_m || prior ),    prior_j proportional to j^-exponent

With exponent 0 the last term is log k minus the entropy that MSN maximizes. Prototypes are of unit length after every
step. The paper names no activation of the projector; it is ReLU. The moving copy is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.heads import Prototypes, Watch, mlp
from manyviews.methods import Branch, Method, Terms, mean_of, paired, sum_of, visible
from manyviews.objectives import cross_entropy, prior_divergence, sinkhorn
from manyviews.schedules import Cosine, Schedule
from manyviews.targets import EMA
from manyviews.types import Packed, Progress
from manyviews.views import MOCO_V2, Global, Local, Masking, Random, View, Views


class Anchors(Branch):
    """An encoder that may drop patches, and a projector."""

    packs = False  # packed images keep all patches

    def forward(self, x: Tensor | Packed, keep: Tensor | None = None) -> Tensor:
        """`b d`. `keep`: int64, `b v`, the patches that the encoder sees; all if None."""
        found: Tensor = self.projector(self.encoder.features(x, keep=keep).pooled)
        return found


class MSN(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer, which is trained; its moving average is kept.
        views: view types; the last global view is the target, all others are anchors, of which the global are masked.
        masking: patches of the global anchors that are dropped. The paper drops more for larger networks: 0.15 for
            ViT-S, 0.3 for ViT-B, 0.7 for ViT-L/7 and ViT-B/4.
        hidden_dim: width of the projector's hidden layers.
        output_dim: dimensions of the space of prototypes.
        prototypes: number of clusters.
        temperature: temperature of the anchors' softmax.
        target_temperature: temperature of the target's softmax, lower.
        iterations: iterations of Sinkhorn-Knopp on the targets; 0 for none, as other priors than uniform need it.
        weight: weight of the divergence from the prior.
        exponent: exponent of the power law of the prior: 0 is uniform (MSN), 0.25 is for unbalanced sets (PMSN).
        momentum: momentum of the moving average.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: tuple[View, ...] = (
            Global(2, area=(0.3, 1.0), color=MOCO_V2),
            Local(10, area=(0.05, 0.3), color=MOCO_V2),
        ),
        masking: Masking = Random(0.15),
        hidden_dim: int = 2048,
        output_dim: int = 256,
        prototypes: int = 1024,
        temperature: float = 0.1,
        target_temperature: float = 0.025,
        iterations: int = 3,
        weight: float = 1.0,
        exponent: float = 0.0,
        momentum: Schedule | float = Cosine(0.996, 1.0),
    ) -> None:
        super().__init__()
        if exponent and iterations:
            raise UserError("Sinkhorn-Knopp makes targets uniform, which a power law is not: set iterations to 0.")
        encoder.transformer("drop patches")
        self.views = tuple(sorted(paired(*views, target="global"), key=lambda kind: kind.name != "global"))
        d = encoder.embed_dim
        projector = nn.Sequential(nn.BatchNorm1d(d), mlp(d, hidden_dim, hidden_dim, output_dim))
        self.online = Anchors(encoder, projector)
        self.target = EMA(self.online, momentum)
        self.prototypes = Prototypes(output_dim, prototypes)
        self.masking, self.temperature, self.target_temperature = masking, temperature, target_temperature
        self.iterations, self.weight, self.exponent = iterations, weight, exponent
        self.scored, self.watch = (self.prototypes, temperature), Watch()

    @property
    def kept_encoder(self) -> Encoder:
        return self.target.module.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        whole = self.views[0].count - 1
        anchors = [(k, i) for k in self.views for i in range(k.count) if (k.name, i) != ("global", whole)]

        def inputs(kind: View, i: int) -> Mapping[str, Tensor]:
            return {"keep": visible(self.mask(views, i))} if kind.name == "global" else {}

        target = self._assigned(self.target(views["global", whole]))
        scores = [self.prototypes(z) for z in views.map(self.online, anchors, inputs)]
        self.watch.distributions(target, scores[0], self.temperature)
        pairs = zip(anchors, scores, strict=True)
        errors = (cross_entropy(views.blend(k.name, i, target), s, self.temperature) for (k, i), s in pairs)
        mean = sum_of((s / self.temperature).softmax(1) for s in scores) / len(scores)
        yield {
            "prediction": mean_of(errors),
            "prototypes": self.weight * prior_divergence(mean, self.exponent),
        }

    @torch.no_grad()
    def _assigned(self, z: Tensor) -> Tensor:
        """The target's distributions."""
        sharp = self.prototypes(z) / self.target_temperature
        return sinkhorn(sharp.log_softmax(1), 1.0, self.iterations) if self.iterations else sharp.softmax(1)
