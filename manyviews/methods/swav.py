"""SwAV: predict one view's cluster assignment from another view.

Embeddings are scored against learned prototypes. The global views' scores are turned into codes that use all
prototypes equally (Sinkhorn-Knopp), and every view predicts the codes of the other global views.

Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, Caron et al. 2020.

    L = mean over pairs (code s, view t != s) of  -sum_k q_s^k log softmax(z_t . c / temperature)^k

The global views, which give each other's codes, are backpropagated together, local views after them. The text's one
temperature is two: one of the softmax, one (epsilon) of the assignment. Codes sum to one for each image; the printed
marginals are those of two different normalizations.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from manyviews.backbones import Encoder
from manyviews.heads import Prototypes, Watch, mlp
from manyviews.methods import Branch, Method, Terms, paired, sum_of
from manyviews.objectives import sinkhorn, swapped_prediction
from manyviews.types import Progress
from manyviews.views import SWAV, Global, Local, View, Views


class SwAV(Method):
    """See the module's docstring.

    Args:
        encoder: the network that is trained and kept.
        views: view types; the global ones give codes.
        hidden_dim: width of the projector's hidden layer.
        output_dim: dimensions of the clustered space.
        prototypes: number of clusters.
        temperature: temperature of the prediction's softmax.
        epsilon: temperature of the assignment.
        iterations: iterations of Sinkhorn-Knopp.
        freeze_epochs: epochs in which the prototypes stay as they were initialized.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: tuple[View, ...] = (
            Global(2, area=(0.14, 1.0), color=SWAV),
            Local(6, area=(0.05, 0.14), color=SWAV),
        ),
        hidden_dim: int = 2048,
        output_dim: int = 128,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        freeze_epochs: int = 1,
    ) -> None:
        super().__init__()
        self.views = paired(*views, target="global")
        self.online = Branch(encoder, mlp(encoder.embed_dim, hidden_dim, output_dim))
        self.prototypes = Prototypes(output_dim, prototypes)
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.freeze_epochs = freeze_epochs
        self.scored, self.watch = (self.prototypes, temperature), Watch()

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        scores = [self.prototypes(z) for z in views.all("global", self.online)]
        codes = [sinkhorn(s.detach(), self.epsilon, self.iterations) for s in scores]
        self.watch.distributions(codes[0], scores[1], self.temperature)
        pairs = len(codes) * (sum(v.count for v in self.views) - 1)

        def term(kind: View, i: int, scores: Tensor, codes: list[Tensor]) -> Tensor:
            # Cross-entropy is linear in the codes: of their sum, it takes one pass over the scores.
            code = views.blend(kind.name, i, sum_of(codes))
            return swapped_prediction(scores, code, self.temperature) / pairs

        whole, *rest = sorted(self.views, key=lambda kind: kind.name != "global")
        yield {"global": sum_of(term(whole, i, s, codes[:i] + codes[i + 1 :]) for i, s in enumerate(scores))}
        del scores
        yield from views.terms(self.online, lambda kind, i, z: term(kind, i, self.prototypes(z), codes), rest)

    def before_update(self, at: Progress) -> None:
        if at.epoch < self.freeze_epochs:
            self.prototypes.zero_grad()
