"""Optimizers: which parameters decay, how the rate follows the schedule, LARS and Muon."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from manyviews.methods import Method
from manyviews.schedules import value
from manyviews.settings import Optimizer as Settings
from manyviews.types import Progress


class SGD(torch.optim.SGD):
    """PyTorch's, whose fused kernel takes momentum for all parameters or for none: some get gradients later."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if group["momentum"] and p.grad is not None and self.state[p].get("momentum_buffer") is None:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        super().step()


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
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            grads = [p.grad for p in weights]
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
            if group["adapt"]:
                w, g = (torch.stack(torch._foreach_norm(x)) for x in (weights, grads))
                ratios = torch.where((w > 0) & (g > 0), group["trust"] * w / g, 1.0)
                grads = list(torch._foreach_mul(grads, list(ratios.unbind())))
            velocities = []
            for p in weights:
                state = self.state[p]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(p)
                velocities.append(state["velocity"])
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, grads)
            torch._foreach_add_(weights, velocities, alpha=-group["lr"])


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is made orthogonal: all directions of a weight matrix learn at one speed.

        m <- momentum m + (1 - momentum) g;  u = orthogonal(momentum m + (1 - momentum) g)
        w <- (1 - lr weight_decay) w - lr 0.2 sqrt(max(rows, columns)) u

    Jordan et al. 2024. The factor makes an update as large as one of AdamW, so that it takes AdamW's learning rate (Liu
    et al. 2025, "Muon is scalable for LLM training"). Convolutions count as matrices of output channels by the rest.
    Groups with `adapt=False` (biases, norms) take AdamW's step. PyTorch's own takes matrices only, and computes in
    bfloat16, which a CPU without such instructions emulates forty times slower than this.

    Args:
        params: parameters or groups.
        lr: learning rate, as for AdamW.
        momentum: of the update.
        betas: of AdamW.
        weight_decay: decoupled.
        eps: of AdamW.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, defaults | {"adapt": True})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            grads = [p.grad for p in weights]
            update = self._orthogonal if group["adapt"] else self._adamw
            update(weights, grads, group)

    def _orthogonal(self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        momenta = self._state("momentum", weights)
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        for w, m, g in zip(weights, momenta, grads, strict=True):
            u = orthogonal(g.lerp(m, group["momentum"]).flatten(1))
            w.add_(u.view(w.shape), alpha=-group["lr"] * 0.2 * max(u.shape) ** 0.5)

    def _adamw(self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        means, squares = self._state("mean", weights), self._state("square", weights)
        steps = self._state("steps", weights, scalar=True)
        beta1, beta2 = group["betas"]
        adamw(
            weights,
            grads,
            means,
            squares,
            [],
            steps,
            fused=weights[0].device.type in ("cpu", "cuda"),
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            **{k: group[k] for k in ("lr", "weight_decay", "eps")},
        )

    def _state(self, name: str, weights: list[Tensor], scalar: bool = False) -> list[Tensor]:
        for p in weights:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros((), device=p.device) if scalar else torch.zeros_like(p)
        return [self.state[p][name] for p in weights]


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """`u v^T` of a matrix's singular value decomposition `u s v^T`, roughly: singular values come to about 0.7 to 1.2.

    Five Newton-Schulz steps `x <- (3.4445 + b a + 2.0315 a^2) x`, with `a = x x^T` and `b = -4.7750`: Jordan's
    coefficients, which trade exactness for speed. All factors are polynomials of the first `a` and commute, so they are
    multiplied up among themselves, small square matrices, and meet the long `x` once.
    """
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    a, product = x @ x.T, None
    for step in range(steps):
        factor = torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315)
        factor.diagonal().add_(3.4445)
        product = factor if product is None else product @ factor
        if step < steps - 1:
            a = factor @ a @ factor
    x = x if product is None else product @ x
    return x.T if tall else x


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
    if settings.name == "muon":
        return Muon(parts, momentum=settings.momentum, betas=settings.betas)
    fused = device.type in ("cpu", "cuda")
    if settings.name == "sgd":
        return SGD(parts, lr=0.1, momentum=settings.momentum, fused=fused)
    return torch.optim.AdamW(parts, betas=settings.betas, fused=fused)


def peak_lr(settings: Settings, batch_size: int) -> float:
    """The highest learning rate, scaled to the batch (Goyal et al. 2017; the square root for adaptive optimizers)."""
    scale = batch_size / 256
    return settings.lr * {"linear": scale, "sqrt": scale**0.5, "constant": 1.0}[settings.lr_scaling]


def schedule(optimizer: torch.optim.Optimizer, settings: Settings, batch_size: int, at: Progress) -> float:
    """Set the learning rate and weight decay of every group for this step; returns the scheduled rate."""
    peak = peak_lr(settings, batch_size)
    lr, decay = peak * value(settings.schedule, at), value(settings.weight_decay, at)
    for group in optimizer.param_groups:
        group["lr"] = peak if group["constant"] else lr
        group["weight_decay"] = decay if group["decays"] or settings.decay_all else 0.0
    return lr


def clip(method: Method, limit: float | None) -> Tensor:
    """The norm of the whole gradient, a scalar on its device; a gradient that exceeds `limit` is scaled down to it."""
    trained = [p for p in method.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, limit, norm)
    return norm
