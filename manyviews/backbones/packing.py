"""Transformer blocks that compute no more than they must: images of several sizes at once, and only those that count.

**Packing** (DINOv2, Oquab et al. 2024, section 5). The tokens of all images stand in one sequence. Norms, projections
and the MLP see them all in one product. Attention is block-diagonal: an image's tokens attend to each other alone. It
is computed size by size, because a mask over the whole sequence would cost its square.

**Stochastic depth** (Huang et al. 2016) that skips. A residual branch that is dropped for an image is not computed for
it. Of b images, b * keep are drawn without replacement, one more or fewer at random so that each is kept with
probability `keep`; what the branch gives for them is divided by `keep`. Expectation and gradient are those of masking.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from manyviews.backbones.attention import attend

Rope = Tensor | None
Shapes = Sequence[tuple[int, int]]
Branch = Callable[[Tensor, Shapes, Sequence[Rope]], Tensor]


def skip_dropped(model: nn.Module) -> None:
    """Have every transformer block of a model that drops residual branches skip what it drops, in place.

    Names and parameters stay. Evaluation is timm's own; so is what is compiled, whose shapes may not vary.
    """
    for m in model.modules():
        if type(m) in _blocks() and any(isinstance(half, _drop_path()) for half in (m.drop_path1, m.drop_path2)):
            m.__class__ = _skipping(type(m))  # type: ignore[arg-type]  # a module is no Hashable, its class is


def drop_uniformly(model: Any, rate: float) -> None:
    """Give all residual branches of a transformer's blocks one probability of being dropped, in place."""
    for block in model.blocks:
        block.drop_path1, block.drop_path2 = (_drop_path()(rate) if rate else nn.Identity() for _ in range(2))


def packs(model: Any) -> bool:
    """Whether `run` computes what the model's own pass computes, block by block."""
    from timm.layers import Attention, AttentionRope
    from timm.models.eva import Eva, EvaAttention
    from timm.models.vision_transformer import VisionTransformer

    if type(model) not in (VisionTransformer, Eva) or model.grad_checkpointing:
        return False
    if not isinstance(model.patch_drop, nn.Identity | None):
        return False
    return all(
        isinstance(block, _blocks())
        and isinstance(block.attn, Attention | AttentionRope | EvaAttention)
        and getattr(block.attn, "num_kv_groups", 1) == 1
        for block in model.blocks
    )


def run(block: Any, x: Tensor, shapes: Shapes, ropes: Sequence[Rope]) -> Tensor:
    """One block on the tokens of several groups of images, one group after the other.

    Args:
        block: timm's `Block` or `EvaBlock`.
        x: `t d`, the tokens of each image of each group.
        shapes: numbers of images and of tokens of each of them, for each group.
        ropes: rotary positions for each group, `n c` or, of each image, `b 1 n c`; None without.

    Returns:
        `t d`.
    """

    def mix(x: Tensor, shapes: Shapes, ropes: Sequence[Rope]) -> Tensor:
        if len(shapes) > 1:
            return _scaled(block, 1, _attention(block.attn, block.norm1(x), shapes, ropes))
        rope = {} if ropes[0] is None else {"rope": ropes[0]}
        return _scaled(block, 1, block.attn(block.norm1(x).view(*shapes[0], -1), **rope)).flatten(0, 1)

    def feed(x: Tensor, _: Shapes, __: Sequence[Rope]) -> Tensor:
        return _scaled(block, 2, block.mlp(block.norm2(x)))

    x = _add(x, shapes, ropes, block.drop_path1, mix)
    return _add(x, shapes, ropes, block.drop_path2, feed)


def flat(groups: Sequence[Tensor]) -> tuple[Tensor, Shapes]:
    """`b n d` each, in one sequence `t d`, and their shapes."""
    return _joined([g.flatten(0, 1) for g in groups]), [(len(g), g.shape[1]) for g in groups]


