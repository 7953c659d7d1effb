"""Decoders of maps of features: small convolutional networks. Woo et al. 2023; van den Oord et al. 2017."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MapDecoder(nn.Module):
    """ConvNeXt V2 blocks that predict the pixels of every place of a map, in the places that are hidden too.

    Args:
        embed_dim: width of the map's features.
        grid: rows and columns of the map.
        output_dim: numbers to predict for each place.
        dim: width of the decoder.
        depth: blocks; the paper has one.
        mask: whether a token replaces hidden places.
    """

    mask: nn.Parameter | None

    def __init__(
        self, embed_dim: int, grid: tuple[int, int], output_dim: int, dim: int, depth: int = 1, *, mask: bool = True
    ) -> None:
        super().__init__()
        from timm.models.convnext import ConvNeXtBlock

        self.grid = grid
        self.embed = nn.Linear(embed_dim, dim)
        self.mask = nn.Parameter(0.02 * torch.randn(dim)) if mask else None
        blocks: Any = [ConvNeXtBlock(dim, use_grn=True, ls_init_value=None) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(dim, output_dim)

    def forward(self, features: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Predict all places.

        Args:
            features: `b n embed_dim`, row by row.
            hidden: bool, `b n`: places whose features the token replaces.

        Returns:
            `b n output_dim`.
        """
        x = self.embed(features)
        if hidden is not None and self.mask is not None:
            x = torch.where(hidden[:, :, None], self.mask.to(x.dtype), x)
        x = self.blocks(x.transpose(1, 2).unflatten(2, self.grid))
        found: Tensor = self.head(x.flatten(2).transpose(1, 2))
        return found
