"""View types: what a method may look at. Frozen settings that print, compare and save as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from manyviews.errors import UserError, require
from manyviews.views.draws import Draws
from manyviews.views.geometry import draw_blocks
from manyviews.views.masks import erase

Range = tuple[float, float]


@dataclass(frozen=True)
class Color:
    """Photometric settings of a view, in the order in which they are applied.

    Attributes:
        brightness, contrast, saturation: strengths of the jitter, whose factors are uniform in
            [max(0, 1 - strength), 1 + strength], applied in a random order with hue.
        hue: its factor is uniform in [-hue, hue], at most 0.5, half the color circle.
        jitter: probability of all four.
        gray: probability of grayscale.
        blur: probability of Gaussian blur.
        sigma: range of the blur's standard deviation in pixels.
        kernel: odd width of the blur in pixels; None for the odd number nearest to a tenth of the view, at least 3.
        solarize: probability of inverting what is at or above `threshold`.
        threshold: in [0, 1].

    Raises:
        UserError: a value out of its range.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    gray: float = 0.2
    blur: float = 0.5
    sigma: Range = (0.1, 2.0)
    kernel: int | None = None
    solarize: float = 0.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("jitter", "gray", "blur", "solarize", "threshold"):
            require(0 <= getattr(self, name) <= 1, self, name, "between 0 and 1")
        for name in ("brightness", "contrast", "saturation"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        require(0 <= self.hue <= 0.5, self, "hue", "between 0 and 0.5")
        require(0 < self.sigma[0] <= self.sigma[1], self, "sigma", "a positive and increasing pair")
        odd = self.kernel is None or (self.kernel > 0 and self.kernel % 2 == 1)
        require(odd, self, "kernel", "odd and positive")

    def kernel_at(self, size: int) -> int:
        """The blur's width in a view of `size` pixels: 23 at 224, 9 at 96, 3 at 32."""
        return self.kernel or max(3, 2 * (size // 20) + 1)


@dataclass(frozen=True)
class View:
    """A kind of view: how many of each image, how large, of how much of it, in which colors.

    A new spatial transformation is a new subclass, whose `transform` does to the view what makes it that kind.

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

    count: int
    size: int
    area: Range
    color: Color | tuple[Color, ...] | None = Color()
    ratio: Range = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        require(self.count >= 1, self, "count", "1 or more")
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
    def name(self) -> str:
        """The class's name in lower case: "global", "local", "cutout"."""
        return type(self).__name__.lower()

    def color_of(self, i: int) -> Color | None:
        """The color settings of view `i`."""
        return self.color[i] if isinstance(self.color, tuple) else self.color

    def transform(self, x: Tensor, draws: Draws) -> Tensor:
        """What sets this kind apart, done to the normalized views, `b 3 size size`, perhaps in place: here nothing."""
        return x


@dataclass(frozen=True)
class Global(View):
    """A large crop. Only global views are targets."""

    count: int = 2
    size: int = 224
    area: Range = (0.08, 1.0)


@dataclass(frozen=True)
class Local(View):
    """A small crop at low resolution (SwAV's multi-crop; MULAN's areas)."""

    count: int = 4
    size: int = 96
    area: Range = (0.08, 0.25)


@dataclass(frozen=True)
class Cutout(View):
    """A large crop with a hole of the mean color (MULAN; DeVries and Taylor 2017).

    Attributes:
        hole: range of the hole's fraction of the view.
        hole_ratio: range of the hole's width / height.
    """

    count: int = 1
    size: int = 224
    area: Range = (0.25, 1.0)
    hole: Range = (0.2, 0.4)
    hole_ratio: Range = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.hole[0] <= self.hole[1] <= 1, self, "hole", "an increasing pair in (0, 1]")
        require(0 < self.hole_ratio[0] <= self.hole_ratio[1], self, "hole_ratio", "a positive and increasing pair")

    def transform(self, x: Tensor, draws: Draws) -> Tensor:
        return erase(x, draw_blocks(draws.at("hole"), self.size, self.hole, self.hole_ratio))
