"""The gradient of one step: views are made, and loss terms are backpropagated as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from manyviews import distributed
from manyviews.engine.precision import Asked, autocast, resolve
from manyviews.methods import Method
from manyviews.types import Progress
from manyviews.views import Views


def backpropagate(
    method: Method,
    parts: Sequence[Callable[[], Views]],
    at: Progress,
    *,
    precision: Asked = "float32",
    device: torch.device | None = None,
    scale: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Leave the gradient of the method's loss, averaged over ranks, in its parameters' `grad`.

    Args:
        method: in training mode, with gradients cleared.
        parts: makers of the views of each accumulated part of the batch, called one after the other. A term is
            backpropagated when it is yielded, or at the end if the views' `backward` is "joint".
        at: progress of the run.
        precision: number format of the forward passes; "auto" leaves it to the device.
        device: device of the method; None asks its first parameter.
        scale: applied to each term before its backward pass, such as `precision.Scaling.scale`. The gradient is then
            that of the scaled loss; the returned values are not scaled.

    Returns:
        The value of each loss term, a scalar tensor without gradient, averaged over parts and not over ranks.
    """
    device = device or next(method.parameters()).device
    chosen = resolve(precision, device)
    values: dict[str, Tensor] = {}
    for make in parts:
        pending = []
        views = make()
        at_end, terms = views.backward == "joint", method.loss(views, at)
        del views  # frees their memory before the next part's are made
        while True:
            # Only the forward pass runs in low precision: autocast must not be on during backward.
            with autocast(device, chosen):
                found = next(terms, None)
                if found is None:
                    break
                total = torch.stack([t.float() for t in found.values()]).sum() / len(parts)
            for name, t in found.items():
                t = t.detach().float() / len(parts)
                values[name] = values[name] + t if name in values else t
            del found
            if at_end:
                pending.append(total)
            elif total.requires_grad:
                (total if scale is None else scale(total)).backward()
            del total
        if pending:
            total = torch.stack(pending).sum()
            (total if scale is None else scale(total)).backward()
            del total
    distributed.mean_gradients(method.parameters())
    return values
