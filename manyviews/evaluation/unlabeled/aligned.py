"""A second look at two pictures: whether they are one picture, cropped, scaled, compressed, brightened or marked.

The second picture is stretched and shifted until it lies on the first (Lucas and Kanade 1981). Then fine structure is
compared in small windows: its correlation in the window at the lower quartile. Look-alikes share outlines, so those
count in few windows; a mark covers few. Colors are compared last, up to brightness.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from manyviews.data.decode import Picture

SIDE = 64
"""Side of the pictures that are compared, in pixels."""

SAME = 0.6
"""Likeness from which two pictures are one: see `docs/results.md`."""

_LEVELS = ((16, 8), (32, 6), (SIDE, 3))  # side at which pictures are aligned, and steps of Gauss and Newton there
_HOPELESS = 0.6  # correlation at the coarsest side below which no finer one is tried
_STRETCH, _SHIFT = (0.7, 1.45), 0.45  # the most that one picture is stretched, and shifted in halves of its side
_FINE = 5  # structure is what differs from the mean over so many pixels
_WINDOW, _STRIDE = 8, 4
_TINY = 1e-4  # variance that is added to that of whole pictures, so that flat ones are alike
_NOISE = (1 / 255) ** 2  # variance below which structure is noise, for values in [0, 1]
_EMPTY = 0.3  # weight below which a window shows nothing
_AT = 0.25  # the quantile over windows
_COLOR, _COVERED = 0.15, 0.8  # the largest difference of colors in that share of the windows
_PART = 1024


def small(picture: Picture) -> np.ndarray:
    """A picture of any channels and proportions as it is compared: uint8 `c SIDE SIDE`."""
    bands = np.atleast_3d(np.asarray(picture))
    shrunk = (Image.fromarray(band).resize((SIDE, SIDE), Image.Resampling.BOX) for band in _bands(bands))
    return np.stack([np.asarray(band) for band in shrunk])


def likeness(a: Tensor, b: Tensor) -> Tensor:
    """How alike two small pictures are once one lies on the other.

    Args:
        a: uint8, `p c SIDE SIDE`.
        b: uint8, `p c SIDE SIDE`: for each picture the one to compare it with.

    Returns:
        float32, `p`, in [-1, 1]; 1 for the same picture, `SAME` and more for one picture that was edited lightly.
    """
    found = [_likeness(x.float() / 255, y.float() / 255) for x, y in zip(a.split(_PART), b.split(_PART), strict=True)]
    return torch.cat(found) if found else torch.empty(0)


def _likeness(a: Tensor, b: Tensor) -> Tensor:
    found = a.new_full((len(a),), -1.0)
    start = a.new_tensor([1.0, 0.0, 1.0, 0.0]).repeat(len(a), 1)  # stretch and shift along x, then along y
    place = start
    rows = torch.arange(len(a))
    x, y = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    for side, steps in _LEVELS:
        place, alike = _align(F.adaptive_avg_pool2d(x, side), F.adaptive_avg_pool2d(y, side), place, steps)
        if side != SIDE:
            good = alike >= _HOPELESS
            found[rows[~good]] = -1.0
            rows, place, x, y = rows[good], place[good], x[good], y[good]
    if len(rows):
        first, second = a[rows], b[rows]
        # A mark may pull the pictures apart that lay on each other.
        found[rows] = torch.maximum(_structure(first, second, place), _structure(first, second, start[rows]))
    found[(a == b).flatten(1).all(1)] = 1.0  # noise lowers correlations, also with itself
    return found.clamp(-1, 1)


def _align(a: Tensor, b: Tensor, place: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Places in `b` that lie on `a`, both `p 1 s s`, and the pictures' correlation there."""
    side = a.shape[-1]
    step = 2 / side
    padded = F.pad(b, (1, 1, 1, 1), mode="replicate")
    slopes = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    stack = torch.cat([b, *(slope / (2 * step) for slope in slopes)], 1)
    u, v = _centers(side)
    damping = 1e-3 * torch.eye(4)
    alike = a.new_zeros(len(a))
    for k in range(steps + 1):
        grid, inside = _lie(place, side)
        seen, right, down = F.grid_sample(stack, grid, padding_mode="border", align_corners=False).unbind(1)
        first, own = _standard(a[:, 0], inside)
        second, scale = _standard(seen, inside)
        n = inside.sum((1, 2)).clamp(min=1)
        alike = (first * second).sum((1, 2)) / n + _TINY / (own * scale)[:, 0, 0]
        if k == steps or not len(a):
            break
        j = torch.stack([right * u, right, down * v, down], -1) / scale[..., None] * inside[..., None]
        j = (j - j.sum((1, 2), keepdim=True) / n[:, None, None, None] * inside[..., None]).flatten(1, 2)
        wrong = (second - first).flatten(1)[..., None]
        square = j.mT @ j / n[:, None, None]
        square = square + damping * (1 + square.diagonal(dim1=1, dim2=2).mean(1)[:, None, None])
        change = torch.linalg.solve(square, j.mT @ wrong / n[:, None, None])[..., 0]
        place = place - change.clamp(-0.2, 0.2)
        place[:, ::2] = place[:, ::2].clamp(*_STRETCH)
        place[:, 1::2] = place[:, 1::2].clamp(-_SHIFT, _SHIFT)
    return place, alike


