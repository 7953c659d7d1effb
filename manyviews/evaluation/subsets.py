"""Subsets of labeled items: balanced ones, and those that a list names."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from manyviews.errors import UserError


def balanced(ids: Sequence[str], y: Tensor, share: float, seed: int) -> Tensor:
    """Rows (int64, ascending) of `share` of the items: the same number of each class, and at least one.

    Each class has `share * n / classes` items; if that is not whole, some have one more than others, so that together
    they are `share * n`, rounded. A class with fewer items gives all, and no other class makes up for it. Those whose
    names have the smallest hashes are taken, so a subset does not depend on the items' order, and a larger share
    contains a smaller.

    Args:
        ids: the items' stable names.
        y: int64, `n`, their classes.
        share: share of the items, in (0, 1].
        seed: seed of the subset.
    """
    order, rank, count, position = _ranked(ids, y, str(seed))
    each, more = divmod(round(share * len(order)), len(count))
    if not each:
        each, more = 1, 0
    further = order[rank == each]
    further = further[np.argsort(position[further])][:more]
    return torch.from_numpy(np.sort(np.concatenate([order[rank < each], further])))


def stratified(ids: Sequence[str], y: Tensor, share: float, salt: str) -> tuple[Tensor, Tensor]:
    """Rows (int64, ascending) to learn from, and rows to choose with: about `share` of each class, and at least one.

    A class of one item has none to choose with. Those whose names have the smallest hashes are to choose with.

    Args:
        ids: the items' stable names.
        y: int64, `n`, their classes.
        share: share of the items to choose with, in (0, 1).
        salt: tells splits of one set apart.
    """
    order, rank, count, _ = _ranked(ids, y, salt)
    held = np.minimum(np.maximum(1, np.round(share * count).astype(int)), count - 1)
    chosen = rank < np.repeat(held, count)
    return tuple(torch.from_numpy(np.sort(order[mask])) for mask in (~chosen, chosen))  # type: ignore[return-value]


def _ranked(ids: Sequence[str], y: Tensor, salt: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Items class by class in the order of their names' hashes, their ranks there, the classes' sizes; hashes."""
    names = (f"{salt}:{unicodedata.normalize('NFC', name)}".encode("utf-8", "surrogateescape") for name in ids)
    position = np.array([int.from_bytes(blake2b(name, digest_size=8).digest(), "big") for name in names], np.uint64)
    classes = y.numpy()
    order = np.lexsort((position, classes))
    _, first, count = np.unique(classes[order], return_index=True, return_counts=True)
    return order, np.arange(len(order)) - np.repeat(first, count), count, position


def read_list(path: str | Path) -> list[str]:
    """The items that a text file names, one a line: relative paths or file names, such as SimCLR's lists of ImageNet.

    Raises:
        UserError: the file cannot be read, or names nothing.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"The list of images {path} cannot be read ({e}).") from None
    found = list(dict.fromkeys(line.strip().replace("\\", "/") for line in lines if line.strip()))
    if not found:
        raise UserError(f"The list of images {path} is empty: give a relative path or a file name in each line.")
    return found


def matching(names: Sequence[str], ids: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Rows (int64, ascending) of the items that a list names, and the names of which there is no item.

    Args:
        names: relative paths or their ends, such as file names.
        ids: the items' stable names, relative paths too.

    Raises:
        UserError: a name is the end of several items' paths.
    """
    by_file: dict[str, list[int]] = {}
    for i, item in enumerate(ids):
        by_file.setdefault(item.rpartition("/")[2], []).append(i)
    rows, missing = [], []
    for name in names:
        end = f"/{name.removeprefix('./')}"
        found = [i for i in by_file.get(name.rpartition("/")[2], []) if f"/{ids[i]}".endswith(end)]
        if len(found) > 1:
            raise UserError(f"'{name}' in the list of images is {ids[found[0]]} or {ids[found[1]]}: give longer paths.")
        rows += found
        if not found:
            missing.append(name)
    return torch.tensor(sorted(set(rows)), dtype=torch.int64), missing
