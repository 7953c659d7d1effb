"""Photometric changes with parameters of each image's own, as in torchvision's ColorJitter and its relatives.

All take and return float32 `b c h w` in [0, 1], and a factor for each image, `b`. Saturation, hue and the gray image
are those of RGB: images of other channels than three pass through them unchanged, and their contrast is each channel's
own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manyviews.views.draws import Draws

_RED, _GREEN, _BLUE = 0.2989, 0.587, 0.114  # torchvision's luma, which adds up to 0.9999
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def _luma(x: Tensor) -> Tensor:
    """`b 3 h w` to `b 1 h w`. Other channels than RGB have no gray in common: each is its own, in new memory."""
    if x.shape[1] != 3:
        return x.clone()
    return (x[:, :1] * _RED).add_(x[:, 1:2], alpha=_GREEN).add_(x[:, 2:], alpha=_BLUE)


def _blend(base: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """`factor x + (1 - factor) base`, cut to [0, 1]; exactly `x` where the factor is 1."""
    return torch.lerp(base, x, factor[:, None, None, None]).clamp_(0, 1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """0 gives black, 1 the image, 2 twice its brightness."""
    return _blend(x.new_zeros(()), x, factor)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """0 gives its mean gray, 1 the image."""
    return _blend(_luma(x).mean((2, 3), keepdim=True), x, factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """0 gives the gray image, 1 the image."""
    return _blend(_luma(x), x, factor)


def adjust_hue(x: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by a factor in [-0.5, 0.5] of the color circle, keeping HSV's saturation and value."""
    if x.shape[1] != 3:
        return x
    r, g, b = x.unbind(1)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma = high - low
    # Hue in sixths of the circle, from the largest channel: 0 is red, 2 green, 4 blue.
    green, blue = (b - r).add_(chroma, alpha=2), (r - g).add_(chroma, alpha=4)
    hue = torch.where(high == r, g - b, torch.where(high == g, green, blue))
    hue.div_(chroma.clamp(min=torch.finfo(x.dtype).tiny))  # gray has no hue; any will do
    hue.add_(6 * factor[:, None, None]).remainder_(6)
    # Each channel is at its highest within one sixth of its own hue and at its lowest beyond two.
    turned = []
    for center, sign, offset in ((3, 1, -1), (2, -1, 2), (4, -1, 2)):
        share = (hue - center).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        turned.append(torch.addcmul(low, chroma, share))
    return torch.stack(turned, 1)


def jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, in an order of each image's own.

    Args:
        x: float32, `b c h w`, in [0, 1].
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
            mean = luma.mean((2, 3), keepdim=True) * contrast[:, k, None, None, None]
            base = luma.mul_(saturation[:, k, None, None, None]).add_(mean)
            x = _blend(base, x, factor[:, k])
        return x

    x = blends(x, turn < hue, range(3))
    x = adjust_hue(x, factors[:, _HUE])
    return blends(x, turn > hue, range(1, 4))


def grayscale(x: Tensor) -> Tensor:
    """The luma in all three channels; other channels than RGB as they are."""
    # In memory of its own: what comes next may write to it.
    return _luma(x).repeat(1, 3, 1, 1) if x.shape[1] == 3 else x.clone()


def solarize(x: Tensor, threshold: Tensor | float) -> Tensor:
    """Invert all values of at least `threshold`: one for each image, `b`, or one for all."""
    limit = threshold[:, None, None, None] if isinstance(threshold, Tensor) else threshold
    return torch.where(x >= limit, 1 - x, x)


def invert(x: Tensor) -> Tensor:
    """Black becomes white, and red cyan."""
    return 1 - x


def _levels(x: Tensor) -> Tensor:
    """The nearest of 256 gray levels, int64."""
    return (x * 255).round_().long()


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits`, whole numbers from 1 to 8, of each value rounded to 8 bits, as PIL does."""
    dropped = (8 - bits.long())[:, None, None, None]
    return (_levels(x) >> dropped << dropped).float().div_(255)


def equalize(x: Tensor) -> Tensor:
    """Make the histogram of each channel flat, as PIL does, of values rounded to 8 bits.

    A channel of one value, or with less than 255 pixels below its highest value, stays as it is, except for rounding.
    """
    level = _levels(x).flatten(2)
    histogram = level.new_zeros(*level.shape[:2], 256).scatter_add_(2, level, torch.ones_like(level))
    below = histogram.cumsum(2) - histogram
    # PIL's width of a gray level, in pixels: what is at the highest value does not count.
    step = below.gather(2, level.amax(2, keepdim=True)) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return table.float().div_(255).gather(2, level).view_as(x)


def autocontrast(x: Tensor) -> Tensor:
    """Stretch each channel from black to white, as PIL does with nothing cut off, but without rounding.

    A channel flatter than half a gray level stays as it is, or what resampling left in its last bits would fill it.
    """
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high - low < 0.5 / 255
    low, high = low.masked_fill(flat, 0), high.masked_fill(flat, 1)
    return (x - low).div_(high - low).clamp_(0, 1)


def gaussian_noise(x: Tensor, std: Tensor, key: Tensor) -> Tensor:
    """Add normal noise, independent for all pixels and channels, and cut to [0, 1].

    Args:
        x: float32, `b c h w`, in [0, 1].
        std: float32, `b`, standard deviations.
        key: int64, `b`: the noise is a hash of it, on every device and in every batch.
    """
    n = math.prod(x.shape[1:])
    bits = Draws(0, 0, key).bits("gaussian noise", (n + 1) // 2)
    # Box and Muller 1958: two normals of two uniforms, of 24 bits each; the first is never 0.
    first, second = (((bits >> shift) & 0xFFFFFF).float().mul_(2**-24) for shift in (40, 0))
    radius, angle = (1 - first).log_().mul_(-2).sqrt_(), second.mul_(2 * math.pi)
    noise = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :n].view_as(x)
    return torch.addcmul(x, noise, std[:, None, None, None]).clamp_(0, 1)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...], out: Tensor) -> Tensor:
    """`(x - mean) / std` for each channel, written to `out` of any memory format."""
    for c, (m, s) in enumerate(zip(mean, std, strict=True)):
        torch.add(torch.tensor(-m / s), x[:, c], alpha=1 / s, out=out[:, c])
    return out
