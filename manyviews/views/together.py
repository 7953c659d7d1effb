"""Views of one size in one batch, through a network that treats each as if it came alone."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby, repeat
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from manyviews import distributed
from manyviews.types import Packed

_Item = TypeVar("_Item")
_Pair = tuple[Tensor, Mapping[str, Tensor]]
# Those whose batch can be parted. timm's that also activate would hold another copy of each map, and its split ones
# part their batch themselves.
_PARTABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, distributed.SyncBatchNorm)
_PIXELS = 400_000  # in a batch whose maps are normalized in parts: beyond, nothing is gained on a CPU


def together(
    module: nn.Module, xs: Iterable[Tensor], inputs: Sequence[Mapping[str, Tensor]] | None = None, pack: bool = False
) -> list[Any]:
    """`[module(x) for x in xs]`, neighbors of one shape in one batch: a large pass costs less than several small ones.

    The results are the same up to rounding and the draws of dropout. In training mode, BatchNorm normalizes each by
    itself, one after the other, and tracks its running statistics in that order.

    Args:
        module: gives a tensor, or a tuple of tensors, with a row for each image or as many rows for each.
        xs: `b ...` each.
        inputs: further inputs of the module for each of them, by name, `b ...` each.
        pack: take all shapes in one pass where the module `packs`: see `manyviews.backbones.packing`.
    """
    found: list[Any] = []
    pairs: Iterable[_Pair] = zip(xs, inputs if inputs is not None else repeat({}), strict=False)
    if pack and can_pack(module):
        pairs = list(pairs)
        if (packed := _packed(module, pairs)) is not None:
            return packed
    for (shape, _), same in groupby(pairs, lambda pair: (pair[0].shape, tuple(pair[1]))):
        pixels = shape[0] * math.prod(shape[2:])
        for some in evenly(list(same), at_once(module, pixels)):
            if len(some) == 1:
                (x, more) = some[0]
                found.append(module(x, **more))
                continue
            more = {name: torch.cat([m[name] for _, m in some]) for name in some[0][1]}
            with _parted(module, len(some)):
                made = module(torch.cat([x for x, _ in some]), **more)
            if isinstance(made, Tensor):
                found += made.chunk(len(some))
            else:
                found += zip(*(m.chunk(len(some)) for m in made), strict=True)
    return found


def can_pack(module: nn.Module) -> bool:
    """Whether a module takes views of several sizes in one pass."""
    return bool(getattr(module, "packs", False)) and at_once(module, _PIXELS + 1) == sys.maxsize


def _packed(module: nn.Module, pairs: list[_Pair]) -> list[Any] | None:
    """`together` in one pass over views of all shapes.

    None if they have one shape, inputs for more than one of them, or an order that matters.
    """
    groups: dict[Any, list[int]] = {}
    for k, (x, more) in enumerate(pairs):
        groups.setdefault((not more, x.shape), []).append(k)
    order = sorted(groups, key=lambda group: group[0])  # inputs are for the first images of a pass
    if len(order) < 2 or not order[1][0] or any(len(shape) != 4 for _, shape in order):
        return None
    where = [k for group in order for k in groups[group]]
    if where != sorted(where) and _norms(module):  # which track their statistics view by view, in order
        return None
    views, first = len(where), groups[order[0]]
    names = pairs[first[0]][1]
    more = {name: torch.cat([pairs[k][1][name] for k in first]) for name in names}
    with _parted(module, views):
        made = module(Packed(tuple(torch.cat([pairs[k][0] for k in groups[g]]) for g in order)), **more)
    parts = (made,) if isinstance(made, Tensor) else made
    rows = sum(len(pairs[k][0]) for k in where)
    # What is given for inputs alone has fewer rows.
    whole = [part.chunk(views) for part in parts if len(part) == rows]
    split = [part.chunk(views if len(part) == rows else len(first)) for part in parts]
    found: list[Any] = [None] * views
    for n, k in enumerate(where):
        some = tuple(part[n] for part in (split if n < len(first) else whole))
        found[k] = some[0] if len(some) == 1 else some
    return found


def at_once(module: nn.Module, pixels: int) -> int:
    """How many views `together` takes in one batch, each of so many pixels in all of its images."""
    norms = _norms(module)
    if not norms:
        return sys.maxsize
    # What is computed again in the backward pass would no longer be parted then.
    again = any(m.__dict__.get("grad_checkpointing") for m in module.modules())
    if again or any(type(m) not in _PARTABLE for m in norms):
        return 1
    if all(type(m) is nn.BatchNorm1d for m in norms):
        return sys.maxsize
    return max(1, _PIXELS // pixels)


def evenly(items: list[_Item], most: int) -> Iterator[list[_Item]]:
    """The items in order, in as few parts as have `most` at the most, or one, of nearly one length."""
    parts = math.ceil(len(items) / max(1, most))
    for i in range(parts):
        yield items[len(items) * i // parts : len(items) * (i + 1) // parts]


def _norms(module: nn.Module) -> list[nn.Module]:
    """Whatever normalizes by the statistics of its batch."""
    return [
        m for m in module.modules() if "running_var" in m._buffers and (m.training or m._buffers["running_var"] is None)
    ]


@contextmanager
def _parted(module: nn.Module, views: int) -> Iterator[None]:
    """Inside, BatchNorms take a batch as so many equal parts, and normalize each by itself."""
    norms = [(m, type(m)) for m in _norms(module)]
    try:
        # Another class and not another `forward` of the module's own, which a compiler would compile at every step.
        for m, kind in norms:
            m.__class__ = _in_parts(kind, views)  # type: ignore[arg-type]  # a module is no Hashable, its class is
        yield
    finally:
        for m, kind in norms:
            m.__class__ = kind


@cache
def _in_parts(kind: Any, views: int) -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        assert len(x) % views == 0, (
            f"{kind.__name__} has {len(x)} rows, which are not as many for each of {views} views."
        )
        return torch.cat([kind.forward(self, part) for part in x.chunk(views)])

    return type(kind.__name__, (kind,), {"forward": forward})
