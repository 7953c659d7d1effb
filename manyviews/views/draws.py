"""Counter-based randomness: a draw is a hash of where it is used, so there is no generator to keep in step.

A view depends on its image and its place in the schedule, and on nothing else: not on the order or the split of the
batch, not on workers or ranks. A resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from manyviews import machine


def _signed(x: int) -> int:
    """The 64 bits of `x` as the signed integer that torch keeps them in."""
    return (x & 0xFFFF_FFFF_FFFF_FFFF ^ 1 << 63) - (1 << 63)


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, n: int) -> Tensor:
    """Logical shift to the right; torch's own repeats the sign bit."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finalizer of splitmix64 (Steele et al. 2014): every bit of the result depends on every bit of `x`.

    Integer products wrap, so the bits are the same on every device.
    """
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _hash(index: Tensor, stream: Tensor | int, column: Tensor) -> Tensor:
    """int64, `b n`: 64 bits for each image, `b`, and each column, `n`, of one stream or of its own."""
    return _mix(_mix(index[:, None] + stream) + column)


def _unit(bits: Tensor) -> Tensor:
    """float32 in [0, 1) of 64 bits each: 24 bits are what float32 holds exactly, so that 1 is never rounded to."""
    return _shift(bits, 40).float() * 2**-24


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Numbers in [0, 1) scaled to [low, high)."""
    return u if (low, high) == (0.0, 1.0) else u * (high - low) + low


@dataclass(frozen=True)
class Draws:
    """Random numbers for a batch of images, each a pure function of (seed, epoch, image, place, name, column).

    Attributes:
        seed: the run's seed.
        epoch: passes over the data completed.
        index: int64, `b`, each image's stable number; draws live on its device.
        place: purpose of the draws, for example the view's name; see `at`.
        progress: fraction of the run completed, in [0, 1], for kinds of views that change with it. The numbers drawn
            do not depend on it.
    """

    seed: int
    epoch: int
    index: Tensor
    place: tuple[str, ...] = ()
    progress: float = 0.0

    def at(self, name: str) -> Draws:
        """Draws of their own for a part, for example a view: independent of the parent's and of other parts'."""
        return replace(self, place=(*self.place, name))

    def shared(self) -> Draws:
        """Draws of one row for the whole batch, the same in every part of it and on every process, on the CPU.

        Another step draws anew: `progress` stands for it.
        """
        return replace(self.at(repr(self.progress)), index=torch.zeros(1, dtype=torch.int64))

    def bits(self, name: str, n: int) -> Tensor:
        """int64, `b n`: 64 random bits each."""
        stream = _stream(int(self.seed), int(self.epoch), self.place, name)
        if (away := self._away) is not None:
            return away.bits(name, n).to(self.index.device)
        if _compiles(self.index):  # the same in one go, and not in thirty small operations
            from manyviews.views import hashing  # Numba takes half a second to import

            return hashing.bits(self.index, stream, n)
        return _hash(self.index, stream, torch.arange(1, n + 1, device=self.index.device) * _GOLDEN)

    def uniform(self, name: str, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32, `b n`, uniform in [low, high): multiples of 2^-24, scaled."""
        if (away := self._away) is not None:
            return away.uniform(name, n, low, high).to(self.index.device)
        return between(_unit(self.bits(name, n)), low, high)

    def uniforms(self, columns: Mapping[str, int]) -> dict[str, Tensor]:
        """`uniform(name, n)` for each name and its number of columns.

        Elsewhere than on a CPU one hash for all of them, of thirty small operations, takes the place of one for each.
        """
        if (away := self._away) is not None:
            return {name: u.to(self.index.device) for name, u in away.uniforms(columns).items()}
        if _compiles(self.index):
            return {name: self.uniform(name, n) for name, n in columns.items()}
        asked = tuple(columns.items())
        found = _unit(
            _hash(self.index, *_addresses(int(self.seed), int(self.epoch), self.place, asked, self.index.device))
        )
        return dict(zip(columns, found.split(list(columns.values()), 1), strict=True))

    def bernoulli(self, name: str, p: float) -> Tensor:
        """bool, `b`, true with probability `p`; always for 1, never for 0."""
        if p in (0, 1):
            return torch.full(self.index.shape, p == 1, device=self.index.device)
        return self.uniform(name, 1)[:, 0] < p

    def permutation(self, name: str, n: int) -> Tensor:
        """int64, `b n`: each row an order of 0 ... n-1, all equally likely."""
        if (away := self._away) is not None:
            return away.permutation(name, n).to(self.index.device)
        return self.bits(name, n).argsort(1)

    @property
    def exact(self) -> Draws:
        """The same draws on a device with float64 and integers of 64 bits: the CPU, if this one lacks them."""
        where = machine.exact(self.index.device)
        return self if where == self.index.device else replace(self, index=self.index.to(where))

    @property
    def _away(self) -> Draws | None:
        """`exact`, if that is elsewhere."""
        found = self.exact
        return None if found is self else found


def _compiles(index: Tensor) -> bool:
    return index.device.type == "cpu"


def _stream(seed: int, epoch: int, place: tuple[str, ...], name: str) -> int:
    # All but image and column is the same for the whole batch, so a slow hash is free here.
    text = repr((seed, epoch, place, name)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


@lru_cache(maxsize=1024)
def _addresses(
    seed: int, epoch: int, place: tuple[str, ...], asked: tuple[tuple[str, int], ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The stream and the number of each column, int64 `n` each: one copy to the device for a whole epoch."""
    streams = [_stream(seed, epoch, place, name) for name, n in asked for _ in range(n)]
    columns = [_signed(k * _GOLDEN) for _, n in asked for k in range(1, n + 1)]
    found = torch.tensor([streams, columns]).to(device, non_blocking=device.type == "cuda")
    return found[0], found[1]
