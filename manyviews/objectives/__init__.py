"""Objectives: pure functions of tensors, written as the papers' equations.

They accept any floating type, compute at least in float32 even under autocast, and return a scalar unless documented
otherwise. An argument under the equation's stop-gradient receives no gradient, detached or not. Rows of other images
are gathered from all ranks where they matter. The mean over ranks of a value, and of its gradient, then equals that of
one process with the whole batch.
"""

from manyviews.objectives.alignment import consistency, negative_cosine, squared_distance
from manyviews.objectives.clustering import prior_divergence, sinkhorn, swapped_prediction
from manyviews.objectives.contrastive import clip, cross_info_nce, directed_info_nce, info_nce, mixed_nt_xent, nt_xent
from manyviews.objectives.decorrelation import covariance, cross_correlation, invariance, variance
from manyviews.objectives.distillation import (
    cross_entropy,
    gram,
    masked_cross_entropy,
    relation_cross_entropy,
    sharpen,
    softened_divergence,
)
from manyviews.objectives.entropy import koleo
from manyviews.objectives.gaussian import gaussian_distance, gaussian_kl, masked_distance, sparsity, unit_prior
from manyviews.objectives.hog import hog
from manyviews.objectives.reconstruction import (
    latent_error,
    layer_average,
    masked_l1,
    masked_mse,
    patchify,
    restored,
    unpatchify,
)
from manyviews.objectives.tokens import code_divergence, gumbel_softmax, token_error

__all__ = [
    "clip",
    "code_divergence",
    "consistency",
    "covariance",
    "cross_correlation",
    "cross_entropy",
    "cross_info_nce",
    "directed_info_nce",
    "gaussian_distance",
    "gaussian_kl",
    "gram",
    "gumbel_softmax",
    "hog",
    "info_nce",
    "invariance",
    "koleo",
    "latent_error",
    "layer_average",
    "masked_cross_entropy",
    "masked_distance",
    "masked_l1",
    "masked_mse",
    "mixed_nt_xent",
    "negative_cosine",
    "nt_xent",
    "patchify",
    "prior_divergence",
    "relation_cross_entropy",
    "restored",
    "sharpen",
    "sinkhorn",
    "softened_divergence",
    "sparsity",
    "squared_distance",
    "swapped_prediction",
    "token_error",
    "unit_prior",
    "unpatchify",
    "variance",
]
