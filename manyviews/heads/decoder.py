"""Decoders of masked images: MAE's transformer (He et al. 2022), data2vec 2.0's convolutions (Baevski et al. 2023)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class GridDecoder(nn.Module):
    """Convolutions on the grid of patches that predict all patches from the tokens of the visible ones.

    Tokens are put back in their places, and a learned token takes the places of the missing ones. Each layer is a
    grouped convolution, a normalization over features without scale and shift, and a GELU, with a residual around it
    where widths agree. A linear layer gives the prediction. Convolutions tell places apart by what lies around them, so
    there are no positions.

    Args:
        embed_dim: width of the encoder.
        grid: rows and columns of patches.
        output_dim: numbers to predict for each patch.
        dim: width of the convolutions.
        depth: convolutions.
        kernel: side of a convolution, odd.
        groups: parts in which a convolution divides its features; both widths must be divisible by it.

    Raises:
        UserError: the numbers do not fit together.
    """

    def __init__(
        self,
        embed_dim: int,
        grid: tuple[int, int],
        output_dim: int,
        dim: int,
        depth: int,
        kernel: int = 3,
        groups: int = 16,
    ) -> None:
        super().__init__()
        if embed_dim % groups or dim % groups:
            raise UserError(
                f"A decoder of width {dim} on an encoder of width {embed_dim} cannot convolve in {groups} groups: both "
                "widths must be divisible by them."
            )
        if kernel % 2 == 0:
            raise UserError(f"The decoder's kernel of {kernel} patches has no middle: set an odd one.")
        self.grid = grid
        self.mask = nn.Parameter(torch.zeros(embed_dim))
        widths = pairwise((embed_dim, *[dim] * depth))
        self.layers = nn.ModuleList(nn.Conv2d(a, b, kernel, padding=kernel // 2, groups=groups) for a, b in widths)
        self.head = nn.Linear(dim if depth else embed_dim, output_dim)
        nn.init.normal_(self.mask, std=0.02)

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """Predictions of all patches, `b n output_dim`, row by row.

        Args:
            tokens: tokens of the visible patches, without prefix tokens, `b v embed_dim`.
            kept: int64, `b v`, which patches they are.
        """
        b, _, d = tokens.shape
        rows, columns = self.grid
        everywhere = self.mask.to(tokens.dtype).expand(b, rows * columns, d)
        x = everywhere.scatter(1, kept[:, :, None].expand_as(tokens), tokens)
        for conv in self.layers:
            y = conv(x.view(b, rows, columns, -1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = x + y if y.shape == x.shape else y
        found: Tensor = self.head(x)
        return found
