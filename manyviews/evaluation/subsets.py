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
    names = (f"{seed}:{unicodedata.normalize('NFC', name)}".encode("utf-8", "surrogateescape") for name in ids)
    position = np.array([int.from_bytes(blake2b(name, digest_size=8).digest(), "big") for name in names], np.uint64)
    classes = y.numpy()
    order = np.lexsort((position, classes))
    _, first, count = np.unique(classes[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, count)  # within the class
    most = max(1, round(share * len(order) / len(first)))
    return torch.from_numpy(np.sort(order[rank < most]))
