"""What people do to pictures that they copy, as single augmentations: overlays, frames, recompression, quarter turns.

SSCD (Pizzi et al. 2022, section 4.3) overlays letters and emoji of AugLy. Here both are drawn: glyphs are random dots,
and stickers are striped ellipses, so that no fonts or pictures are needed and a batch is made at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import require
from manyviews.views.augmentations import (
    Augmentation,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    ResizedCrop,
    Rotate,
)
from manyviews.views.distort import Range
from manyviews.views.draws import Draws
from manyviews.views.regions import inside

_TALL, _WIDE, _GLYPHS = 7, 6, 12  # dots of a glyph, of which the last column and row are empty, and glyphs in a line


@dataclass(frozen=True)
class _Overlay(Augmentation):
    """What is laid over a part of the image.

    Attributes:
        size: range of its height's fraction of the image's.
        opacity: range of its weight.
    """

    p: float = 0.1
    size: Range = (0.1, 0.35)
    opacity: Range = (0.6, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range("size", 0, 1)
        self._require_range("opacity", 0, 1)

    def _box(self, draws: Draws, size: int, shape: Range) -> Tensor:
        """Top, left, height and width in pixels, all of it inside; `shape`: range of the width / height."""
        tall = draws.uniform("size", 1, *self.size) * size
        wide = (tall * draws.uniform("shape", 1, *shape)).clamp(max=size)
        corner = draws.uniform("place", 2) * (size - torch.cat([tall, wide], 1))
        return torch.cat([corner, tall, wide], 1)

    def _lay(self, x: Tensor, over: Tensor, opacity: Tensor, color: Tensor) -> Tensor:
        """`over`: bool `b 1 h w`; color: `b 3`, of which images of other channels take the first for all."""
        color = color if x.shape[1] == 3 else color[:, :1]
        weight = over * opacity[:, None, None, None]
        return torch.lerp(x, color[:, :, None, None], weight)


@dataclass(frozen=True)
class Lettering(_Overlay):
    """A line of twelve glyphs of random dots, in one color.

    Parameters: top, left, height and width in pixels, opacity, color, and a key of 24 bits for the dots.
    """

    size: Range = (0.06, 0.2)

    def draw(self, draws: Draws, size: int) -> Tensor:
        box = self._box(draws, size, (3.0, _GLYPHS * _WIDE / _TALL))
        more = draws.uniform("opacity", 1, *self.opacity), draws.uniform("color", 3), draws.uniform("key", 1, 0, 2**24)
        return torch.cat([box, *more], 1)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        box, opacity, color, key = parameters.split([4, 1, 3, 1], 1)
        n = _TALL * _WIDE * _GLYPHS
        dots = Draws(0, 0, key[:, 0].long()).uniform("dots", n).view(-1, _TALL, _WIDE * _GLYPHS) < 0.5
        column = torch.arange(_WIDE * _GLYPHS, device=x.device)
        dots[:, -1] = False
        dots &= column % _WIDE != _WIDE - 1
        v, u = _within(box, *x.shape[-2:])
        there = (v >= 0) & (v < 1) & (u >= 0) & (u < 1)
        row, column = (v * _TALL).long().clamp(0, _TALL - 1), (u * _WIDE * _GLYPHS).long()
        place = row * _WIDE * _GLYPHS + column.clamp(0, _WIDE * _GLYPHS - 1)
        over = dots.flatten(1).gather(1, place.flatten(1)).view_as(there) & there
        return self._lay(x, over[:, None], opacity[:, 0], color)


@dataclass(frozen=True)
class Sticker(_Overlay):
    """An ellipse with stripes of two colors, as a logo or an emoji.

    Parameters: top, left, height and width in pixels, opacity, two colors, the stripes' angle, and their number.
    """

    def draw(self, draws: Draws, size: int) -> Tensor:
        box, opacity = self._box(draws, size, (0.7, 1.5)), draws.uniform("opacity", 1, *self.opacity)
        stripes = draws.uniform("angle", 1, 0, math.pi), draws.uniform("stripes", 1, 0.5, 3)
        return torch.cat([box, opacity, draws.uniform("color", 6), *stripes], 1)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        box, opacity, first, second, angle, stripes = parameters.split([4, 1, 3, 3, 1, 1], 1)
        v, u = (2 * place - 1 for place in _within(box, *x.shape[-2:]))
        there = u.square() + v.square() <= 1
        across = u * angle.cos()[:, :, None] + v * angle.sin()[:, :, None]
        striped = there & ((math.pi * stripes[:, :, None] * across).cos() > 0)
        x = self._lay(x, there[:, None], opacity[:, 0], first)
        return self._lay(x, striped[:, None], opacity[:, 0], second)


def _within(box: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each pixel's center lies in a box, from 0 to 1 if inside, down and across: float32, `b h w` each."""
    top, left, tall, wide = box[:, :, None].unbind(1)
    y = torch.arange(height, device=box.device) + 0.5
    x = torch.arange(width, device=box.device) + 0.5
    v, u = (y - top) / tall, (x - left) / wide
    return v[:, :, None].expand(-1, -1, width), u[:, None].expand(-1, height, -1)


