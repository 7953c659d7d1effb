"""A transformer for captions. CLIP, Radford et al. 2021."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TextEncoder(nn.Module):
    """A causal transformer on the bytes of a text: int64 `b n`, zeros after the end, to `b output_dim`.

    It is trained from scratch. The authors read byte pairs of a vocabulary of 49,152; plain bytes need none.

    Args:
        dim: width.
        depth: transformer blocks.
        heads: attention heads.
        length: bytes of the longest text.
        output_dim: dimensions of the contrasted space.
    """

    def __init__(self, dim: int, depth: int, heads: int, length: int, output_dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, dim)
        self.position = nn.Parameter(0.01 * torch.randn(length, dim))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.projector = nn.Linear(dim, output_dim, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        n = text.shape[1]
        x = self.embed(text) + self.position[:n]
        mask = nn.Transformer.generate_square_subsequent_mask(n, device=x.device, dtype=x.dtype)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        last = (text != 0).sum(1).clamp(min=1) - 1
        found: Tensor = self.projector(self.norm(x[torch.arange(len(x), device=x.device), last]))
        return found