def _standard(x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (`p s s`) less their mean, over their deviation, where `inside`, and this deviation (`p 1 1`)."""
    n = inside.sum((1, 2), keepdim=True).clamp(min=1)
    x = (x - (x * inside).sum((1, 2), keepdim=True) / n) * inside
    scale = ((x**2).sum((1, 2), keepdim=True) / n + _TINY).sqrt()
    return x / scale, scale


def _structure(a: Tensor, b: Tensor, place: Tensor) -> Tensor:
    """Correlation of fine structure in the window at the lower quartile: 1 for flat pictures, -1 if colors differ."""
    grid, inside = _lie(place, SIDE)
    b = F.grid_sample(b, grid, padding_mode="border", align_corners=False)

    def blurred(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, _WINDOW, _STRIDE).flatten(2)

    covered = blurred(inside[:, None])[:, 0] > 0.99
    x, y = _fine(a), _fine(b)
    mx, my = blurred(x), blurred(y)
    vx, vy, both = (
        (blurred(p * q) - mp * mq)[:, 0] for p, q, mp, mq in ((x, x, mx, mx), (y, y, my, my), (x, y, mx, my))
    )
    vx, vy = vx.clamp(min=0), vy.clamp(min=0)
    most = torch.maximum(vx, vy)
    shown = covered & (most / (most + 4 * _NOISE) > _EMPTY)
    found = (both / ((vx + _NOISE) * (vy + _NOISE)).sqrt()).masked_fill(~shown, torch.nan)
    score = found.nanquantile(_AT, dim=1).nan_to_num(1.0)
    ma, mb = blurred(a), blurred(b)
    (mean_a, scale_a), (mean_b, scale_b) = _moments(ma, covered), _moments(mb, covered)
    gain = (scale_a / scale_b).clamp(0.6, 1.6)
    apart = (ma - mean_a - gain * (mb - mean_b)).abs().amax(1).masked_fill(~covered, torch.nan)
    shift = (mean_a - mean_b).abs()[:, 0, 0]
    other = (apart.nanquantile(_COVERED, dim=1) > _COLOR) | (shift > 2 * _COLOR) | (covered.float().mean(1) < 0.4)
    return score.masked_fill(other, -1)


def _fine(x: Tensor) -> Tensor:
    """What is finer than a few pixels in pictures `p c s s`, without color: `p 1 s s`."""
    x = x.mean(1, keepdim=True)
    return x - F.avg_pool2d(F.pad(x, (_FINE // 2,) * 4, mode="replicate"), _FINE, 1)


def _moments(mean: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over the covered windows and all channels, `p 1 1`, of window means `p c w`."""
    kept = covered[:, None].float()
    n = kept.sum((1, 2), keepdim=True).clamp(min=1) * mean.shape[1]
    center = (mean * kept).sum((1, 2), keepdim=True) / n
    return center, (((mean - center) ** 2 * kept).sum((1, 2), keepdim=True) / n + _TINY).sqrt()


def _lie(place: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where to look in the second picture for each pixel of the first, `p s s 2`, and whether that is inside it."""
    u, v = _centers(side)
    x, y = place[:, 0, None, None] * u + place[:, 1, None, None], place[:, 2, None, None] * v + place[:, 3, None, None]
    return torch.stack([x, y], -1), ((x.abs() <= 1) & (y.abs() <= 1)).float()


def _centers(side: int) -> tuple[Tensor, Tensor]:
    at = (torch.arange(side) + 0.5) * 2 / side - 1
    return at.expand(side, side), at[:, None].expand(side, side)


def _bands(x: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(x[..., k]) for k in range(x.shape[2])]
