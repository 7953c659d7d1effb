"""Attention on CPUs in bfloat16: PyTorch's fused kernel is fast forward and slow backward."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

_MOST = 256  # tokens of an image; the matrix of their weights is kept for the backward pass


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """`softmax(q k^T / sqrt(c)) v`, all `b h n c`, by whichever way is faster."""
    if slow(q, q.shape[2]) and dropout == 0:
        weights: Tensor = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)
        return weights.to(v.dtype) @ v
    return scaled_dot_product_attention(q, k, v, dropout_p=dropout)


def slow(x: Tensor, tokens: int) -> bool:
    """Whether the fused kernel takes longer than three products: two to five times, with its backward pass.

    In float32 and without gradient it is as fast or faster.
    """
    return (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and tokens <= _MOST
    )


def unfuse(model: nn.Module) -> None:
    """Have timm's attention of a model leave the fused kernel where it is `slow`, in place."""
    for m in model.modules():
        if type(m) in _attentions() and m.fused_attn:
            m.__class__ = _choosing(type(m))  # type: ignore[arg-type]  # a module is no Hashable, its class is


def _attentions() -> tuple[type[nn.Module], ...]:
    from timm.layers import Attention, AttentionRope
    from timm.models.eva import EvaAttention

    return Attention, AttentionRope, EvaAttention


@cache
def _choosing(kind: Any) -> Any:
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        fused = self.fused_attn
        self.fused_attn = fused and not slow(x, x.shape[1])
        found: Tensor = kind.forward(self, x, *args, **kwargs)
        self.fused_attn = fused
        return found

    return type(f"Choosing{kind.__name__}", (kind,), {"forward": forward, "__module__": __name__})


def __getattr__(name: str) -> Any:
    """The classes above by name, by which pickle finds them: timm takes seconds to import."""
    for kind in _attentions() if name.startswith("Choosing") else ():
        if name == f"Choosing{kind.__name__}":
            return _choosing(kind)  # type: ignore[arg-type]
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
