"""Feature maps of any encoder: one for linear layers and nearest neighbors, or several for a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from manyviews.backbones import Encoder, patch_features
from manyviews.errors import UserError
from manyviews.evaluation.features import frozen, normalize

MOST = 512
"""Largest short side in pixels at which images keep their own size, when no other one is asked for."""

# Heights and widths for any network with strides up to 64, and any with patches of 14 pixels. They are not square, so
# that networks made for images of one size fail here and not in the middle of an evaluation.
_PROBES = ((256, 320), (224, 280))


class Maps(nn.Module):
    """A map of features: `b 3 h w` to `b dim h/stride w/stride`; the stride must divide the image.

    Args:
        encoder: encoder of images of any size.
        stages: stages of the network, or blocks of a vision transformer, counted from the back as -1, -2, ...; the maps
            of several are resized (bilinear) to the finest one and concatenated. Those of blocks go through the final
            norm (as in DINO). None: the last map.

    Attributes:
        dim: features of each position.
        stride: pixels from one position to the next.
        stages: the stages, counted from the front; None for the last map.

    Raises:
        UserError: the network takes images of one size only, or has no such stages.
    """

    def __init__(self, encoder: Encoder, stages: Sequence[int] | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages: list[int] | None = None
        strides = [stride for _, stride in stage_shapes(encoder)]
        if stages is None:
            self.stride = strides[-1]
        else:
            count = len(strides)
            if not stages or not all(-count <= k < count for k in stages):
                raise UserError(f"{encoder.name} has {count} stages, from -{count} to -1, and no {tuple(stages)}.")
            self.stages = sorted(k % count for k in set(stages))
            self.stride = min(strides[k] for k in self.stages)
        side = 4 * strides[-1]
        with frozen(encoder):
            self.dim: int = self(torch.zeros(1, encoder.channels, side, side, device=_device(encoder))).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return map_of(self.encoder, x, self.stride, self.stages)


def map_of(encoder: Encoder, x: Tensor, stride: int, stages: Sequence[int] | None) -> Tensor:
    """The map that `Maps` gives, `b dim h/stride w/stride`; stages are counted from the front."""
    h, w = x.shape[-2] // stride, x.shape[-1] // stride
    if stages is None:
        found: Tensor = patch_features(encoder, x).transpose(1, 2).unflatten(2, (h, w))
        return found
    maps = intermediates(encoder, x, stages)
    sized = [m if m.shape[-2:] == (h, w) else F.interpolate(m, size=(h, w), mode="bilinear") for m in maps]
    return torch.cat(sized, 1)


def intermediates(encoder: Encoder, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
    """Maps of some or all stages, first stage first: `b c h' w'`.

    Raises:
        UserError: the network cannot give them.
    """
    model: Any = encoder.model
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"{encoder.name} cannot give the maps of its stages: {_ADVICE}.")
    # Convolutional networks have no norm that fits all of their stages.
    norm = {"norm": True} if hasattr(model, "blocks") and hasattr(model, "norm") else {}
    wanted = None if indices is None else list(indices)
    found: list[Tensor] = model.forward_intermediates(
        x, indices=wanted, stop_early=True, intermediates_only=True, output_fmt="NCHW", **norm
    )
    return found


def stage_shapes(encoder: Encoder) -> list[tuple[int, int]]:
    """Channels and stride in pixels of the map of every stage, first stage first; found by trying.

    Raises:
        UserError: the network takes images of one size only, or its maps do not divide the image evenly.
    """
    failure = ""
    for h, w in _PROBES:
        try:
            with frozen(encoder):
                found = intermediates(encoder, torch.zeros(1, encoder.channels, h, w, device=_device(encoder)))
        except (AssertionError, RuntimeError, ValueError, UserError) as e:  # networks refuse a size in many ways
            failure = str(e).rstrip(".").splitlines()[0] if str(e) else type(e).__name__
            continue
        if any(h % m.shape[-2] or w % m.shape[-1] or h // m.shape[-2] != w // m.shape[-1] for m in found):
            raise UserError(f"The maps of {encoder.name} do not divide its images evenly: {_ADVICE}.")
        return [(m.shape[1], h // m.shape[-2]) for m in found]
    raise UserError(f"{encoder.name} cannot look at images of any size ({failure}): {_ADVICE}.")


_ADVICE = "choose a ResNet, a ConvNeXt or a plain vision transformer"


def resized(image: Image.Image, short: int | None, stride: int) -> NDArray[np.uint8]:
    """The whole image as the encoder's input: uint8 `3 h w`, both sides the nearest multiples of the stride.

    Bicubic and antialiased. The short side is about `short` pixels; if None, it stays, up to `MOST`.
    """
    least = min(image.size)
    scale = (min(least, MOST) if short is None else short) / least
    width, height = (max(1, round(side * scale / stride)) * stride for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def encode_all(
    maps: Maps, images: Sequence[NDArray[np.uint8]], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> list[Tensor]:
    """Map of each image (uint8 `3 h w`): float32 `dim h' w'`, on `device`. Images of one size are encoded together."""
    found: list[Tensor] = [torch.empty(0)] * len(images)
    shapes = [image.shape for image in images]
    for shape in dict.fromkeys(shapes):
        rows = [i for i, s in enumerate(shapes) if s == shape]
        pixels = torch.from_numpy(np.stack([images[i] for i in rows])).to(device)
        with frozen(maps):
            some = maps(normalize(pixels, mean, std)).float()
        for i, one in zip(rows, some, strict=True):
            # A clone outside inference mode: probes can train on it, and it does not keep the others alive.
            found[i] = one.clone(memory_format=torch.contiguous_format)
    return found


def _device(encoder: Encoder) -> torch.device:
    return next(encoder.parameters()).device
