"""The order of images in an epoch, and other draws of a seed, an epoch and an image's number."""

from __future__ import annotations

import numpy as np


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of n items, int64: a pure function of its arguments, without any library's generator.

    The items are sorted by a hash (splitmix64's finalizer) of the seed, the epoch and their number.
    """
    return np.argsort(hashes(seed, epoch, np.arange(n)), kind="stable")


def nearby(seed: int, epoch: int, blocks: np.ndarray, window: int, rank: int, world_size: int) -> np.ndarray:
    """A rank's share of a permutation that keeps items of a block near each other, int64: a pure function.

    The blocks are shuffled and laid end to end. Each rank takes an equal piece, so it shares at most two blocks. An
    item comes after a delay, uniform in [0, window) blocks, from the start of its block. At any time the items
    therefore come from `window` blocks, and any position is found without those before it.
    """
    sizes = np.diff(blocks, prepend=0)
    shuffled = np.argsort(hashes(seed, epoch, np.arange(len(blocks))), kind="stable")
    share = int(blocks[-1]) // world_size
    mine = np.arange(rank * share, (rank + 1) * share)  # work and memory of a rank's share, not of all items
    ends = np.cumsum(sizes[shuffled])
    place = np.searchsorted(ends, mine, side="right")
    items = mine - ends[place] + blocks[shuffled][place]
    drawn = hashes(seed, epoch, len(blocks) + items)
    delay = drawn / 2.0**64 * window
    mixed: np.ndarray = items[np.argsort(place + delay, kind="stable")]
    return mixed


def hashes(seed: int, epoch: int, items: np.ndarray) -> np.ndarray:
    """uint64 for each item, a hash of the seed, the epoch and the item's number."""
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.array([seed % 2**64], np.uint64)) ^ np.uint64(epoch))
        return _mix(key + (items.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
