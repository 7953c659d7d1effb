"""CLIP: each image picks out its own caption among those of the batch, and each caption its image.

An image encoder and a text encoder are trained together, each with a linear projection to a common space.

Learning Transferable Visual Models From Natural Language Supervision, Radford et al. 2021.

    L = 1/2N sum_i [ -log( e^{s_ii} / sum_j e^{s_ij} ) - log( e^{s_ii} / sum_j e^{s_ji} ) ],   s_ij = e^t cos(u_i, v_j)

The lecture's pseudo-code names the axes of its two softmaxes ambiguously; they run over the captions of an image and
over the images of a caption. The text encoder reads bytes, so that it needs no vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.heads import TextEncoder
from manyviews.methods import Branch, Method, Terms, exactly
from manyviews.objectives import clip
from manyviews.types import Progress
from manyviews.views import Caption, Crop, Global, Views


class CLIP(Method):
    """See the module's docstring.

    Args:
        encoder: the image encoder, which is trained and kept.
        view: the view of an image, one of each.
        caption: the view of its caption.
        output_dim: dimensions of the common space.
        text_dim: width of the text encoder.
        text_depth: transformer blocks of the text encoder.
        text_heads: attention heads of the text encoder.
        temperature: temperature of the softmax at the start; its inverse learns.
        most: largest inverse temperature.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, area=(0.9, 1.0), color=None, flip=0.0),
        caption: Caption = Caption(),
        output_dim: int = 512,
        text_dim: int = 512,
        text_depth: int = 12,
        text_heads: int = 8,
        temperature: float = 0.07,
        most: float = 100.0,
    ) -> None:
        super().__init__()
        self.views = (exactly(view, 1, "CLIP"), caption)
        if text_dim % text_heads:
            raise UserError(f"The text encoder's width {text_dim} must be divisible by its {text_heads} heads.")
        self.online = Branch(encoder, nn.Linear(encoder.embed_dim, output_dim, bias=False))
        self.text = TextEncoder(text_dim, text_depth, text_heads, caption.length, output_dim)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.most = math.log(most)

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        image, caption = (views[kind.name, 0] for kind in self.views)
        yield {"clip": clip(self.online(image), self.text(caption), self.log_scale.clamp(max=self.most))}
