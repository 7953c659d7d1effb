"""Rankings by similarity: average precision, and the protocol of the revisited Oxford and Paris sets.

All relevant items count, found or not: precision is averaged over them, not over those that were retrieved. An
irrelevant item that is exactly as similar as a relevant one comes first, so equal similarities gain nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from manyviews import machine

KS = (1, 5, 10)


def average_precision(ranks: Sequence[int] | Tensor, relevant: int, trapezoidal: bool = False) -> float:
    """Area under the curve of precision by recall, in [0, 1].

    Args:
        ranks: ranks of the relevant items that were retrieved, from 1, ascending.
        relevant: number of relevant items. With ranks 1 and 4 and 3 relevant items, the area is (1/1 + 2/4) / 3.
        trapezoidal: join the curve's points by lines, as the Oxford and Paris protocols do (Philbin et al. 2007): take
            at each relevant item the mean of the precisions just before it and with it; by default the latter.
    """
    return areas(torch.as_tensor(ranks, dtype=torch.float64), trapezoidal).sum().item() / relevant


def areas(ranks: Tensor, trapezoidal: bool = False) -> Tensor:
    """Precisions at ranks, float64 `... p`, which ascend from 1."""
    found = torch.arange(1, ranks.shape[-1] + 1, dtype=torch.float64, device=ranks.device)
    after = found / ranks
    if not trapezoidal:
        return after
    before = torch.where(ranks > 1, (found - 1) / (ranks - 1).clamp(min=1), 1.0)
    return (before + after) / 2


def average_precisions(
    similarity: Tensor,
    positives: Sequence[Sequence[int]],
    junk: Sequence[Sequence[int]] | None = None,
    *,
    trapezoidal: bool = False,
) -> Tensor:
    """Average precision of each query: float64, `q`; nan where nothing is relevant.

    Args:
        similarity: `q n`.
        positives: for each query, the relevant ones of the `n` items.
        junk: for each query, items that are taken out of its ranking, such as the query itself.
        trapezoidal: see `average_precision`.
    """
    ranks = _rank(similarity, positives, junk)
    found = [average_precision(r, len(r), trapezoidal) if len(r) else float("nan") for r in ranks]
    return torch.tensor(found, dtype=torch.float64)


def mean_average_precision(
    similarity: Tensor,
    positives: Sequence[Sequence[int]],
    junk: Sequence[Sequence[int]] | None = None,
    *,
    trapezoidal: bool = False,
) -> float:
    """Mean of `average_precisions` over the queries for which something is relevant."""
    return average_precisions(similarity, positives, junk, trapezoidal=trapezoidal).nanmean().item()


def revisited(
    similarity: Tensor,
    easy: Sequence[Sequence[int]],
    hard: Sequence[Sequence[int]],
    junk: Sequence[Sequence[int]],
    *,
    trapezoidal: bool = True,
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """mAP and mean precision at k of Easy, Medium and Hard, as on the revisited Oxford and Paris sets.

    Radenovic et al. 2018. Easy counts the hard positives as junk, Hard the easy ones. Precision at k is over fewer
    than k items where the last positive comes before.

    Args:
        similarity: `q n`, similarity of queries and the database.
        easy, hard, junk: for each query, positions in the database.
        trapezoidal: see `average_precision`; the authors' is.
        ks: numbers of items for the precisions at k.

    Returns:
        Numbers by "easy mAP", "easy mP@10" and so on; nan where no query has positives.
    """
    setups: dict[str, tuple[list[list[int]], list[list[int]]]] = {
        "easy": ([list(e) for e in easy], [[*j, *h] for j, h in zip(junk, hard, strict=True)]),
        "medium": ([[*e, *h] for e, h in zip(easy, hard, strict=True)], [list(j) for j in junk]),
        "hard": ([list(h) for h in hard], [[*j, *e] for j, e in zip(junk, easy, strict=True)]),
    }
    found: dict[str, float] = {}
    for name, (positives, ignored) in setups.items():
        ranks = [r for r in _rank(similarity, positives, ignored) if len(r)]
        areas = [average_precision(r, len(r), trapezoidal) for r in ranks]
        found[f"{name} mAP"] = float(np.mean(areas)) if areas else float("nan")
        for k in ks:
            depths = [min(k, int(r[-1])) for r in ranks]
            precisions = [(r <= depth).sum().item() / depth for r, depth in zip(ranks, depths, strict=True)]
            found[f"{name} mP@{k}"] = float(np.mean(precisions)) if ranks else float("nan")
    return found


def _rank(similarity: Tensor, positives: Sequence[Sequence[int]], junk: Sequence[Sequence[int]] | None) -> list[Tensor]:
    """Ranks of the positives among all items but junk, from 1, ascending: float64, one tensor for each query."""
    found = []
    for i, (row, relevant) in enumerate(zip(similarity, positives, strict=True)):
        here = torch.as_tensor(relevant, dtype=torch.int64, device=row.device)
        others = torch.ones(len(row), dtype=torch.bool, device=row.device)
        others[here] = False
        if junk is not None:
            others[torch.as_tensor(junk[i], dtype=torch.int64, device=row.device)] = False
        found.append(ranks_of(row[None, here], row[None, others])[0].cpu())
    return found


def ranks_of(relevant: Tensor, others: Tensor) -> Tensor:
    """Ranks from 1, ascending, of relevant items among all, by similarity: `b p` and, of the others, `b n`."""
    p, n = relevant.shape[1], others.shape[1]
    best = ascending(relevant).flip(1)
    ahead = n - torch.searchsorted(ascending(others), best.contiguous())  # as similar counts as ahead
    ahead = ahead + torch.arange(1, p + 1, device=best.device)
    return ahead.to(machine.exact(ahead.device)).double()


def ascending(x: Tensor) -> Tensor:
    """Rows in ascending order. On CPUs NumPy sorts ten times as fast as PyTorch."""
    return x.sort(dim=1)[0] if x.device.type != "cpu" else torch.from_numpy(np.sort(x.numpy(), axis=1))