def parted(x: Tensor, shapes: Shapes) -> list[Tensor]:
    """The reverse of `flat`."""
    return [part.unflatten(0, shape) for part, shape in zip(x.split([b * n for b, n in shapes]), shapes, strict=True)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _add(x: Tensor, shapes: Shapes, ropes: Sequence[Rope], drop: Any, branch: Branch) -> Tensor:
    """Tokens plus what a branch gives for them, or for those of some images of each group."""
    rate = float(getattr(drop, "drop_prob", 0.0)) if drop.training else 0.0
    if rate == 0:
        return x + branch(x, shapes, ropes)
    groups = parted(x, shapes)
    kept = [_some(len(g), 1 - rate, x.device) for g in groups]
    chosen = [i for i, k in enumerate(kept) if len(k)]
    if not chosen:
        return x
    some, fewer = flat([groups[i].index_select(0, kept[i]) for i in chosen])
    ys = parted(branch(some, fewer, [_rows(ropes[i], kept[i]) for i in chosen]).to(x.dtype), fewer)
    for i, y in zip(chosen, ys, strict=True):
        groups[i] = groups[i].index_add(0, kept[i], y, alpha=1 / (1 - rate))
    return flat(groups)[0]


def _some(n: int, share: float, device: torch.device) -> Tensor:
    """int64: some of n images, each with probability `share`. Their number is drawn on the host, without waiting."""
    count = math.floor(n * share)
    count += int(torch.rand(()).item() < n * share - count)
    return torch.randperm(n, device=device)[:count]


def _rows(rope: Rope, rows: Tensor) -> Rope:
    return rope if rope is None or rope.ndim < 4 else rope.index_select(0, rows)


def _scaled(block: Any, half: int, x: Tensor) -> Tensor:
    """LayerScale, under timm's two names."""
    if hasattr(block, "ls1"):
        found: Tensor = getattr(block, f"ls{half}")(x)
        return found
    gamma: Tensor | None = getattr(block, f"gamma_{half}")
    return x if gamma is None else gamma * x


def _attention(attn: Any, x: Tensor, shapes: Shapes, ropes: Sequence[Rope]) -> Tensor:
    """timm's attention of tokens in one sequence, `t d`, within each image of each group."""
    from timm.layers import apply_rot_embed_cat

    q, k, v = (part.unflatten(1, (attn.num_heads, -1)) for part in _projections(attn, x))  # t h c
    heads = [parted(part, shapes) for part in (attn.q_norm(q), attn.k_norm(k), v)]
    found = []
    for rope, *qkv in zip(ropes, *heads, strict=True):
        q, k, v = (part.transpose(1, 2) for part in qkv)  # b h n c
        if rope is not None:
            half, n = getattr(attn, "rotate_half", False), attn.num_prefix_tokens
            q, k = (
                torch.cat([y[:, :, :n], apply_rot_embed_cat(y[:, :, n:], rope, half=half)], 2).type_as(v)
                for y in (q, k)
            )
        found.append(attend(q, k, v, attn.attn_drop.p if attn.training else 0.0).transpose(1, 2).flatten(2))
    y = attn.norm(flat(found)[0])
    if attn.gate is not None:
        y = y * attn.gate(x).sigmoid()
    result: Tensor = attn.proj_drop(attn.proj(y))
    return result


def _projections(attn: Any, x: Tensor) -> Sequence[Tensor]:
    """Queries, keys and values, `t d` each."""
    if attn.qkv is None:
        return attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
    if getattr(attn, "q_bias", None) is None:
        found: Sequence[Tensor] = attn.qkv(x).chunk(3, -1)
        return found
    return linear(x, attn.qkv.weight, torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))).chunk(3, -1)


def _blocks() -> tuple[type[nn.Module], ...]:
    from timm.models.eva import EvaBlock
    from timm.models.vision_transformer import Block

    return Block, EvaBlock


def _drop_path() -> Any:
    from timm.layers import DropPath

    return DropPath


@cache
def _skipping(kind: Any) -> Any:
    def forward(self: Any, x: Tensor, rope: Rope = None, attn_mask: Rope = None, is_causal: bool = False) -> Tensor:
        if not self.training or attn_mask is not None or is_causal or torch.compiler.is_compiling():
            more = {} if rope is None else {"rope": rope}
            found: Tensor = kind.forward(self, x, **more, attn_mask=attn_mask, is_causal=is_causal)
            return found
        tokens, shapes = flat([x])
        return parted(run(self, tokens, shapes, [rope]), shapes)[0]

    return type(f"Skipping{kind.__name__}", (kind,), {"forward": forward, "__module__": __name__})


def __getattr__(name: str) -> Any:
    """The skipping classes by name, by which pickle finds them: timm takes seconds to import."""
    for kind in _blocks() if name.startswith("Skipping") else ():
        if name == f"Skipping{kind.__name__}":
            return _skipping(kind)  # type: ignore[arg-type]
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
