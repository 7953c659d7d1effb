"""Splits that are the same everywhere: an item's name decides, not its position or chance."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np

from manyviews.errors import UserError


def split(ids: Sequence[str], fractions: Mapping[str, float], salt: str = "") -> dict[str, np.ndarray]:
    """Indices (int64, ascending) of each part of a split, for example `{"train": 0.9, "validation": 0.1}`.

    An item's part depends only on its id and the salt, not on other items, their order, or the machine. So items keep
    their part when the set grows, and copies with the same id share one. Ids are compared in Unicode's composed form,
    because Macs decompose accented letters. Parts have their fractions of the items on average, not exactly.

    Raises:
        UserError: a fraction is negative, or they do not add up to 1.
    """
    shares = np.array(list(fractions.values()), dtype=np.float64)
    if (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise UserError(f"The fractions of a split must be positive and add up to 1, not {fractions}.")
    place = np.array([_place(item, salt) for item in ids], dtype=np.float64)
    # The last edge is infinite, so that no rounding of the sum leaves an item outside.
    part = np.searchsorted([*np.cumsum(shares)[:-1], np.inf], place, side="right")
    return {name: np.flatnonzero(part == k) for k, name in enumerate(fractions)}


def _place(item: str, salt: str) -> float:
    """Uniform in [0, 1)."""
    # The length keeps (salt, id) pairs apart: ("a", "bc") is not ("ab", "c").
    digest = blake2b(
        f"{len(salt)}:{salt}{unicodedata.normalize('NFC', item)}".encode("utf-8", "surrogateescape"), digest_size=8
    ).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def spread_out(n: int, most: int) -> np.ndarray:
    """Up to `most` of n indices (int64, ascending), evenly spaced: the order of a set is often that of its classes."""
    return np.linspace(0, n - 1, min(most, n)).astype(np.int64)
