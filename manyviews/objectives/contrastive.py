"""Contrast: pick out the other view of the same image among those of other images.

The matrix of all similarities is never held: its rows' normalizers are summed up over blocks, in the backward pass
again, so memory grows with the batch and not with its square.
"""

from __future__ import annotations

from typing import Any

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
    first = torch.arange(b, device=za.device) + b * distributed.rank()
    itself = torch.cat([first, first + len(everyone) // 2])
    positive = (z[:, 0] * z[:, 1]).sum(1).repeat(2) / temperature
    return (similarities_logsumexp(z.transpose(0, 1).flatten(0, 1), everyone, temperature, itself) - positive).mean()


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
    positive = (q * k).sum(1) / temperature
    others = similarities_logsumexp(q, queue_rows.detach(), temperature)
    return (torch.logaddexp(positive, others) - positive).mean()


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
    q, k = normalize(q, dim=-1), normalize(k.detach(), dim=-1)
    positive = (q * k).sum(1) / temperature
    return 2 * temperature * (similarities_logsumexp(q, distributed.gather(k), temperature) - positive).mean()


def similarities_logsumexp(q: Tensor, keys: Tensor, temperature: float, itself: Tensor | None = None) -> Tensor:
    """`log sum_j exp(q_i . k_j / temperature)` for every row of q, in blocks of keys and rows.

    Args:
        q: `n d`.
        keys: `m d`.
        temperature: above 0.
        itself: int64, `n`: the key that each row leaves out; None to leave out none.

    Returns:
        `n`.
    """
    return _LogSumExp.apply(q, keys, temperature, itself)


_BLOCK = 2**22  # similarities held at once, 16 MiB in float32
_KEYS = 1024  # of a block, at least


def _blocks(n: int, m: int) -> tuple[int, int]:
    """Rows and keys of a block: all rows if they are few."""
    rows = min(n, max(1, _BLOCK // min(m, _KEYS)))
    return rows, min(m, max(_KEYS, _BLOCK // rows))


class _LogSumExp(torch.autograd.Function):
    """The softmax's weights are computed once more in the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, keys: Tensor, temperature: float, itself: Tensor | None) -> Tensor:
        ctx.temperature = temperature
        rows, columns = _blocks(len(q), len(keys))
        found = torch.empty_like(q[:, 0])
        for i in range(0, len(q), rows):
            total = found.new_full((min(rows, len(q) - i),), -torch.inf)
            for j in range(0, len(keys), columns):
                block = _similarities(q, keys, temperature, itself, slice(i, i + rows), slice(j, j + columns))
                total = torch.logaddexp(total, block.logsumexp(1))
            found[i : i + rows] = total
        ctx.save_for_backward(q, keys, itself, found)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        q, keys, itself, found = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dq = torch.zeros_like(q) if wanted[0] else None
        dk = torch.zeros_like(keys) if wanted[1] else None
        rows, columns = _blocks(len(q), len(keys))
        for i in range(0, len(q), rows):
            for j in range(0, len(keys), columns):
                these, those = slice(i, i + rows), slice(j, j + columns)
                weights = _similarities(q, keys, ctx.temperature, itself, these, those)
                weights.sub_(found[these, None]).exp_().mul_(grad[these, None] / ctx.temperature)
                if dq is not None:
                    dq[these].addmm_(weights, keys[those])
                if dk is not None:
                    dk[those].addmm_(weights.T, q[these])
        return dq, dk, None, None


def _similarities(
    q: Tensor, keys: Tensor, temperature: float, itself: Tensor | None, rows: slice, columns: slice
) -> Tensor:
    """A block of `q . k / temperature`, with -inf where a row leaves a key out."""
    block = (q[rows] / temperature) @ keys[columns].T
    if itself is not None:
        place = itself[rows] - columns.start
        # A copy for rows whose key is in another block: `where` knows no sizes that the device alone would know.
        inside = (place >= 0) & (place < block.shape[1])
        place = place.clamp(0, block.shape[1] - 1)[:, None]
        block.scatter_(1, place, torch.where(inside[:, None], -torch.inf, block.gather(1, place)))
    return block
