"""Contrast: pick out the other view of the same image among those of other images.

The matrix of all similarities is never held. Its rows' normalizers are summed over blocks, again in the backward pass,
so memory grows with the batch and not with its square. No rank holds the batch of all ranks. The keys go round in both
passes, and each rank compares its rows with one rank's keys while the next ones travel.

A row's loss, `-log(exp p / (exp p + sum_j exp n_j))`, is computed as `softplus(logsumexp(n) - p)`, with the positive
left out of the sum. The difference of two large logarithms would lose a small loss in float32: at 1e-5 its gradient
would be 3 % off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from manyviews import distributed
from manyviews.objectives._directions import directions
from manyviews.objectives._precision import in_float32


@in_float32
def nt_xent(za: Tensor, zb: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss: the normalized temperature-scaled cross-entropy over the batch of all ranks.

    Chen et al. 2020, eq. 1, mean over the 2N views `i` with partner `j`:

        -log( exp(cos_ij / temperature) / sum_{k != i} exp(cos_ik / temperature) )

    The denominator includes the positive and leaves out only the view itself.

    Args:
        za: projections of the first views, `b d`.
        zb: projections of the second views of the same images in the same order, `b d`.
        temperature: above 0.

    Returns:
        A scalar, at least 0, mean over this rank's 2b views; log(2N - 1) when all projections are equal.
    """
    z = directions(torch.cat([za, zb]))
    first, second = z.chunk(2)
    positive = (first * second).sum(1).repeat(2) / temperature
    itself = torch.arange(len(z), device=z.device)
    left_out = torch.stack([itself, itself.roll(len(za))], 1)
    return softplus(similarities_logsumexp(z, z, temperature, left_out, all_ranks=True) - positive).mean()


