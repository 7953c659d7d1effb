"""Blocks whose activations are computed again in the backward pass, in place of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from manyviews.views.recompute import frozen_statistics


def recompute_blocks(model: nn.Module) -> None:
    """Have each block of a timm model keep its input alone, in place: the backward pass computes the block once more.

    Gradients are the same: dropout and stochastic depth draw the same numbers again, and running statistics of
    BatchNorm are updated once. Names and parameters stay (Chen et al. 2016, "Training deep nets with sublinear memory
    cost").
    """
    if hasattr(model, "blocks") and hasattr(model, "grad_checkpointing"):
        model.grad_checkpointing = True  # type: ignore[assignment]  # timm's transformers do it themselves, and so does `Encoder`
        return
    for block in blocks(model):
        block.__class__ = _again(type(block))  # type: ignore[arg-type]  # a module is no Hashable, its class is
        block.grad_checkpointing = True  # type: ignore[assignment]  # see `views.together`


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost repeated parts of a model: children of the sequences in it that have parts themselves."""
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            inner = [part for part in child if any(True for _ in part.parameters()) and any(part.children())]
            deeper = [part for part in inner if any(True for _ in blocks(part))]
            yield from (part for part in inner if part not in deeper)
            for part in deeper:
                yield from blocks(part)
        else:
            yield from blocks(child)


@cache
def _again(kind: Any) -> Any:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return kind.forward(self, *args, **kwargs)
        return checkpoint(
            partial(kind.forward, self),
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), frozen_statistics(self)),
            **kwargs,
        )

    return type(f"Again{kind.__name__}", (kind,), {"forward": forward, "__module__": __name__})
