"""The decoder of masked autoencoders. He et al. 2022."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyviews.backbones import sincos, take
from manyviews.errors import UserError


class Decoder(nn.Module):
    """A small transformer that predicts the pixels of all patches from the tokens of the visible ones.

    Tokens are projected to the decoder's width and put back in their places, a learned mask token takes the places of
    the missing ones, fixed sine-cosine positions are added, and transformer blocks follow. Unlike the authors', it is
    not given the class token.

    Args:
        embed_dim: width of the encoder.
        grid: rows and columns of patches.
        output_dim: numbers to predict for each patch.
        dim: width of the decoder, divisible by 4 and by `heads`.
        depth: transformer blocks.
        heads: attention heads.

    Raises:
        UserError: the numbers do not fit together.
    """

    place: Tensor

    def __init__(
        self, embed_dim: int, grid: tuple[int, int], output_dim: int, dim: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        if dim % heads:
            raise UserError(f"The decoder's width {dim} must be divisible by its {heads} attention heads.")
        self.embed = nn.Linear(embed_dim, dim)
        self.mask = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("place", sincos(grid, dim)[None], persistent=False)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, output_dim)
        nn.init.normal_(self.mask, std=0.02)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, tokens: Tensor, kept: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Predict patches from those that are visible.

        Args:
            tokens: tokens of the visible patches, without prefix tokens, `b v embed_dim`.
            kept: int64, `b v`, which patches they are.
            wanted: int64, `b m`, the patches to predict, which see the visible ones and each other (I-JEPA, Assran et
                al. 2023). If None, all: mask tokens fill the places of the missing ones (MAE).

        Returns:
            `b n output_dim`, row by row, or `b m output_dim`.
        """
        x = self.embed(tokens)
        mask, place = self.mask.to(x.dtype), self.place.expand(len(x), -1, -1)
        if wanted is None:
            everywhere = mask.expand(len(x), place.shape[1], -1)
            x = everywhere.scatter(1, kept[:, :, None].expand_as(x), x) + self.place
            everything: Tensor = self.head(self.norm(self.blocks(x)))
            return everything
        x = torch.cat([x + take(place, kept), mask + take(place, wanted)], 1)
        found: Tensor = self.head(self.norm(self.blocks(x))[:, -wanted.shape[1] :])
        return found
