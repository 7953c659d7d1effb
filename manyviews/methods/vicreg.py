"""VICReg: keep the views together, the variance up and the dimensions uncorrelated.

Two views' embeddings are pulled together by their mean squared distance, while a hinge keeps each dimension's standard
deviation over the batch above one and a penalty drives the covariances between dimensions to zero. No negatives, no
moving average, no normalization of the embeddings.

VICReg, Bardes et al. 2022.

    L = 25 invariance + 25 variance + 1 covariance

The printed invariance sums over dimensions; the weights 25, 25, 1 belong to the mean over dimensions and to half the
sum of the two branches' variance terms, which is what `objectives.decorrelation` computes.

Beyond the paper: with more than two views of an image, each term is the mean over all pairs of views.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from manyviews.backbones import Encoder
from manyviews.heads import mlp
from manyviews.methods import Branch, Method, Terms, mean_of, paired
from manyviews.objectives import covariance, invariance, variance
from manyviews.types import Progress
from manyviews.views import BYOL_PAIR, Global, View, Views


class VICReg(Method):
    """See the module's docstring.

    Args:
        encoder: the network that is trained and kept.
        view: the view type, two or more of each image.
        hidden_dim: width of the expander's two hidden layers.
        output_dim: dimensions of the embeddings.
        invariance_weight: weight of the squared distance between the views.
        variance_weight: weight of the hinge on the standard deviations.
        covariance_weight: weight of the squared covariances.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: View = Global(2, color=BYOL_PAIR),
        hidden_dim: int = 8192,
        output_dim: int = 8192,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.views = paired(view)
        self.online = Branch(encoder, mlp(encoder.embed_dim, hidden_dim, hidden_dim, output_dim))
        self.weights = (invariance_weight, variance_weight, covariance_weight)

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        z = views.map(self.online)
        w_inv, w_var, w_cov = self.weights
        yield {
            "invariance": w_inv * mean_of(invariance(a, b) for a, b in combinations(z, 2)),
            "variance": w_var * mean_of(map(variance, z)),
            "covariance": w_cov * 2 * mean_of(map(covariance, z)),  # of both views of a pair
        }
