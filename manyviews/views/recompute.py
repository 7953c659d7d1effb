"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, BatchNorms in training mode normalize as ever, but their running statistics stay as they were."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    kept = [dict(m._buffers) for m in norms]
    # The layers write to copies. To write to the buffers and restore them would touch tensors that autograd has saved;
    # to switch the tracking off would save fewer tensors than the first forward pass did.
    for m in norms:
        m._buffers.update({k: None if v is None else v.clone() for k, v in m._buffers.items()})
    try:
        yield
    finally:
        for m, buffers in zip(norms, kept, strict=True):
            m._buffers.update(buffers)


def recomputed(module: nn.Module, make: Callable[[], Tensor], inputs: Mapping[str, Tensor] | None = None) -> Tensor:
    """`module(make(), **inputs)`, of which nothing but the result is kept: the backward pass runs both once more.

    `make` must give the same tensor again. Dropout and its like draw the same numbers again; BatchNorm's running
    statistics are updated once.
    """
    # `checkpoint` restores the random state of the devices of its arguments' tensors alone, and `make` has none.
    anchor = next(module.parameters(), None)
    found: Tensor = checkpoint(
        lambda _: module(make(), **(inputs or {})),
        anchor,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), frozen_statistics(module)),
    )
    return found
