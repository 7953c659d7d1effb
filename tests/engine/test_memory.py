"""Blocks that are computed again in the backward pass: the same bits, and less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from manyviews.backbones import Encoder, recompute_blocks

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet18", {"stem": "small", "channels": (8, 8, 16, 16)}),
    "vit": (
        "vit_tiny_patch16_224",
        {
            **{"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
            **{"drop_path_rate": 0.3, "proj_drop_rate": 0.2},
        },
    ),
    "convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16), "drop_path_rate": 0.3}),
}


def stepped(again: bool, case: str) -> tuple[dict[str, Tensor], int]:
    """Gradients and buffers after a step, and the bytes that it kept for the backward pass."""
    name, settings = CASES[case]
    torch.manual_seed(0)
    encoder = Encoder(name, **settings).train()
    if again:
        recompute_blocks(encoder.model)
    x, kept = torch.randn(4, 3, 32, 32), {}

    def keep(t: Tensor) -> Tensor:
        if not isinstance(t, torch.nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = t
        return t

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = encoder(x).square().sum()
    bytes_kept = sum(t.untyped_storage().nbytes() for t in kept.values())
    y.backward()
    found = {k: p.grad for k, p in encoder.named_parameters() if p.grad is not None}
    return found | dict(encoder.named_buffers()), bytes_kept


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_statistics_keep_their_bits_and_memory_shrinks(case: str) -> None:
    (usual, before), (again, after) = stepped(False, case), stepped(True, case)
    assert usual.keys() == again.keys() and all(torch.equal(usual[k], again[k]) for k in usual)
    assert after < 0.7 * before, (after, before)
