"""A network from elsewhere that teaches and does not learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder


class Teacher(nn.Module):
    """A frozen encoder, and perhaps the head that answers with it, in evaluation mode throughout.

    Everything of it is in the state dict, so a run that goes on needs no other file.

    Args:
        encoder: images, `b c h w`, to features, `b d`.
        head: features to logits, `b classes`.

    Attributes:
        mean, std: per channel, in [0, 1]: how the images were normalized that the encoder learned from.
        loaded: whether its weights came from a file.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, head: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.register_buffer("mean", torch.full((encoder.channels,), 0.5))
        self.register_buffer("std", torch.full((encoder.channels,), 0.25))
        self.requires_grad_(False)
        self.loaded = False
        self.register_load_state_dict_post_hook(_mark)  # type: ignore[no-untyped-call]
        self.train(self.training)

    def train(self, mode: bool = True) -> Teacher:
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Features, `b d`, of images `b c h w` that were normalized by this mean and std."""
        theirs, spread = (x.new_tensor(v).view(-1, 1, 1) for v in (mean, std))
        ours, own = (v.to(x.dtype).view(-1, 1, 1) for v in (self.mean, self.std))
        found: Tensor = self.encoder((x * spread + theirs - ours) / own)
        return found

    @torch.no_grad()
    def answer(self, features: Tensor) -> Tensor:
        """Logits, `b classes`, of features `b d`; the teacher has a head."""
        assert self.head is not None
        found: Tensor = self.head(features)
        return found


def _mark(teacher: Any, _: object) -> None:
    teacher.loaded = True
