"""k-nearest neighbors by cosine similarity: exact, in bounded memory, for all k at once.

Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination", section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

KS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.1

# A block of similarities takes 4 * 1024 * 32768 bytes, 128 MiB, and each block's matrix product is large enough to
# run at full speed.
_QUERIES = 1024
_KEYS = 32768


@dataclass(frozen=True)
class KNN:
    """Accuracies of k-NN in [0, 1], by k.

    Attributes:
        majority: every neighbor has one vote.
        weighted: a neighbor at cosine similarity s has exp(s / temperature) votes.
        temperature: temperature of the weighted vote.
    """

    majority: dict[int, float]
    weighted: dict[int, float]
    temperature: float


def knn(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    classes: int | None = None,
) -> KNN:
    """k-NN accuracy of test features `m d` with labels `m` (int64), voted by train features `n d` with labels `n`.

    A k above the number of available neighbors is dropped. A tie of votes goes to the class with the lowest index. It
    works on any device.
    """
    ks = usable(ks, len(train_x))
    classes = classes or int(torch.maximum(train_y.max(), test_y.max())) + 1
    similarity, index = neighbors(train_x, test_x, max(ks))
    labels = train_y[index]

    def accuracy(k: int, temperature: float | None) -> float:
        best = vote(similarity[:, :k], labels[:, :k], classes, temperature)[:, 0]
        return (best == test_y).cpu().double().mean().item()

    return KNN({k: accuracy(k, None) for k in ks}, {k: accuracy(k, temperature) for k in ks}, temperature)


def usable(ks: Sequence[int], available: int) -> tuple[int, ...]:
    """The ks that `available` neighbors allow, ascending; if none does, all the neighbors there are."""
    return tuple(sorted({k for k in ks if k <= available})) or (available,)


def neighbors(train_x: Tensor, test_x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities (float32, `m k`, descending) and train indices (int64, `m k`) of the k nearest.

    Args:
        train_x: `n d`, with n >= k.
        test_x: `m d`.
        k: number of neighbors.
    """
    queries = F.normalize(test_x.float(), dim=1).split(_QUERIES)
    best = [q.new_empty(len(q), 0) for q in queries]
    index = [torch.empty(len(q), 0, dtype=torch.int64, device=q.device) for q in queries]
    for start in range(0, len(train_x), _KEYS):
        keys = F.normalize(train_x[start : start + _KEYS].float(), dim=1)  # a block at a time: a copy of all is large
        for i, q in enumerate(queries):
            similarity = q @ keys.T
            block, column = similarity.topk(min(k, similarity.shape[1]))
            sorted_, order = torch.cat([best[i], block], 1).sort(dim=1, descending=True, stable=True)
            best[i], order = sorted_[:, :k], order[:, :k]
            index[i] = torch.cat([index[i], column + start], 1).gather(1, order)
    return torch.cat(best), torch.cat(index)


def vote(similarity: Tensor, labels: Tensor, classes: int, temperature: float | None, top: int = 1) -> Tensor:
    """The `top` classes with the most votes, best first: int64, `m top`.

    Args:
        similarity: `m k`, cosine similarity of the neighbors, descending.
        labels: int64, `m k`, the neighbors' labels.
        classes: number of classes.
        temperature: temperature of the weights exp(s / temperature), or None for one vote each.
        top: number of classes to return; ties go to the lowest index.
    """
    ranked = []
    for s, y in zip(similarity.split(_QUERIES), labels.split(_QUERIES), strict=True):
        # Relative to the nearest neighbor: the same order of classes, and no overflow at low temperatures.
        weights = torch.ones_like(s) if temperature is None else ((s - s[:, :1]) / temperature).exp()
        votes = s.new_zeros(len(s), classes).scatter_add_(1, y, weights)
        # argmax is the first of equals and several times faster than a stable sort.
        first = votes.argmax(1, keepdim=True) if top == 1 else votes.sort(dim=1, descending=True, stable=True)[1]
        ranked.append(first[:, :top])
    return torch.cat(ranked)
