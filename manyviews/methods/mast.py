"""MAST: learn the invariance to each augmentation in a subspace of its own, as far as one can be sure of it.

VICReg, but an embedding is a Gaussian, with a mean and a variance for every dimension; and two views are compared once
for each augmentation that was applied to them, in the dimensions that its mask selects. Masks are learned, positive and
sparse. A distance counts for less where the variances are large.

MAST, Huang et al. 2023.

    L = 25/K distance + 600/(d K) ||M||_1 + 25 divergence + 25 variance + 1 covariance

The printed weight of the distance is 25 d/K. With sums over the d dimensions in the distance and the divergence, as
printed, these two are about d times the other terms; "comparable loss magnitudes" result from means. So
`reduction="mean"`, the default, takes means over dimensions, and with them the weight 25/K: then 25 weighs what it does
in VICReg, whose printed sums are means as well, and disjoint masks without uncertainty have exactly VICReg's distance.
"sum" is as printed.

Nothing in the printed loss keeps masks from shrinking or variances from growing: the distance and the sparsity fall
with the masks, and the distance and the divergence with the variances, until nothing is left of the invariance. Beyond
the paper, `mask_norm="fixed"` and a positive `prior_weight` prevent the one and the other.

Also beyond it: with more than two views of an image, each term is the mean over all pairs of views.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Literal, cast

from torch import Tensor, nn

from manyviews.backbones import Encoder, patch_features
from manyviews.errors import UserError
from manyviews.heads import GaussianProjector, Masks
from manyviews.methods import Branch, Method, Terms, mean_of, paired
from manyviews.objectives import (
    covariance,
    gaussian_distance,
    gaussian_kl,
    masked_distance,
    sparsity,
    unit_prior,
    variance,
)
from manyviews.types import Progress
from manyviews.views import Composed, Views


class MAST(Method):
    """See the module's docstring.

    Args:
        encoder: the network that is trained and kept.
        view: compositions of augmentations, two or more of each image.
        hidden_dim: width of the projector's two hidden layers.
        output_dim: dimensions of the embeddings.
        pooling: before or after the hidden layers: see `GaussianProjector`.
        positive: function that makes variances positive: see `GaussianProjector`.
        masks: one for each augmentation, "learned" or fixed and "disjoint", or "none" but a single one of ones.
        uncertainty: whether variances are learned. If not, distances are plain and there is no divergence.
        reduction: reduction over the dimensions in the distance and the divergence: see the module's docstring.
        distance_weight: weight of the distance, times d/K for sums, 1/K for means.
        sparsity_weight: weight of the masks' sum, over d K.
        divergence_weight: weight of the symmetric divergence of two views' Gaussians.
        variance_weight: weight of the hinge on the means' standard deviations.
        covariance_weight: weight of the means' squared covariances.
        mask_norm: "fixed" gives learned masks a length: see the module's docstring and `Masks`.
        prior_weight: weight of the variances' divergence from one: see the module's docstring.

    Raises:
        UserError: views that are not compositions.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Composed = Composed(2),
        hidden_dim: int = 8192,
        output_dim: int = 4096,
        pooling: Literal["first", "last"] = "first",
        positive: Literal["softplus", "relu"] = "softplus",
        masks: Literal["learned", "disjoint", "none"] = "learned",
        uncertainty: bool = True,
        reduction: Literal["mean", "sum"] = "mean",
        distance_weight: float = 25.0,
        sparsity_weight: float = 600.0,
        divergence_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        mask_norm: Literal["free", "fixed"] = "free",
        prior_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.views, self.view = paired(view), view
        if not isinstance(view, Composed):
            raise UserError(f"MAST must know which augmentations were applied: give Composed views, not {view.name}.")
        self.augmentations = tuple(a.name for a in view.augmentations)
        self.subspaces = ("all",) if masks == "none" else self.augmentations
        self.online = GaussianBranch(
            encoder,
            GaussianProjector(
                encoder.patch_dim,
                hidden_dim,
                output_dim,
                pooling=pooling,
                positive=positive if uncertainty else None,
            ),
        )
        self.masks = Masks(output_dim, len(self.augmentations), masks, norm=mask_norm)
        self.uncertainty, self.reduction = uncertainty, reduction
        self.weights = (
            *(distance_weight, sparsity_weight, divergence_weight),
            *(variance_weight, covariance_weight, prior_weight),
        )

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances of views, `b 3 h w` to `b d` each."""
        found: tuple[Tensor, Tensor] = self.online(x)
        return found

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        embedded = cast(list[tuple[Tensor, Tensor]], views.map(self.online))
        pairs = [(a, b, s, t) for (a, s), (b, t) in combinations(embedded, 2)]
        masks = self.masks()
        applied = views.applied(self.view.name) if len(self.subspaces) > 1 else None
        d, k = masks.shape
        size = d if self.reduction == "mean" else 1
        w_dist, w_sparse, w_kl, w_var, w_cov, w_prior = self.weights

        loss: Terms = {}
        if self.uncertainty:
            # The ratio of two sums over dimensions is already one of means.
            distance = mean_of(gaussian_distance(*pair, masks, applied) for pair in pairs)
            loss["divergence"] = w_kl / size * mean_of(gaussian_kl(*pair) for pair in pairs)
        else:
            # A mean over as many dimensions as disjoint masks have, whose traces they would be at unit variances.
            distance = mean_of(masked_distance(a, b, masks, applied) for a, b, _, _ in pairs)
            distance = distance * k / d if self.reduction == "mean" else distance
        loss["distance"] = w_dist * d / size / k * distance
        if isinstance(self.masks.weight, nn.Parameter):
            loss["sparsity"] = w_sparse / (d * k) * sparsity(masks)
        loss["variance"] = w_var * mean_of(variance(mu) for mu, _ in embedded)
        loss["covariance"] = w_cov * 2 * mean_of(covariance(mu) for mu, _ in embedded)  # of both views of a pair
        if self.uncertainty and w_prior:
            loss["prior"] = w_prior / size * mean_of(unit_prior(var) for _, var in embedded)
        yield loss


class GaussianBranch(Branch):
    """An encoder followed by its projector: `b 3 h w` to a mean and variances, `b d` each."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        found: tuple[Tensor, Tensor] = self.projector(patch_features(self.encoder, x))
        return found
