"""MAST: learn the invariance to each augmentation in a subspace of its own, as far as one can be sure of it.

VICReg, but an embedding is a Gaussian, with a mean and a variance for every dimension; and two views are compared once
for each augmentation that was applied to them, in the dimensions that its mask selects. Masks are learned, positive and
sparse. A distance counts for less where the variances are large.

MAST, Huang et al. 2023. As printed, with K the number of augmentations that were applied:

    L = 25 d/K distance + 600/(d K') ||M||_1 + 25 divergence + 25 variance + 1 covariance

With sums over the d dimensions in the divergence, as printed, and 25 d/K, the two are d times the other terms;
"comparable loss magnitudes" result from means over dimensions. So `reduction="mean"`, the default, takes means, and
then the distance has the weight 25/K. That is VICReg's 25, whose printed sums are means as well. "sum" is as printed.

Each printed term falls, or stays, when masks shrink and when variances grow. So nothing of the invariance is left in
the end: masks die within a few epochs. Three additions, which the paper does not have, hold it:

- `masks="gates"`: entries in [0, 1] that add up to d/K' in each of the K' masks, so that no mask can shrink. Their sum
  is a constant, and there is no sparsity term.
- With gates, half of the hinge's weight is where masks select: a dimension in a mask may not be given up. With disjoint
  masks and unit variances, distance and variance are then VICReg's, in both stages.
- `prior_weight`: the variances' divergence from one.

`masks="learned", prior_weight=0, squared=False` is the printed loss.

Also beyond the paper: with more than two views of an image, each term is the mean over all pairs of views.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Literal, cast

from torch import Tensor

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
        masks: one for each augmentation: "gates", "learned" as printed, or "disjoint" and fixed; or "none" but a single
            one of ones.
        uncertainty: whether variances are learned. If not, distances are plain and there is no divergence.
        reduction: reduction over the dimensions in the distance and the divergence: see the module's docstring.
        distance_weight: weight of the distance, times d/K for sums, 1/K for means.
        sparsity_weight: weight of the masks' sum, over d K.
        divergence_weight: weight of the symmetric divergence of two views' Gaussians.
        variance_weight: weight of the hinge on the means' standard deviations.
        covariance_weight: weight of the means' squared covariances.
        squared: whether a masked variance is the mask's square times the variance, or as printed the mask times it.
        mask_norm: "fixed" gives "learned" masks a length: see `Masks`, also for why not to.
        mask_rate: factor on the masks' learning rate.
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
        masks: Literal["gates", "learned", "disjoint", "none"] = "gates",
        uncertainty: bool = True,
        reduction: Literal["mean", "sum"] = "mean",
        distance_weight: float = 25.0,
        sparsity_weight: float = 600.0,
        divergence_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        squared: bool = True,
        mask_norm: Literal["free", "fixed"] = "free",
        mask_rate: float = 1.0,
        prior_weight: float = 25.0,
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
        self.lr_scales = {"masks.": mask_rate}
        self.uncertainty, self.reduction, self.squared = uncertainty, reduction, squared
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
        applied = views.applied(self.view.name) if len(self.subspaces) > 1 else None
        pairs = [
            (a, b, s, t, None if applied is None else applied[i] | applied[j])
            for (i, (a, s)), (j, (b, t)) in combinations(enumerate(embedded), 2)
        ]
        masks = self.masks()
        d, k = masks.shape
        size = d if self.reduction == "mean" else 1
        w_dist, w_sparse, w_kl, w_var, w_cov, w_prior = self.weights

        loss: Terms = {}
        if self.uncertainty:
            loss["divergence"] = w_kl / size * mean_of(gaussian_kl(a, b, s, t) for a, b, s, t, _ in pairs)
        if self.uncertainty or self.masks.kind == "gates":
            # The ratio of two sums over dimensions is already one of means. Without uncertainty variances are one.
            distance = mean_of(
                gaussian_distance(a, b, s, t, masks, on, squared=self.squared) for a, b, s, t, on in pairs
            )
        else:
            # A mean over as many dimensions as disjoint masks have, whose traces they would be at unit variances.
            distance = mean_of(masked_distance(a, b, masks, on) for a, b, _, _, on in pairs)
            distance = distance * k / d if self.reduction == "mean" else distance
        loss["distance"] = w_dist * d / size * distance
        selected = None
        if self.masks.kind == "gates":
            selected = (1 / d + (masks / masks.sum(0)).mean(1).detach()) / 2
        elif self.masks.kind == "learned":
            loss["sparsity"] = w_sparse / (d * k) * sparsity(masks)
        loss["variance"] = w_var * mean_of(variance(mu, selected) for mu, _ in embedded)
        loss["covariance"] = w_cov * 2 * mean_of(covariance(mu) for mu, _ in embedded)  # of both views of a pair
        if self.uncertainty and w_prior:
            loss["prior"] = w_prior / size * mean_of(unit_prior(var) for _, var in embedded)
        yield loss


class GaussianBranch(Branch):
    """An encoder followed by its projector: `b 3 h w` to a mean and variances, `b d` each."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        found: tuple[Tensor, Tensor] = self.projector(patch_features(self.encoder, x))
        return found
