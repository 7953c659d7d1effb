"""The representations that any encoder must beat: raw pixels, and its own architecture with fresh weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyviews.backbones import Encoder, ExternalEncoder, reinitialized


class Pixels(nn.Module):
    """Raw pixels as features: images of at most 32 pixels, flattened.

    Standardize them by the training set before use; the normalization that they went through then does not matter.
    """

    side = 32

    def forward(self, x: Tensor) -> Tensor:
        """Float32 `b 3 h w` to `b 3*s*s`, with s at most 32."""
        if x.shape[-1] > self.side:
            x = F.interpolate(x, size=(self.side, self.side), mode="bilinear", antialias=True)
        return x.flatten(1)


def untrained(encoder: Encoder | ExternalEncoder, seed: int) -> Encoder | ExternalEncoder:
    """An encoder of the same architecture with fresh weights; the global random state stays as it is.

    Raises:
        UserError: nobody knows how to initialize a module from outside.
    """
    if isinstance(encoder, ExternalEncoder):
        return reinitialized(encoder, seed)
    with torch.random.fork_rng([]):  # it draws on the CPU; by default every GPU would be touched
        torch.default_generator.manual_seed(seed)
        return Encoder.from_spec(encoder.spec)
