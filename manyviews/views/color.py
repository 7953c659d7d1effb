"""Photometric changes with parameters of each image's own, as in torchvision's ColorJitter and its relatives.

All take and return float32 `b 3 h w` in [0, 1], and a factor for each image, `b`.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RED, _GREEN, _BLUE = 0.2989, 0.587, 0.114  # torchvision's luma, which adds up to 0.9999
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def _luma(x: Tensor) -> Tensor:
    """`b 3 h w` to `b 1 h w`."""
    return (x[:, :1] * _RED).add_(x[:, 1:2], alpha=_GREEN).add_(x[:, 2:], alpha=_BLUE)


def _blend(base: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """`factor x + (1 - factor) base`, cut to [0, 1]; exactly `x` where the factor is 1."""
    return torch.lerp(base, x, factor[:, None, None, None]).clamp_(0, 1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """0 gives black, 1 the image, 2 twice its brightness."""
    return _blend(x.new_zeros(()), x, factor)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """0 gives its mean gray, 1 the image."""
    return _blend(_luma(x).mean((1, 2, 3), keepdim=True), x, factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """0 gives the gray image, 1 the image."""
    return _blend(_luma(x), x, factor)


def adjust_hue(x: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by a factor in [-0.5, 0.5] of the color circle, keeping HSV's saturation and value."""
    r, g, b = x.unbind(1)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma = high - low
    # Hue in sixths of the circle, from the largest channel: 0 is red, 2 green, 4 blue.
    green, blue = (b - r).add_(chroma, alpha=2), (r - g).add_(chroma, alpha=4)
    hue = torch.where(high == r, g - b, torch.where(high == g, green, blue))
    hue.div_(chroma.clamp(min=torch.finfo(x.dtype).tiny))  # gray has no hue; any will do
    hue.add_(6 * factor[:, None, None]).remainder_(6)
    # Each channel is at its highest within one sixth of its own hue and at its lowest beyond two.
    out = torch.empty_like(x)
    for c, (center, sign, offset) in enumerate(((3, 1, -1), (2, -1, 2), (4, -1, 2))):
        share = (hue - center).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(low, chroma, share, out=out[:, c])
    return out


def jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, in an order of each image's own.

    Args:
        x: float32, `b 3 h w`, in [0, 1].
        factors: float32, `b 4`, of brightness, contrast, saturation, hue.
        order: int64, `b 4`, permutations of these four.

    Brightness, contrast and saturation are all blends with something gray, so one pass does for each image the one that
    is its turn. Hue is done once for all: first every image goes through what comes before its hue, at most three
    blends, then after hue through the rest, with a blend of factor 1 where it has nothing to do.
    """
    turn = torch.arange(4, device=x.device)
    hue = (order == _HUE).int().argmax(1, keepdim=True)
    ordered = factors.gather(1, order)
    contrast, saturation = (order == _CONTRAST).float(), (order == _SATURATION).float()

    def blends(x: Tensor, active: Tensor, turns: range) -> Tensor:
        factor = torch.where(active, ordered, 1)
        for k in turns:
            luma = _luma(x)
            mean = luma.mean((1, 2, 3)) * contrast[:, k]
            base = luma.mul_(saturation[:, k, None, None, None]).add_(mean[:, None, None, None])
            x = _blend(base, x, factor[:, k])
        return x

    x = blends(x, turn < hue, range(3))
    x = adjust_hue(x, factors[:, _HUE])
    return blends(x, turn > hue, range(1, 4))


def grayscale(x: Tensor) -> Tensor:
    """The luma in all three channels."""
    return _luma(x).repeat(1, 3, 1, 1)  # in memory of its own: what comes next may write to it


def solarize(x: Tensor, threshold: float) -> Tensor:
    """Invert all values of at least `threshold`."""
    return torch.where(x >= threshold, 1 - x, x)


def normalize(x: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float], out: Tensor) -> Tensor:
    """`(x - mean) / std` for each channel, written to `out` of any memory format."""
    for c, (m, s) in enumerate(zip(mean, std, strict=True)):
        torch.add(torch.tensor(-m / s), x[:, c], alpha=1 / s, out=out[:, c])
    return out