@dataclass(frozen=True)
class Border(Augmentation):
    """The image made smaller, in a frame of one color whose four sides have widths of their own.

    Attributes:
        width: range of a side's fraction of the image's.

    Parameters: top, left, height and width of the image inside in pixels, and the frame's color.
    """

    p: float = 0.1
    width: Range = (0.0, 0.15)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range("width", 0, 0.4)

    def draw(self, draws: Draws, size: int) -> Tensor:
        sides = (draws.uniform("width", 4, *self.width) * size).round()
        first, last = sides.chunk(2, 1)
        return torch.cat([first, size - first - last, draws.uniform("color", 3)], 1)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        box, color = parameters.split([4, 3], 1)
        v, u = _within(box, *x.shape[-2:])
        grid = torch.stack([2 * u - 1, 2 * v - 1], 3)
        small = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        color = color if x.shape[1] == 3 else color[:, :1]
        return torch.where(inside(box.long(), *x.shape[-2:]), small, color[:, :, None, None])


@dataclass(frozen=True)
class QuarterTurn(Augmentation):
    """Parameters: how many quarter turns counter-clockwise, 1 to 3."""

    p: float = 0.1

    def draw(self, draws: Draws, size: int) -> Tensor:
        return 1 + draws.uniform("turns", 1, 0, 3).floor()

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        turns = parameters[:, 0, None, None, None]
        half, quarter = x.rot90(2, (2, 3)), x.rot90(1, (2, 3))
        return torch.where(turns == 2, half, torch.where(turns == 1, quarter, x.rot90(3, (2, 3))))


# The standard's example tables (ITU-T T.81, annex K), which libjpeg scales by quality.
_LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 32),
)


@dataclass(frozen=True)
class Jpeg(Augmentation):
    """The image as a JPEG file gives it back, without subsampled colors.

    Attributes:
        quality: range of libjpeg's quality, whole numbers from 1 to 100, both ends included.

    Parameters: the quality.
    """

    p: float = 0.2
    quality: tuple[int, int] = (30, 90)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(isinstance(n, int) for n in self.quality), self, "quality", "whole numbers")
        self._require_range("quality", 1, 100)

    def draw(self, draws: Draws, size: int) -> Tensor:
        low, high = self.quality
        return low + draws.uniform("quality", 1, 0, high - low + 1).floor()

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return jpeg(x, parameters[:, 0])


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Each image quantized as by libjpeg at a quality of its own, without subsampling.

    Args:
        x: float32, `b c h w`, in [0, 1]; channels other than RGB are quantized as luma, each by itself.
        quality: float32, `b`, from 1 to 100.
    """
    h, w = x.shape[-2:]
    color = x.shape[1] == 3
    y = F.pad((x * 255).round_(), (0, -w % 8, 0, -h % 8), mode="replicate")
    if color:
        # JFIF's YCbCr.
        r, g, b = y.unbind(1)
        luma = 0.299 * r + 0.587 * g + 0.114 * b
        y = torch.stack([luma, 128 + (b - luma) / 1.772, 128 + (r - luma) / 1.402], 1).round_()
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor()
    tables = torch.tensor([_LUMA, _CHROMA, _CHROMA] if color else [_LUMA] * x.shape[1], device=x.device).float()
    tables = ((tables * scale[:, None, None] + 50) / 100).floor().clamp(1, 255).view(len(x), -1, 1, 1, 8, 8)
    blocks = (y - 128).unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)
    basis = _cosines(x.device)
    waves = basis @ blocks @ basis.T
    blocks = basis.T @ ((waves / tables).round_() * tables) @ basis
    y = (blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3) + 128).round_().clamp_(0, 255)[..., :h, :w]
    if color:
        luma, blue, red = y[:, 0], y[:, 1] - 128, y[:, 2] - 128
        r, b = luma + 1.402 * red, luma + 1.772 * blue
        y = torch.stack([r, (luma - 0.299 * r - 0.114 * b) / 0.587, b], 1)
    return y.round_().clamp_(0, 255).div_(255)


def _cosines(device: torch.device) -> Tensor:
    """The orthonormal transform of 8 values, `8 8`."""
    k = torch.arange(8, device=device)
    found = (math.pi / 8 * (k + 0.5) * k[:, None]).cos() / 2
    return torch.cat([found[:1] / math.sqrt(2), found[1:]])


# SSCD's advanced augmentations, with the crops and colors of SimCLR. Probabilities of overlays, frames and turns are
# ours.
COPIED = (
    ResizedCrop(p=1.0, area=(0.08, 1.0)),
    HorizontalFlip(),
    ColorJitter(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
    Grayscale(),
    GaussianBlur(),
    QuarterTurn(p=0.05),
    Rotate(p=0.05),
    Lettering(),
    Sticker(),
    Border(),
    Jpeg(),
)
