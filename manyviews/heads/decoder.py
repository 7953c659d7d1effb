"""The decoder of masked autoencoders. He et al. 2022."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from manyviews.backbones import sincos
from manyviews.errors import UserError


class Decoder(nn.Module):
    """A small transformer that predicts the pixels of all patches from the tokens of the visible ones.

    Tokens are projected to the decoder's width and put back in their places, a learned mask token takes the places of
    the missing ones, fixed sine-cosine positions are added, and transformer blocks follow. Unlike the authors', it is
    not given the class token.

    Args:
        embed_dim: width of the encoder.
        patches: of a square image, a square number.
        patch_size: side of a patch, pixels.
        dim: width of the decoder, divisible by 4 and by `heads`.
        depth: transformer blocks.
        heads: attention heads.

    Raises:
        UserError: the numbers do not fit together.
    """

    place: Tensor

    def __init__(self, embed_dim: int, patches: int, patch_size: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        side = math.isqrt(patches)
        if side**2 != patches:
            raise UserError(f"The decoder needs a square grid of patches, and {patches} is not a square number.")
        if dim % heads:
            raise UserError(f"The decoder's width {dim} must be divisible by its {heads} attention heads.")
        self.embed = nn.Linear(embed_dim, dim)
        self.mask = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("place", sincos((side, side), dim)[None], persistent=False)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, patch_size**2 * 3)
        nn.init.normal_(self.mask, std=0.02)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """Predict pixels.

        Args:
            tokens: of the visible patches, without prefix tokens, `b v embed_dim`.
            kept: int64, `b v`, which patches they are.

        Returns:
            `b patches patch_size**2*3`, laid out as by `manyviews.objectives.patchify`.
        """
        x = self.embed(tokens)
        everywhere = self.mask.to(x.dtype).expand(len(x), self.place.shape[1], -1)
        x = everywhere.scatter(1, kept[:, :, None].expand_as(x), x) + self.place
        return self.head(self.norm(self.blocks(x)))
