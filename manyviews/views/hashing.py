"""The hash of `draws` on a CPU, compiled. Numba takes half a second to import, so this is imported when it is used."""

from __future__ import annotations

from typing import Any

import numba
import torch
from torch import Tensor

# As in `draws`, and here once more: Numba compiles anew what it keeps on disk only when this file changes.
_GOLDEN, _FIRST, _SECOND = (x - (1 << 64) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def jit(f: Any) -> Any:
    """Compile a function at its first call, and keep the result on disk."""
    # Sums may be added up in any order, or they would not be vectorized; nothing here is NaN.
    fast = {"contract", "reassoc", "nsz", "nnan", "arcp"}
    try:
        return numba.njit(f, cache=True, nogil=True, error_model="numpy", fastmath=fast)
    except RuntimeError:  # no folder may be written to keep the result in
        return numba.njit(f, nogil=True, error_model="numpy", fastmath=fast)


def bits(index: Tensor, stream: int, n: int) -> Tensor:
    """`Draws.bits` of int64 indices on the CPU, `b`: int64, `b n`."""
    out = torch.empty(len(index), n, dtype=torch.int64)
    _bits(index.numpy(), stream, out.numpy())
    return out


@jit
def _bits(index, stream, out):
    for i in range(len(index)):
        start = _mix(index[i] + stream)
        for k in range(out.shape[1]):
            out[i, k] = _mix(start + (k + 1) * _GOLDEN)


@jit
def _mix(x):
    """Of `draws`, on signed integers as there."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _FIRST
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _SECOND
    return x ^ ((x >> 31) & ((1 << 33) - 1))
