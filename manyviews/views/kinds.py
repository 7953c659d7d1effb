"""Kinds of view of pixels. Frozen settings that print, compare and save as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import UserError, require
from manyviews.types import Batch, Canvases
from manyviews.views import color as ops
from manyviews.views.distort import Color, Distorting, draw_distortion
from manyviews.views.draws import Draws
from manyviews.views.geometry import crop_resize, draw_blocks, draw_boxes
from manyviews.views.regions import erase, inside
from manyviews.views.view import Range, Values, View

Paint = Callable[[Tensor, slice], Tensor]
"""Changes the colors of `n c h w` in [0, 1], perhaps in place: these rows of the batch."""

# Values of a view handled at once: on a CPU what stays in its cache from one operation to the next, elsewhere what
# keeps the temporary copies to about a gigabyte.
_VALUES = {"cpu": 3 * 2**17}
_VALUES_ELSEWHERE = 2**25


@dataclass(frozen=True)
class Crop(View):
    """A crop of the image with changed colors: how large, how much of the image, in which colors.

    A new spatial transformation is a subclass that overrides one of the hooks below. Each hook gets the draws of one
    view, and does its work on the whole batch.

    Attributes:
        count: views of each image.
        size: height and width in pixels.
        area: range of the crop's fraction of the image.
        color: settings for all views, one for each of them, or None to leave the colors alone.
        ratio: range of the crop's width / height.
        flip: probability of mirroring left and right.

    Raises:
        UserError: a value out of its range.
    """

    size: int = 224
    area: Range = (0.08, 1.0)
    color: Color | tuple[Color, ...] | None = Color()
    ratio: Range = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size >= 1, self, "size", "1 or more")
        require(0 < self.area[0] <= self.area[1] <= 1, self, "area", "an increasing pair in (0, 1]")
        require(0 < self.ratio[0] <= self.ratio[1], self, "ratio", "a positive and increasing pair")
        require(0 <= self.flip <= 1, self, "flip", "between 0 and 1")
        if isinstance(self.color, tuple) and len(self.color) != self.count:
            raise UserError(
                f"{type(self).__name__} has {self.count} views and {len(self.color)} colors: "
                "give one color for each view, or one for all."
            )
        for color in self.color if isinstance(self.color, tuple) else (self.color,):
            if color and color.blur and color.kernel_at(self.size) // 2 >= self.size:
                raise UserError(
                    f"{type(self).__name__} of {self.size} pixels is too small for a blur of "
                    f"{color.kernel_at(self.size)}: set a smaller `kernel`, or `blur=0`."
                )

    @property
    def resolution(self) -> int:
        """The short side of an image, in pixels, of which crops are as sharp as of a larger one."""
        return sharp(self.size, self.area)

    @property
    def is_plain(self) -> bool:
        """Whether a view is a crop with changed colors and nothing else: each pixel has a place on the image."""
        hooks = ("before", "holes", "transform")
        return all(getattr(type(self), hook) is getattr(Crop, hook) for hook in hooks)

    @property
    def of_rgb(self) -> tuple[str, ...]:
        """Its changes that only images of three channels have."""
        colors = [c for c in map(self.color_of, range(self.count)) if c is not None]
        names = {
            "saturation": any(c.jitter and c.saturation for c in colors),
            "hue": any(c.jitter and c.hue for c in colors),
            "grayscale": any(c.gray for c in colors),
        }
        return tuple(name for name, there in names.items() if there)

    def color_of(self, i: int) -> Color | None:
        """The color settings of view `i`."""
        return self.color[i] if isinstance(self.color, tuple) else self.color

    def before(self, batch: Batch, draws: Draws, mean: Values) -> Canvases:
        """The canvases as crops are taken from them: here as they are."""
        return batch.canvases

    def crop(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """Boxes in canvas pixels (int64, `b 4`: top, left, height, width), and whether to mirror them (bool, `b`)."""
        boxes = draw_boxes(draws.at("crop"), batch.extent, self.area, self.ratio)
        return boxes, draws.bernoulli("flip", self.flip)

    def holes(self, batch: Batch, draws: Draws) -> Tensor | None:
        """Rectangles of the views, int64 `b 4`, that get the mean color before colors change: here none."""
        return None

    def paint(self, i: int, draws: Draws) -> Paint | None:
        """What is done to the colors of view `i`: here what `color` says."""
        color = self.color_of(i)
        if color is None:
            return None
        return Distorting(color, draw_distortion(draws.at("color"), color))

    def transform(self, x: Tensor, draws: Draws) -> Tensor:
        """Done to the normalized views, `b c size size`, perhaps in place: here nothing."""
        return x

    @torch.no_grad()
    def make(self, batch: Batch, i: int, draws: Draws, mean: Values, std: Values) -> Tensor:
        """View `i` of every image: float32, `b c size size`, channels last in memory, normalized."""
        device, b = batch.index.device, len(batch)
        # A method may ask for a view under autocast: its matrix products would lose the pixels' last bits.
        with torch.autocast(device.type, enabled=False):
            canvases = self.before(batch, draws, mean)
            boxes, flip = self.crop(batch, draws)
            holes, paint = self.holes(batch, draws), self.paint(i, draws)
            compiles = device.type == "cpu" and canvases.pool.dtype == torch.uint8
            if compiles:
                from manyviews.views import compiled  # Numba takes half a second to import

                if paint is None or isinstance(paint, Distorting):
                    made = compiled.render(canvases, boxes, flip, self.size, mean, std, paint, holes)
                    return self.transform(made, draws)
            c, (h, w) = canvases.channels, canvases.room
            out = torch.empty(b, c, self.size, self.size, device=device, memory_format=torch.channels_last)
            values = _VALUES.get(device.type, _VALUES_ELSEWHERE)
            parts = max(1, math.ceil(c * max(self.size**2, 1 if compiles else h * w) * b / values))
            # Parts of one size, where the batch has a divisor that is not far: each size is compiled for.
            step = max(1, next((b // p for p in range(parts, 2 * parts + 1) if b % p == 0), math.ceil(b / parts)))
            for start in range(0, b, step):
                rows = slice(start, start + step)
                if compiles:
                    x = compiled.crop(canvases[rows], boxes[rows], self.size, flip[rows])
                else:
                    there = canvases[rows].cut(boxes[rows], canvases.room)
                    x = crop_resize(there, F.pad(boxes[rows][:, 2:], (2, 0)), self.size, flip[rows])
                if holes is not None:
                    erase(x, holes[rows], mean)
                if paint:
                    x = paint(x, rows)
                ops.normalize(x, mean, std, out[rows])
            return self.transform(out, draws)


@dataclass(frozen=True)
class Global(Crop):
    """A large crop. Only global views are targets."""

    count: int = 2
    size: int = 224
    area: Range = (0.08, 1.0)


@dataclass(frozen=True)
class Local(Crop):
    """A small crop at low resolution (SwAV's multi-crop; MULAN's areas)."""

    count: int = 4
    size: int = 96
    area: Range = (0.08, 0.25)


@dataclass(frozen=True)
class Cutout(Crop):
    """A large crop with a hole of the mean color (MULAN, appendix A; DeVries and Taylor 2017).

    The order is crop, flip, colors, hole; with `cut="first"` it is crop, flip, hole, colors. A hole that is cut last is
    exactly zero after normalization and has sharp edges. One that is cut first is jittered, solarized and blurred with
    the view: its color varies around the mean, and its edge may be soft.

    MULAN does not name the order, and its authors cut first, as its recipes do. Its text takes the hole's area "of the
    original image", its authors' code of the crop. Of ten tries the first that fits into the view is taken; if none
    does, a central square whose share of the view is the mean of `hole`.

    Attributes:
        hole: range of the hole's fraction of what `hole_of` names.
        hole_ratio: range of the hole's width / height in the view, of which the logarithm is uniform.
        symmetric: predict another view with a hole instead of a complete one, which collapses (MULAN, section 4.2).
        cut: whether the hole is cut "first", before the colors change, or "last", after normalization.
        hole_of: whether `hole` is a fraction of the "view" or of the whole "image". In a small crop the latter fills
            most of the view, and a conditioned predictor cannot be told of it.
    """

    count: int = 1
    size: int = 224
    area: Range = (0.25, 1.0)
    hole: Range = (0.2, 0.4)
    hole_ratio: Range = (3 / 4, 4 / 3)
    symmetric: bool = False
    cut: Literal["first", "last"] = "last"
    hole_of: Literal["view", "image"] = "view"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.hole[0] <= self.hole[1] <= 1, self, "hole", "an increasing pair in (0, 1]")
        require(0 < self.hole_ratio[0] <= self.hole_ratio[1], self, "hole_ratio", "a positive and increasing pair")
        require(self.count > 1 or not self.symmetric, self, "count", "2 or more when symmetric")
        require(self.cut in ("first", "last"), self, "cut", '"first" or "last"')
        require(self.hole_of in ("view", "image"), self, "hole_of", '"view" or "image"')

    @property
    def is_plain(self) -> bool:
        return False  # pixels of the hole have no place on the image

    @property
    def target(self) -> str:
        return self.name if self.symmetric else "global"

    def holes(self, batch: Batch, draws: Draws) -> Tensor | None:
        return self._boxes(draws, batch) if self.cut == "first" else None

    @torch.no_grad()
    def make(self, batch: Batch, i: int, draws: Draws, mean: Values, std: Values) -> Tensor:
        x = super().make(batch, i, draws, mean, std)
        return erase(x, self._boxes(draws, batch)) if self.cut == "last" else x

    def parameters(self, draws: Draws) -> Tensor:
        """The hole's center, height and width in units of the view, the center's from the middle."""
        if self.hole_of == "image":
            raise UserError(
                f"A conditioned predictor cannot be told of holes that are a fraction of the image: set {self.name}'s "
                'hole_of to "view".'
            )
        return _centered(self._boxes(draws), self.size)

    def _boxes(self, draws: Draws, batch: Batch | None = None) -> Tensor:
        times = None
        if batch is not None and self.hole_of == "image":
            boxes, _ = self.crop(batch, draws)
            times = batch.extent.to(boxes.device).prod(1) / boxes[:, 2:].prod(1)
        return draw_blocks(draws.at("hole"), self.size, self.hole, self.hole_ratio, times)


@dataclass(frozen=True)
class Rotation(Crop):
    """A large crop of the image turned by a random angle (MULAN, appendix F).

    The paper names no angles; here all. What comes from outside the image has the mean color.

    Attributes:
        degrees: range of the angle, counter-clockwise.
    """

    count: int = 1
    size: int = 224
    area: Range = (0.25, 1.0)
    degrees: Range = (-180.0, 180.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.degrees[0] <= self.degrees[1], self, "degrees", "an increasing pair")

    def before(self, batch: Batch, draws: Draws, mean: Values) -> Canvases:
        canvases = batch.canvases
        cos, sin = self.parameters(draws).unbind(1)
        # Made on the device: a copy from the host would wait for all that was asked of it.
        fill = torch.cat([cos.new_full((1,), 255 * m) for m in mean])[:, None, None]
        # In parts: float copies of all canvases of a large batch would be what the step's memory is spent on.
        step = max(1, _VALUES_ELSEWHERE // (canvases.channels * math.prod(canvases.room)))
        parts = (slice(start, start + step) for start in range(0, len(cos), step))
        turned = [_turn(canvases[part], cos[part], sin[part], fill) for part in parts]
        return Canvases.dense(torch.cat(turned), canvases.extent)

    def parameters(self, draws: Draws) -> Tensor:
        """The angle's cosine and sine."""
        angle = torch.deg2rad(draws.uniform("angle", 1, *self.degrees))
        return torch.cat([angle.cos(), angle.sin()], 1)


