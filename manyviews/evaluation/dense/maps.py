"""Feature maps of any encoder: one for linear layers and nearest neighbors, or several for a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from manyviews.backbones import patch_features
from manyviews.backbones.encoder import Encoder
from manyviews.errors import UserError
from manyviews.evaluation.features import frozen, normalize

MOST = 512
"""Short side in pixels up to which images are looked at in their own size, when no other one is asked for."""

# Height and width of images that any network of strides up to 64, and any of patches of 14 pixels, can look at. They
# are not square, so that networks made for images of one size fail here and not in the middle of an evaluation.
_PROBES = ((256, 320), (224, 280))


class Maps(nn.Module):
    """A map of features: `b 3 h w` to `b dim h/stride w/stride`; the stride must divide the image.

    Args:
        encoder: of images of any size.
        stages: of which of the network's stages, or of a vision transformer's blocks, from the back as -1, -2, ...;
            several are brought to the finest one's size (bilinear) and put side by side. The blocks' go through the
            final norm (as in DINO). None: `Encoder.patches`, the last map.

    Attributes:
        dim: features of each place.
        stride: pixels from one place to the next.

    Raises:
        UserError: the network takes images of one size only, or has no such stages.
    """

    def __init__(self, encoder: Encoder, stages: Sequence[int] | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self._stages: list[int] | None = None
        strides = [stride for _, stride in stage_shapes(encoder)]
        if stages is None:
            self.stride = strides[-1]
        else:
            count = len(strides)
            if not stages or not all(-count <= k < count for k in stages):
                raise UserError(f"{encoder.name} has {count} stages, from -{count} to -1, and no {tuple(stages)}.")
            self._stages = sorted(k % count for k in set(stages))
            self.stride = min(strides[k] for k in self._stages)
        side = 4 * strides[-1]
        with frozen(encoder):
            self.dim: int = self(torch.zeros(1, 3, side, side, device=_device(encoder))).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2] // self.stride, x.shape[-1] // self.stride
        if self._stages is None:
            return patch_features(self.encoder, x).transpose(1, 2).unflatten(2, (h, w))
        found = intermediates(self.encoder, x, self._stages)
        sized = [m if m.shape[-2:] == (h, w) else F.interpolate(m, size=(h, w), mode="bilinear") for m in found]
        return torch.cat(sized, 1)


def intermediates(encoder: Encoder, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
    """Maps of some stages, or all, the first stage first: `b c h' w'`.

    Raises:
        UserError: the network cannot give them.
    """
    model: Any = encoder.model
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"{encoder.name} cannot give the maps of its stages: {_ADVICE}.")
    # Convolutional networks have no norm that would fit all of their stages.
    norm = {"norm": True} if hasattr(model, "blocks") and hasattr(model, "norm") else {}
    wanted = None if indices is None else list(indices)
    return model.forward_intermediates(
        x, indices=wanted, stop_early=True, intermediates_only=True, output_fmt="NCHW", **norm
    )


def stage_shapes(encoder: Encoder) -> list[tuple[int, int]]:
    """Channels and stride in pixels of the map of every stage, the first stage first; found out by trying.

    Raises:
        UserError: the network takes images of one size only, or its maps do not divide the image evenly.
    """
    failure = ""
    for h, w in _PROBES:
        try:
            with frozen(encoder):
                found = intermediates(encoder, torch.zeros(1, 3, h, w, device=_device(encoder)))
        except (
            AssertionError,
            RuntimeError,
            ValueError,
            UserError,
        ) as e:  # what networks say of a size
            failure = str(e).rstrip(".").splitlines()[0] if str(e) else type(e).__name__
            continue
        if any(h % m.shape[-2] or w % m.shape[-1] or h // m.shape[-2] != w // m.shape[-1] for m in found):
            raise UserError(f"The maps of {encoder.name} do not divide its images evenly: {_ADVICE}.")
        return [(m.shape[1], h // m.shape[-2]) for m in found]
    raise UserError(f"{encoder.name} cannot look at images of any size ({failure}): {_ADVICE}.")


_ADVICE = "choose a ResNet, a ConvNeXt or a plain vision transformer"


def look(image: Image.Image, short: int | None, stride: int) -> np.ndarray:
    """The whole image as an encoder is shown it: uint8 `3 h w`, both sides the nearest multiples of the stride.

    Bicubic and antialiased. The short side is about `short` pixels, or if None, as it is but at most `MOST`.
    """
    least = min(image.size)
    scale = (min(least, MOST) if short is None else short) / least
    width, height = (max(1, round(side * scale / stride)) * stride for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def encode_all(
    maps: Maps, images: Sequence[np.ndarray], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> list[Tensor]:
    """Float32 `dim h' w'` on `device`, of each image (uint8 `3 h w`); those of one size go through together."""
    found: list[Tensor] = [torch.empty(0)] * len(images)
    shapes = [image.shape for image in images]
    for shape in dict.fromkeys(shapes):
        rows = [i for i, s in enumerate(shapes) if s == shape]
        pixels = torch.from_numpy(np.stack([images[i] for i in rows])).to(device)
        with frozen(maps):
            some = maps(normalize(pixels, mean, std)).float()
        for i, one in zip(rows, some, strict=True):
            # Cloned outside inference mode: a tensor that probes can train on, and that does not hold the others.
            found[i] = one.clone(memory_format=torch.contiguous_format)
    return found


def _device(encoder: Encoder) -> torch.device:
    return next(encoder.parameters()).device
