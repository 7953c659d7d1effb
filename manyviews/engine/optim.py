"""Optimizers: which parameters decay, how the rate follows the schedule, and LARS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manyviews.methods import Method
from manyviews.recipe import Optimizer as Settings
from manyviews.schedules import value
from manyviews.types import At


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose rate follows each layer's ratio of weight to gradient norm (You et al. 2017).

        g <- g + weight_decay w;  g <- g * trust ||w|| / ||g||;  v <- momentum v + g;  w <- w - lr v

    Groups with `adapt=False` (biases and norms) take the plain momentum step. A layer whose weight or gradient is zero
    is not scaled, so layers that start at zero can leave it.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: of the velocity.
        weight_decay: added to the gradient, before the scaling.
        trust: factor on the ratio of norms.
    """

    def __init__(
        self, params: Any, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            grads = [p.grad for p in weights]
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
            if group["adapt"]:
                w_norms, g_norms = torch._foreach_norm(weights), torch._foreach_norm(grads)
                ratios = [
                    torch.where((w > 0) & (g > 0), group["trust"] * w / g, torch.ones_like(w))
                    for w, g in zip(w_norms, g_norms, strict=True)
                ]
                grads = list(torch._foreach_mul(grads, ratios))
            velocities = []
            for p in weights:
                state = self.state[p]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(p)
                velocities.append(state["velocity"])
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, grads)
            torch._foreach_add_(weights, velocities, alpha=-group["lr"])
        return loss


def groups(method: Method) -> list[dict[str, Any]]:
    """The trained parameters in groups of one treatment.

    Vectors (biases, norm scales) and single tokens do not decay and are not adapted by LARS, the usual exclusion;
    parameters under `method.constant_lr` keep the peak rate.
    """
    found: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, p in method.named_parameters():
        if p.requires_grad:
            vector = p.squeeze().ndim <= 1 or name.endswith("pos_embed")
            constant = any(name.startswith(prefix) for prefix in method.constant_lr)
            found.setdefault((vector, constant), []).append(p)
    return [
        {"params": params, "decays": not vector, "adapt": not vector, "constant": constant}
        for (vector, constant), params in found.items()
    ]


def build(method: Method, settings: Settings, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer that the settings describe, over the method's trained parameters."""
    parts = groups(method)
    if settings.name == "lars":
        return LARS(parts, momentum=settings.momentum)
    if settings.name == "sgd":
        return torch.optim.SGD(parts, lr=0.1, momentum=settings.momentum)
    return torch.optim.AdamW(parts, betas=settings.betas, fused=device.type in ("cpu", "cuda"))


def peak_lr(settings: Settings, batch_size: int) -> float:
    """The highest learning rate, scaled to the batch (Goyal et al. 2017; the square root for adaptive optimizers)."""
    scale = batch_size / 256
    return settings.lr * {"linear": scale, "sqrt": scale**0.5, "none": 1.0}[settings.lr_scaling]


def schedule(optimizer: torch.optim.Optimizer, settings: Settings, batch_size: int, at: At) -> float:
    """Set the learning rate and weight decay of every group for this step; returns the scheduled rate."""
    peak = peak_lr(settings, batch_size)
    lr, decay = peak * value(settings.schedule, at), value(settings.weight_decay, at)
    for group in optimizer.param_groups:
        group["lr"] = peak if group["constant"] else lr
        group["weight_decay"] = decay if group["decays"] else 0.0
    return lr
