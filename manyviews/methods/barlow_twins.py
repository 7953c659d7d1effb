"""Barlow Twins: two views' embeddings agree in every dimension, and no dimension repeats another.

The dimensions of both views' embeddings are standardized over the batch. Their cross-correlations are drawn to the
identity: ones on the diagonal make the views agree, zeros off it remove redundancy, and with it collapse. No negatives,
no moving average, no predictor.

Barlow Twins: Self-Supervised Learning via Redundancy Reduction, Zbontar et al. 2021.

    L = scale ( sum_i (1 - C_ii)^2 + 0.005 sum_{i != j} C_ij^2 ),   C = Z_a^T Z_b / N

Each dimension is standardized over the batch, and not each embedding normalized, as the document's overview has it: the
diagonal could then not come near to one. The paper has a rate of their own for biases and norms, 0.024 of the weights';
LARS moves weights by the direction of their gradient alone, so that `scale=0.024` does the same, except for a decay
of 1e-6.

Beyond the paper: with more than two views of an image, each term is the mean over all pairs of views.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from torch import Tensor

from manyviews.backbones import Encoder
from manyviews.heads import mlp
from manyviews.methods import Branch, Method, Terms, mean_of, paired
from manyviews.objectives import cross_correlation
from manyviews.types import Progress
from manyviews.views import BYOL_PAIR, Global, View, Views


class BarlowTwins(Method):
    """See the module's docstring.

    Args:
        encoder: the network that is trained and kept.
        view: the view type, two or more of each image.
        hidden_dim: width of the projector's two hidden layers.
        output_dim: dimensions of the embeddings.
        redundancy_weight: weight of the squared correlations of different dimensions.
        scale: factor on the whole loss.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: View = Global(2, color=BYOL_PAIR),
        hidden_dim: int = 8192,
        output_dim: int = 8192,
        redundancy_weight: float = 0.005,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.views = paired(view)
        self.online = Branch(encoder, mlp(encoder.embed_dim, hidden_dim, hidden_dim, output_dim))
        self.redundancy_weight, self.scale = redundancy_weight, scale

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        pairs = [_from_identity(cross_correlation(a, b)) for a, b in combinations(views.map(self.online), 2)]
        on, off = (mean_of(terms) for terms in zip(*pairs, strict=True))
        yield {"invariance": self.scale * on, "redundancy": self.scale * self.redundancy_weight * off}


def _from_identity(c: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distances of a matrix from the identity, on the diagonal and off it; it is overwritten."""
    on = (1 - c.diagonal()).square().sum()
    return on, c.fill_diagonal_(0).square().sum()
