"""Balanced subsets of labeled items."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor


def balanced(ids: Sequence[str], y: Tensor, share: float, seed: int) -> Tensor:
    """Rows (int64, ascending) of about `share` of the items: the same number of each class, and at least one.

    `share * n / classes` of each class, rounded; all items of a class that has fewer. Those whose names have the
    smallest hashes are taken, so a subset does not depend on the items' order, and a larger share contains a smaller.

    Args:
        ids: the items' stable names.
        y: int64, `n`, their classes.
        share: share of the items, in (0, 1].
        seed: seed of the subset.
    """
    order, rank, count = _ranked(ids, y, str(seed))
    most = max(1, round(share * len(order) / len(count)))
    return torch.from_numpy(np.sort(order[rank < most]))


def stratified(ids: Sequence[str], y: Tensor, share: float, salt: str) -> tuple[Tensor, Tensor]:
    """Rows (int64, ascending) to learn from, and rows to choose with: about `share` of each class, and at least one.

    A class of one item has none to choose with. Those whose names have the smallest hashes are to choose with.

    Args:
        ids: the items' stable names.
        y: int64, `n`, their classes.
        share: share of the items to choose with, in (0, 1).
        salt: tells splits of one set apart.
    """
    order, rank, count = _ranked(ids, y, salt)
    held = np.minimum(np.maximum(1, np.round(share * count).astype(int)), count - 1)
    chosen = rank < np.repeat(held, count)
    return tuple(torch.from_numpy(np.sort(order[mask])) for mask in (~chosen, chosen))  # type: ignore[return-value]


def _ranked(ids: Sequence[str], y: Tensor, salt: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items class by class in the order of their names' hashes, their ranks in the class, and the classes' sizes."""
    names = (f"{salt}:{unicodedata.normalize('NFC', name)}".encode("utf-8", "surrogateescape") for name in ids)
    position = np.array([int.from_bytes(blake2b(name, digest_size=8).digest(), "big") for name in names], np.uint64)
    classes = y.numpy()
    order = np.lexsort((position, classes))
    _, first, count = np.unique(classes[order], return_index=True, return_counts=True)
    return order, np.arange(len(order)) - np.repeat(first, count), count
