"""Views of one size in one batch, through a network that treats each as if it came alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_Item = TypeVar("_Item")
_PIXELS = 2**20  # in a batch through a network with BatchNorm: beyond, copies cost what is gained


def together(module: nn.Module, xs: Sequence[Tensor]) -> list[Any]:
    """`[module(x) for x in xs]`, neighbors of one shape in one batch: a large pass costs less than several small ones.

    The results are the same up to rounding: in training mode BatchNorm normalizes each by itself, one after the other,
    and tracks its running statistics in that order.

    Args:
        module: gives a tensor, or a tuple of tensors, with a row for each image or as many rows for each.
        xs: `b 3 h w` each.
    """
    norms = any(isinstance(m, _BatchNorm) and m.training for m in module.modules())
    found: list[Any] = []
    for (b, _, h, w), same in groupby(xs, lambda x: x.shape):
        run = list(same)
        for some in evenly(run, _PIXELS // (b * h * w) if norms else len(run)):
            if len(some) == 1:
                found.append(module(some[0]))
                continue
            with _by_view(module, len(some)):
                made = module(torch.cat(some))
            found += _parts(made, len(some))
    return found


def evenly(items: list[_Item], most: int) -> Iterator[list[_Item]]:
    """The items in order, in as few parts as have `most` at the most, or one, of nearly one length."""
    parts = math.ceil(len(items) / max(1, most))
    for i in range(parts):
        yield items[len(items) * i // parts : len(items) * (i + 1) // parts]


def _parts(made: Any, n: int) -> Sequence[Any]:
    if isinstance(made, Tensor):
        return made.chunk(n)
    return list(zip(*(m.chunk(n) for m in made), strict=True))


@contextmanager
def _by_view(module: nn.Module, views: int) -> Iterator[None]:
    """Inside, BatchNorms in training mode take a batch as so many equal parts, and each by itself."""
    norms = [(m, type(m)) for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    # Another class and not another `forward` of the module's own, for which a compiler would begin anew at every step.
    for m, kind in norms:
        m.__class__ = _parted(kind, views)  # type: ignore[arg-type]  # a module is no Hashable, its class is
    try:
        yield
    finally:
        for m, kind in norms:
            m.__class__ = kind


@cache
def _parted(kind: Any, views: int) -> type[_BatchNorm]:
    forward: Callable[[Any, Tensor], Tensor] = kind.forward

    def each(self: Any, x: Tensor) -> Tensor:
        return torch.cat([forward(self, part) for part in x.chunk(views)])

    return type(kind.__name__, (kind,), {"forward": each})
