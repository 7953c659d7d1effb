"""How parameters follow their gradients: groups of parameters, rates that follow a schedule, clipping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from manyviews import distributed
from manyviews.adaptation import Adaptation, Full
from manyviews.adaptation.groups import is_vector
from manyviews.backbones import Encoder
from manyviews.engine.optimizers import LARS, SGD, Muon
from manyviews.methods import Method
from manyviews.schedules import value
from manyviews.settings import Optimizer as Settings
from manyviews.types import Progress


def groups(method: Method, adaptation: Adaptation = Full()) -> list[dict[str, Any]]:
    """The trained parameters, grouped by how the optimizer treats them.

    As usual, vectors (biases, norm scales) and single tokens do not decay and are not adapted by LARS and Muon.
    Parameters under `method.constant_lr` keep the peak rate, and rates under `method.lr_scales` have factors of their
    own. `adaptation` scales the rates of the trained encoder.
    """
    trained = [m for m in method.modules() if isinstance(m, Encoder) and any(p.requires_grad for p in m.parameters())]
    scales = {id(p): g["lr_scale"] for m in trained for g in adaptation.groups(m) for p in g["params"]}
    found: dict[tuple[bool, bool, float], list[Tensor]] = {}
    for name, p in method.named_parameters():
        if p.requires_grad:
            constant = any(name.startswith(prefix) for prefix in method.constant_lr)
            scale = scales.get(id(p), 1.0)
            for prefix, factor in method.lr_scales.items():
                scale *= factor if name.startswith(prefix) else 1.0
            found.setdefault((is_vector(name, p), constant, scale), []).append(p)
    return [
        {"params": params, "decays": not vector, "adapt": not vector, "constant": constant, "lr_scale": scale}
        for (vector, constant, scale), params in found.items()
    ]


def build(
    method: Method, settings: Settings, device: torch.device, adaptation: Adaptation = Full()
) -> torch.optim.Optimizer:
    """The optimizer that the settings describe, with the method's trained parameters."""
    parts = groups(method, adaptation)
    optimizer = _build([g | {"params": [_part(p) for p in g["params"]]} for g in parts], settings, device)
    pairs = [
        (p, x)
        for g, of in zip(parts, optimizer.param_groups, strict=True)
        for p, x in zip(g["params"], of["params"], strict=True)
        if p is not x
    ]
    if pairs:

        def take(*_: object) -> None:
            for p, x in pairs:
                x.grad = None if p.grad is None else distributed.own(p.grad)

        def clear(*_: object) -> None:
            for p, x in pairs:
                p.grad = x.grad = None

        optimizer.register_step_pre_hook(take)
        optimizer.register_step_post_hook(clear)
    return optimizer


def _part(p: Tensor) -> Tensor:
    """The parameter itself or, of one that is spread over the ranks, this rank's part as a parameter of its own."""
    if not distributed.spread(p):
        return p
    part: Any = torch.nn.Parameter(distributed.own(p))
    part.whole = p
    return cast(Tensor, part)


def _build(parts: list[dict[str, Any]], settings: Settings, device: torch.device) -> torch.optim.Optimizer:
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
    factors = {"linear": scale, "sqrt": float(scale**0.5), "constant": 1.0}
    return settings.lr * factors[settings.lr_scaling]


def schedule(optimizer: torch.optim.Optimizer, settings: Settings, batch_size: int, at: Progress) -> float:
    """Set the learning rate and weight decay of every group for this step, and return the scheduled rate."""
    peak = peak_lr(settings, batch_size)
    lr, decay = peak * value(settings.schedule, at), value(settings.weight_decay, at)
    for group in optimizer.param_groups:
        # Checkpoints of older versions have no scale.
        group["lr"] = (peak if group["constant"] else lr) * group.get("lr_scale", 1.0)
        group["weight_decay"] = decay if group["decays"] or settings.decay_all else 0.0
    return lr


def forget(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Drop the state of parameters that began anew: to the optimizer, their next step is the first."""
    for p in parameters:
        optimizer.state.pop(p, None)


def first_layers(method: Method) -> list[Tensor]:
    """The trained weights that see the pixels: patch projections, first convolutions."""
    found = []
    for encoder in (m for m in method.modules() if isinstance(m, Encoder)):
        weights = dict(encoder.model.named_parameters())
        found += [weights[name] for name in encoder.first_convolutions if name in weights]
    return [p for p in found if p.requires_grad]


def largest(parameters: Sequence[Tensor]) -> Tensor | None:
    """The largest entry of their gradients, a scalar on their device; None where there is no gradient."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.stack([g.abs().amax() for g in gradients]).amax() if gradients else None


def clip(method: Method, limit: float | None) -> Tensor:
    """The norm of the whole gradient, a scalar on its device. A gradient above `limit` is scaled down to it."""
    trained = [p for p in method.parameters() if p.grad is not None]
    grads = [p.grad for p in trained if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([g for g in grads if not distributed.spread(g)])
    if len(parts := [distributed.own(g) for g in grads if distributed.spread(g)]):
        norm = torch.hypot(norm, distributed.total(torch.nn.utils.get_total_norm(parts).square()).sqrt())
    if limit is not None:
        torch._foreach_mul_([distributed.own(g) for g in grads], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
