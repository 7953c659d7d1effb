"""Optimizers that PyTorch lacks: LARS, Muon, and an SGD whose parameters may join late."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from manyviews import distributed


class SGD(torch.optim.SGD):
    """PyTorch's SGD, for parameters of which some get their first gradient later.

    Its fused kernel requires a momentum buffer of all parameters or of none, so they are made here.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if group["momentum"] and p.grad is not None and self.state[p].get("momentum_buffer") is None:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        super().step()


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose rate follows each layer's ratio of weight norm to gradient norm (after You et al. 2017).

        g <- g + weight_decay w;  g <- g * trust ||w|| / ||g||;  v <- momentum v + g;  w <- w - lr v

    The norm is that of the gradient with the decay in it, as in the code of Barlow Twins and MoCo v3. You et al. have
    the two norms apart, ||w|| / (||gradient|| + weight_decay ||w||). Groups with `adapt=False` (biases and norms) take
    the plain momentum step, except their single numbers, such as exponents and temperatures: rates of LARS are a
    thousand times those that a number can take as they are. A layer whose weight or gradient is zero is not scaled, so
    that layers that start at zero can move.

    A parameter that is this rank's part of one that is spread over the ranks has it as `whole`; norms are of that.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: share of the velocity that stays from step to step, in [0, 1).
        weight_decay: added to the gradient before the scaling.
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
            adapted = [i for i, p in enumerate(weights) if group["adapt"] or getattr(p, "whole", p).numel() == 1]
            if adapted:
                w, g = (torch.stack(torch._foreach_norm([x[i] for i in adapted])) for x in (weights, grads))
                parts = [hasattr(weights[i], "whole") for i in adapted]
                if any(parts):  # their norms are over all ranks
                    w, g = _norms_of_wholes(torch.stack([w, g]), torch.tensor(parts, device=w.device))
                ratios = torch.where((w > 0) & (g > 0), group["trust"] * w / g, 1.0)
                scaled = torch._foreach_mul([grads[i] for i in adapted], list(ratios.unbind()))
                for i, its in zip(adapted, scaled, strict=True):
                    grads[i] = its
            velocities = []
            for p in weights:
                state = self.state[p]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(p)
                velocities.append(state["velocity"])
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, grads)
            torch._foreach_add_(weights, velocities, alpha=-group["lr"])


def _norms_of_wholes(norms: Tensor, parts: Tensor) -> Tensor:
    """Norms, `2 n`, of which those of `parts`, bool `n`, are of this rank's part of a weight: those of the weights."""
    return torch.where(parts, distributed.total(norms.square()).sqrt(), norms)


class Muon(torch.optim.Optimizer):
    """SGD with momentum whose updates are made orthogonal: all directions of a weight matrix learn at one speed.

        m <- momentum m + (1 - momentum) g;  u = orthogonal(momentum m + (1 - momentum) g)
        w <- (1 - lr weight_decay) w - lr 0.2 sqrt(max(rows, columns)) u

    Jordan et al. 2024. The factor makes an update as large as one of AdamW, so AdamW's learning rates fit (Liu et al.
    2025, "Muon is scalable for LLM training"). A convolution is a matrix of its output channels by everything else.
    Groups with `adapt=False` (biases, norms) take AdamW's step. PyTorch's own Muon takes matrices only and computes in
    bfloat16, which a CPU without such instructions emulates, forty times slower than this.

    Args:
        params: parameters or groups.
        lr: learning rate, as for AdamW.
        momentum: share of the average gradient that stays from step to step, in [0, 1).
        betas: AdamW's, for groups with `adapt=False`.
        weight_decay: decoupled from the gradient.
        eps: AdamW's, for groups with `adapt=False`.
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
    """Roughly `u v^T` of a matrix whose singular value decomposition is `u s v^T`; its singular values are 0.7 to 1.2.

    Five Newton-Schulz steps `x <- (3.4445 + b a + 2.0315 a^2) x`, with `a = x x^T` and `b = -4.7750`: Jordan's
    coefficients, which trade exactness for speed. All factors are polynomials of the first `a`, so they commute: the
    small square factors are multiplied first, and the long `x` once.
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
