"""Discrete tokens of patches: how they are learned, and how they are predicted. BEiT, Bao et al. 2022."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.objectives._precision import in_float32


@in_float32
def token_error(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """The cross-entropy of the true tokens of hidden patches, the mean over each image's, then over images.

    BEiT classifies: its targets are names of tokens and no numbers to regress. Images without a hidden patch count as
    zero.

    Args:
        logits: `b m k`.
        tokens: int64, `b m`, in [0, k).
        mask: bool, `b m`, true for patches that count.

    Returns:
        A scalar, at least 0; log k when the prediction is uniform and every image has a hidden patch.
    """
    each = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    return ((each * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


@in_float32
def gumbel_softmax(logits: Tensor, u: Tensor, temperature: float) -> Tensor:
    """A relaxed sample of each row's distribution: `softmax((logits - log(-log u)) / temperature)` (Jang et al. 2017).

    Its largest entry is the sample of a category. With a falling temperature the row becomes that category's alone.

    Args:
        logits: `... k`.
        u: `... k`, uniform in [0, 1).
        temperature: above 0.

    Returns:
        Float32 or wider, `... k`, rows that sum to 1.
    """
    noise = -(-u.clamp(min=2**-26).log()).log()
    return ((logits + noise) / temperature).softmax(-1)


@in_float32
def code_divergence(logits: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of each row's distribution over k codes from the uniform one, mean over rows.

    Args:
        logits: `... k`.

    Returns:
        A scalar, from 0 for uniform rows to log k for certain ones.
    """
    log_p = logits.log_softmax(-1)
    return math.log(logits.shape[-1]) + torch.sum(log_p.exp() * log_p, -1).mean()
