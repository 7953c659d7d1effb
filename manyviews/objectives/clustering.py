"""Clustering: predict the prototypes that another view was assigned to (SwAV, MSN), and use all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from manyviews import distributed
from manyviews.errors import UserError
from manyviews.objectives._precision import in_float32
from manyviews.objectives.distillation import cross_entropy


@torch.no_grad()
@in_float32
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, counts: Tensor | None = None) -> Tensor:
    """Assign the images of all ranks to prototypes so that each prototype is used equally.

    Scales `exp(scores / epsilon)` alternately, so that each prototype has the same mass over the batch and each image a
    mass of one (SwAV, section 3.1). The images come last, so rows sum to one after any number of iterations. The
    prototypes' masses approach N / k.

    Computed with logarithms, because the usual products overflow for scores of more than a few units and vanish after
    many iterations. Texts that ask for sums of 1 / k and of 1 mix two normalizations; the sums here are N / k and 1.

    Args:
        scores: similarities of images and prototypes, `b k`.
        epsilon: temperature; a small one gives nearly one-hot codes.
        iterations: at least 1; 3 in the paper.
        counts: bool, `b`, rows that use prototypes, of which ranks may have different numbers; all if None. The others
            are assigned by the same scales.

    Returns:
        Codes: float32, `b k`, without gradient, rows that sum to 1.

    Raises:
        UserError: fewer than one iteration.
    """
    if iterations < 1:
        raise UserError(f"Sinkhorn needs at least 1 iteration, not {iterations}.")
    log_codes = scores / epsilon
    for _ in range(iterations):
        used = log_codes if counts is None else log_codes.masked_fill(~counts[:, None], -torch.inf)
        mass = distributed.gather(used.logsumexp(0, keepdim=True)).logsumexp(0)
        if counts is not None:  # no rank may have any
            mass = mass.masked_fill(mass == -torch.inf, 0.0)
        log_codes = (log_codes - mass).log_softmax(1)
    return log_codes.exp()


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """SwAV's loss for one pair of views: the cross-entropy of a view's scores with another view's codes, eq. 2.

    Args:
        scores: similarities of one view and the prototypes, `b k`.
        codes: codes of the other view from `sinkhorn`, `b k`, or the sum of several views' codes; receive no gradient.
        temperature: temperature of the softmax over prototypes, above 0; not the epsilon of the codes.

    Returns:
        A scalar, mean over rows; log k for equal scores.
    """
    return cross_entropy(codes, scores, temperature)


@in_float32
def prior_divergence(probs: Tensor, exponent: float = 0.0) -> Tensor:
    """How far the mean prediction over the batch of all ranks is from a power law: `KL(mean of rows || prior)`.

    The prior of prototype j of k is proportional to `j^-exponent`. The uniform prior, exponent 0, gives `log k` minus
    the entropy of the mean, which MSN maximizes (Assran et al. 2022, eq. 2). PMSN has a power law for sets whose
    classes are of unequal size (Assran et al. 2023, section 4).

    Args:
        probs: predictions, `b k`, rows that sum to 1.
        exponent: of the power law, at least 0.

    Returns:
        A scalar, at least 0; log k when all rows put everything on one prototype and the prior is uniform.
    """
    mean = distributed.gather(probs.mean(0, keepdim=True)).mean(0)
    rank = torch.arange(1, probs.shape[1] + 1, device=probs.device, dtype=probs.dtype)
    log_prior = (-exponent * rank.log()).log_softmax(0)
    return (mean * (mean.clamp(min=1e-12).log() - log_prior)).sum()