@dataclass(frozen=True)
class Shuffle(Crop):
    """A large crop cut into a grid of patches, which change places at random (MULAN, appendix F).

    Attributes:
        grid: patches in a row and in a column; they tile the view.
    """

    count: int = 1
    size: int = 224
    area: Range = (0.25, 1.0)
    grid: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.grid >= 1 and self.size % self.grid == 0, self, "grid", f"a divisor of {self.size}")

    def transform(self, x: Tensor, draws: Draws) -> Tensor:
        b, c, h, _ = x.shape
        g, p = self.grid, h // self.grid
        patches = x.view(b, c, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(b, g * g, -1)
        patches = patches.gather(1, self._order(draws)[:, :, None].expand_as(patches))
        moved = patches.view(b, g, g, c, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, h)
        return moved.contiguous(memory_format=torch.channels_last)

    def parameters(self, draws: Draws) -> Tensor:
        """For each place, the row and column where its patch came from, from -1 to 1."""
        order = self._order(draws)
        where = torch.stack([order // self.grid, order % self.grid], 2).flatten(1)
        return 2 * where.float() / max(1, self.grid - 1) - 1

    def _order(self, draws: Draws) -> Tensor:
        return draws.permutation("patches", self.grid**2)


@dataclass(frozen=True)
class CutMix(Crop):
    """A large crop with a rectangle from another image; its target is the mean of both, by their shares of the view.

    MULAN, appendix F, after Yun et al. 2019: the rectangle's share is uniform in [0, 1], its sides are in proportion to
    the view's, its center is anywhere, and what sticks out is cut off. Images mix with their neighbors in the batch,
    the first with the second, the third with the fourth, so that views depend on the batch's order, alone of all kinds.
    """

    count: int = 1
    size: int = 224
    area: Range = (0.25, 1.0)

    def transform(self, x: Tensor, draws: Draws) -> Tensor:
        return torch.where(inside(self._boxes(draws), self.size, self.size), x[neighbor(x)], x)

    def parameters(self, draws: Draws) -> Tensor:
        """The rectangle's center, height and width in units of the view, the center's from the middle."""
        return _centered(self._boxes(draws), self.size)

    def blend(self, targets: Tensor, draws: Draws) -> Tensor:
        share = self._boxes(draws)[:, 2:].prod(1, keepdim=True) / self.size**2
        return torch.lerp(targets, targets[neighbor(targets)], share.to(targets.dtype))

    def _boxes(self, draws: Draws) -> Tensor:
        side = (draws.uniform("share", 1).sqrt() * self.size).round().long()
        first = (draws.uniform("center", 2) * self.size).long() - side // 2
        ends = (first + side).clamp(max=self.size)
        first = first.clamp(min=0)
        return torch.cat([first, ends - first], 1)


def sharp(size: int, area: Range) -> int:
    """The short side of an image of which crops of an area are as sharp, at `size` pixels, as of a larger image.

    The smallest is not enlarged, and one of the mean area shrinks to half: then a crop from a canvas that shrank before
    keeps 95 % of its gradients' energy (benchmarks/sharpness.py).
    """
    return math.ceil(max(size / math.sqrt(area[0]), 2 * size / math.sqrt((area[0] + area[1]) / 2)))


def resolution(kinds: Iterable[View]) -> int:
    """The short side of an image, in pixels, that the largest view can use; 1 if no view is a crop."""
    return max((kind.resolution for kind in kinds if isinstance(kind, Crop)), default=1)


def _centered(boxes: Tensor, side: int) -> Tensor:
    """Boxes (top, left, height, width) in pixels as center, from the middle, and size in units of `side`."""
    corner, size = boxes.float().div(side).chunk(2, 1)
    return torch.cat([corner + size / 2 - 0.5, size], 1)


def neighbor(x: Tensor) -> Tensor:
    """Row 1 for row 0 and 0 for 1, 3 for 2 and 2 for 3; the last of an odd number of rows for itself."""
    rows = torch.arange(len(x), device=x.device)
    return torch.where((rows ^ 1) < len(x), rows ^ 1, rows)


def _turn(canvases: Canvases, cos: Tensor, sin: Tensor, fill: Tensor) -> Tensor:
    """Images turned about their centers, counter-clockwise and bilinearly, on a color: uint8 `b c` and their room."""
    h, w = canvases.room
    pixels = canvases.padded() - fill
    tall, wide = canvases.extent[:, :, None].unbind(1)
    y, x = torch.arange(h, device=fill.device), torch.arange(w, device=fill.device)
    pixels *= ((y < tall)[:, None, :, None]) & ((x < wide)[:, None, None])
    # The map of the room, from -1 to 1 on both axes, that turns each image about the center of its own corner of it.
    down, right = 1 - tall[:, 0] / h, 1 - wide[:, 0] / w
    rows = (
        torch.stack([cos, -sin * (h / w), cos * right - sin * (h / w) * down - right], 1),
        torch.stack([sin * (w / h), cos, sin * (w / h) * right + cos * down - down], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    found = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return found.add_(fill).round_().clamp_(0, 255).byte()