@in_float32
def mixed_nt_xent(z: Tensor, related: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """SSCD's contrastive loss, in which a view may have several positives: views that share some of its content.

    Pizzi et al. 2022, mean over the views `i` with positives `P_i`, whose union with `i` is `R_i`:

        -1 / |P_i| sum_{j in P_i} log( exp(cos_ij / temperature)
            / (exp(cos_ij / temperature) + sum_{k not in R_i} exp(cos_ik / temperature)) )

    With one positive each it is `nt_xent`.

    Args:
        z: projections of this rank's views, `n d`.
        related: int64, `n m`: views of this rank that are no negatives: the positives of each view, and itself.
        positive: bool, `n m`: which of them are positives, at least one for each view.
        temperature: above 0.

    Returns:
        A scalar, at least 0. Negatives are on all ranks.
    """
    z = directions(z)
    negatives = similarities_logsumexp(z, z, temperature, related, all_ranks=True)
    # Not `z[related]`, whose gradient several threads add up in any order.
    near = (z[:, None] * z.index_select(0, related.flatten()).view(*related.shape, -1)).sum(2) / temperature
    losses = softplus(negatives[:, None] - near).masked_fill(~positive, 0)
    return (losses.sum(1) / positive.sum(1)).mean()


@in_float32
def info_nce(q: Tensor, k: Tensor, queue_rows: Tensor, temperature: float) -> Tensor:
    """MoCo's loss: the query's own key against a queue of earlier keys.

    He et al. 2020, eq. 1, mean over rows, with cosine similarities:

        -log( exp(q.k / temperature) / (exp(q.k / temperature) + sum_{r in queue} exp(q.r / temperature)) )

    Args:
        q: queries, `b d`.
        k: keys of the same images, `b d`; receive no gradient.
        queue_rows: keys of other images, normalized, `size d`; receive no gradient.
        temperature: above 0.

    Returns:
        A scalar, at least 0; log(size + 1) when all vectors are equal.
    """
    q, k = directions(q), directions(k.detach())
    positive = (q * k).sum(1) / temperature
    return softplus(similarities_logsumexp(q, queue_rows.detach(), temperature) - positive).mean()


@in_float32
def cross_info_nce(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """MoCo v3's loss, one of its two directions: the query's own key among the keys of the batch of all ranks.

    Chen et al. 2021, algorithm 1, mean over rows, with cosine similarities:

        -2 temperature log( exp(q_i.k_i / temperature) / sum_j exp(q_i.k_j / temperature) )

    The factor cancels the temperature's effect on the size of the gradient. It does not compensate for the sum of two
    directions, as some texts say.

    Args:
        q: predictions, `b d`.
        k: the target's projections of the same images in the same order, `b d`; receive no gradient.
        temperature: above 0.

    Returns:
        A scalar, at least 0; 2 temperature log N when all vectors are equal.
    """
    return 2 * temperature * directed_info_nce(q, k.detach(), temperature)


@in_float32
def directed_info_nce(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """The query's own key among the keys of the batch of all ranks, in one direction.

    Oord et al. 2018, eq. 4, mean over rows, similarities being cosines:

        -log( exp(q_i.k_i / temperature) / sum_j exp(q_i.k_j / temperature) )

    Args:
        q: `b d`.
        k: `b d`, of the same images in the same order; both receive a gradient.
        temperature: above 0.

    Returns:
        A scalar, at least 0; log N when all vectors are equal.
    """
    q, k = directions(q), directions(k)
    positive = (q * k).sum(1) / temperature
    return softplus(similarities_logsumexp(q, k, temperature, _own(q), all_ranks=True) - positive).mean()


@in_float32
def clip(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """CLIP's loss: each image picks out its text, and each text its image, among those of the batch of all ranks.

    Radford et al. 2021, figure 3, mean over both directions and rows, similarities s being cosines:

        -log( exp(e^t s_ii) / sum_j exp(e^t s_ij) )   and   -log( exp(e^t s_ii) / sum_j exp(e^t s_ji) )

    Args:
        images: projections, `b d`.
        texts: projections of the images' texts in the same order, `b d`.
        log_scale: the logarithm t of the similarities' factor, a scalar that learns.

    Returns:
        A scalar, at least 0; log N when all embeddings are equal.
    """
    u, v = directions(images), directions(texts)
    scaled = u * log_scale.exp(), v * log_scale.exp()
    positive = (scaled[0] * v).sum(1)
    of_images = similarities_logsumexp(scaled[0], v, 1.0, _own(u), all_ranks=True) - positive
    of_texts = similarities_logsumexp(scaled[1], u, 1.0, _own(u), all_ranks=True) - positive
    return (softplus(of_images) + softplus(of_texts)).mean() / 2


def _own(x: Tensor) -> Tensor:
    """Each row's own number, to be left out."""
    return torch.arange(len(x), device=x.device)[:, None]


def similarities_logsumexp(
    q: Tensor, keys: Tensor, temperature: float, left_out: Tensor | None = None, all_ranks: bool = False
) -> Tensor:
    """`log sum_j exp(q_i . k_j / temperature)` for every row of q, in blocks of keys and rows.

    Args:
        q: `n d`.
        keys: `m d`.
        temperature: above 0.
        left_out: int64, `n m`: the keys of this rank that each row leaves out; None to leave out none.
        all_ranks: whether to sum over the keys of all ranks, `m` on each, instead of this rank's. The keys' gradient is
            then the sum over ranks, as for `distributed.gather`.

    Returns:
        `n`; minus infinity, without a gradient, for a row that leaves out all.
    """
    found: Tensor = _LogSumExp.apply(q, keys, temperature, left_out, all_ranks)
    return found


_BLOCK = 2**22  # similarities held at once, 16 MiB in float32
_KEYS = 1024  # keys in a block, at least


def _blocks(n: int, m: int) -> Iterator[tuple[slice, slice]]:
    """Rows and keys of each block; all rows if there are few."""
    rows = min(n, max(1, _BLOCK // min(m, _KEYS)))
    columns = min(m, max(_KEYS, _BLOCK // rows))
    for i in range(0, n, rows):
        for j in range(0, m, columns):
            yield slice(i, i + rows), slice(j, j + columns)


class _LogSumExp(torch.autograd.Function):
    """Computes the softmax's weights again in the backward pass instead of keeping them."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, keys: Tensor, temperature: float, left_out: Tensor | None, all_ranks: bool
    ) -> Tensor:
        ctx.temperature, ctx.all_ranks = temperature, all_ranks
        found = q.new_full((len(q),), -torch.inf)
        for held, out in _rounds(keys, left_out, all_ranks):
            for rows, columns in _blocks(len(q), len(held)):
                block = _similarities(q, held, temperature, out, rows, columns)
                found[rows] = torch.logaddexp(found[rows], block.logsumexp(1))
        # The weights of a row without keys are zero, and not the exponential of a difference of infinities.
        ctx.save_for_backward(q, keys, left_out, found.clamp(min=torch.finfo(found.dtype).min))
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        q, keys, left_out, found = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dq = torch.zeros_like(q) if wanted[0] else None
        dk: Tensor | None = None
        arrives: Callable[[], Tensor] | None = None
        for held, out in _rounds(keys, left_out, ctx.all_ranks):
            dk = torch.zeros_like(held) if wanted[1] else None
            for rows, columns in _blocks(len(q), len(held)):
                weights = _similarities(q, held, ctx.temperature, out, rows, columns)
                weights.sub_(found[rows, None]).exp_().mul_(grad[rows, None] / ctx.temperature)
                if dq is not None:
                    dq[rows].addmm_(weights, held[columns])
                if dk is not None:
                    dk[columns].addmm_(weights.T, q[rows])
            if dk is not None and ctx.all_ranks:
                # The keys' gradient from earlier ranks arrives one round after them. The last rank sends it home.
                dk = dk if arrives is None else dk.add_(arrives())
                arrives = distributed.pass_on(dk)
        return dq, dk if arrives is None else arrives(), None, None, None


def _rounds(keys: Tensor, left_out: Tensor | None, all_ranks: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The keys of each rank, or only this rank's, and the keys that our rows leave out."""
    for turn, held in enumerate(distributed.ring(keys) if all_ranks else [keys]):
        yield held, None if turn else left_out


def _similarities(
    q: Tensor, keys: Tensor, temperature: float, left_out: Tensor | None, rows: slice, columns: slice
) -> Tensor:
    """A block of `q . k / temperature`, with -inf where a row leaves a key out."""
    block = (q[rows] / temperature) @ keys[columns].T
    if left_out is not None:
        # One after the other: where both of a row's are in another block, they write to one place.
        for place in (left_out[rows] - columns.start).split(1, 1):
            # Rows whose key is in another block write back a copy: `where` needs no size that only the device knows.
            inside = (place >= 0) & (place < block.shape[1])
            place = place.clamp(0, block.shape[1] - 1)
            block.scatter_(1, place, torch.where(inside, -torch.inf, block.gather(1, place)))
    return block
