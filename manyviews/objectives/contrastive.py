"""Contrast: pick out the other view of the same image among those of other images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from manyviews import distributed
from manyviews.objectives._precision import in_float32


@in_float32
def nt_xent(za: Tensor, zb: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss: the normalized temperature-scaled cross-entropy over the batch of all ranks.

    Chen et al. 2020, eq. 1, mean over the 2N views `i` with partner `j`:

        -log( exp(cos_ij / temperature) / sum_{k != i} exp(cos_ik / temperature) )

    The positive stays in the denominator; only the view itself is left out.

    Args:
        za: projections of the first views, `b d`.
        zb: projections of the second views of the same images in the same order, `b d`.
        temperature: above 0.

    Returns:
        A scalar, at least 0, mean over this rank's 2b views; log(2N - 1) when all projections are equal.
    """
    b = len(za)
    z = normalize(torch.stack([za, zb], 1), dim=-1)
    everyone = distributed.gather(z).transpose(0, 1).flatten(0, 1)  # all first views, then all second ones
    logits = z.transpose(0, 1).flatten(0, 1) @ everyone.T / temperature
    first = torch.arange(b, device=za.device) + b * distributed.rank()
    second = first + len(everyone) // 2
    itself, partner = torch.cat([first, second])[:, None], torch.cat([second, first])[:, None]
    logits = logits.scatter(1, itself, -torch.inf)
    return (logits.logsumexp(1) - logits.gather(1, partner).squeeze(1)).mean()


@in_float32
def info_nce(q: Tensor, k: Tensor, queue_rows: Tensor, temperature: float) -> Tensor:
    """MoCo's loss: the query's own key against a queue of earlier keys.

    He et al. 2020, eq. 1, mean over rows, similarities being cosines:

        -log( exp(q.k / temperature) / (exp(q.k / temperature) + sum_{r in queue} exp(q.r / temperature)) )

    Args:
        q: queries, `b d`.
        k: keys of the same images, `b d`; receive no gradient.
        queue_rows: keys of other images, normalized, `size d`; receive no gradient.
        temperature: above 0.

    Returns:
        A scalar, at least 0; log(size + 1) when all vectors are equal.
    """
    q, k = normalize(q, dim=-1), normalize(k.detach(), dim=-1)
    positive = (q * k).sum(1, keepdim=True)
    logits = torch.cat([positive, q @ queue_rows.detach().T], 1) / temperature
    return (logits.logsumexp(1) - logits[:, 0]).mean()


@in_float32
def cross_info_nce(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """MoCo v3's loss, one of its two directions: the query's own key among the keys of the batch of all ranks.

    Chen et al. 2021, algorithm 1, mean over rows, similarities being cosines:

        -2 temperature log( exp(q_i.k_i / temperature) / sum_j exp(q_i.k_j / temperature) )

    The factor cancels the temperature's effect on the size of the gradient. It is not there to make up for the sum of
    two directions, as some texts say.

    Args:
        q: predictions, `b d`.
        k: the target's projections of the same images in the same order, `b d`; receive no gradient.
        temperature: above 0.

    Returns:
        A scalar, at least 0; 2 temperature log N when all vectors are equal.
    """
    keys = distributed.gather(normalize(k.detach(), dim=-1))
    logits = normalize(q, dim=-1) @ keys.T / temperature
    own = torch.arange(len(q), device=q.device) + len(q) * distributed.rank()
    return 2 * temperature * (logits.logsumexp(1) - logits.gather(1, own[:, None]).squeeze(1)).mean()
