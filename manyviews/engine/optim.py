"""How parameters follow their gradients: groups of parameters, rates that follow a schedule, clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manyviews.engine.optimizers import LARS, SGD, Muon
from manyviews.methods import Method
from manyviews.schedules import value
from manyviews.settings import Optimizer as Settings
from manyviews.types import Progress


def groups(method: Method) -> list[dict[str, Any]]:
    """The trained parameters, grouped by how the optimizer treats them.

    As usual, vectors (biases, norm scales) and single tokens do not decay and are not adapted by LARS and Muon.
    Parameters under `method.constant_lr` keep the peak rate.
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
    """The optimizer that the settings describe, with the method's trained parameters."""
    parts = groups(method)
    if settings.name == "lars":
        return LARS(parts, momentum=settings.momentum)
    if settings.name == "muon":
        return Muon(parts, momentum=settings.momentum, betas=settings.betas)
    fused = device.type in ("cpu", "cuda")
    if settings.name == "sgd":
        return SGD(parts, lr=0.1, momentum=settings.momentum, fused=fused)
    return torch.optim.AdamW(parts, betas=settings.betas, fused=fused)


def peak_lr(settings: Settings, batch_size: int) -> float:
    """The peak learning rate for a batch size (Goyal et al. 2017; the square root is for adaptive optimizers)."""
    scale = batch_size / 256
    return settings.lr * {"linear": scale, "sqrt": scale**0.5, "constant": 1.0}[settings.lr_scaling]


def schedule(optimizer: torch.optim.Optimizer, settings: Settings, batch_size: int, at: Progress) -> float:
    """Set the learning rate and weight decay of every group for this step, and return the scheduled rate."""
    peak = peak_lr(settings, batch_size)
    lr, decay = peak * value(settings.schedule, at), value(settings.weight_decay, at)
    for group in optimizer.param_groups:
        group["lr"] = peak if group["constant"] else lr
        group["weight_decay"] = decay if group["decays"] or settings.decay_all else 0.0
    return lr


def clip(method: Method, limit: float | None) -> Tensor:
    """The norm of the whole gradient, a scalar on its device. A gradient above `limit` is scaled down to it."""
    trained = [p for p in method.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, limit, norm)
    return norm
