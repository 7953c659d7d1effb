"""Objectives: pure functions of tensors, written as the papers' equations.

They take tensors of any floating type, compute in float32 at least, whatever autocast says, and return a scalar
unless they say otherwise. What an equation marks with a stop-gradient receives none here, whether or not it is
detached. Where rows of other images matter, they are gathered from all ranks: the mean over the ranks of a value, and
of its gradient, is that of one process with the whole batch.
"""

from manyviews.objectives.alignment import consistency, negative_cosine, squared_distance
from manyviews.objectives.clustering import sinkhorn, swapped_prediction
from manyviews.objectives.contrastive import clip, cross_info_nce, directed_info_nce, info_nce, nt_xent
from manyviews.objectives.decorrelation import covariance, cross_correlation, invariance, variance
from manyviews.objectives.distillation import cross_entropy, masked_cross_entropy, sharpen
from manyviews.objectives.entropy import koleo
from manyviews.objectives.gaussian import gaussian_distance, gaussian_kl, masked_distance, sparsity, unit_prior
from manyviews.objectives.reconstruction import latent_error, masked_mse, patchify

__all__ = [
    "clip",
    "consistency",
    "covariance",
    "cross_correlation",
    "cross_entropy",
    "cross_info_nce",
    "directed_info_nce",
    "gaussian_distance",
    "gaussian_kl",
    "info_nce",
    "invariance",
    "koleo",
    "latent_error",
    "masked_cross_entropy",
    "masked_distance",
    "masked_mse",
    "negative_cosine",
    "nt_xent",
    "patchify",
    "sharpen",
    "sinkhorn",
    "sparsity",
    "squared_distance",
    "swapped_prediction",
    "unit_prior",
    "variance",
]
