"""Single augmentations with settings of their own, for methods that compose them: MAST, RandAugment.

Each draws a row of parameters for each image, and applies them to the whole batch at once. Where the papers are silent
on a range or a probability, its class says what was chosen.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from manyviews.errors import require
from manyviews.views import color as ops
from manyviews.views.distort import Color, Range, draw_distortion
from manyviews.views.draws import Draws
from manyviews.views.filters import adjust_sharpness, gaussian_blur, motion_blur, sobel
from manyviews.views.geometry import affine, crop_resize, draw_boxes
from manyviews.views.regions import inside


@dataclass(frozen=True)
class Augmentation(ABC):
    """One operator: frozen settings that print, compare and save as JSON.

    Attributes:
        p: the probability with which a composition applies it; calling it always does.

    Raises:
        UserError: a value out of its range.
    """

    of_rgb: ClassVar[bool] = False
    """Whether images of other channels than three pass through it unchanged."""

    p: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.p <= 1, self, "p", "between 0 and 1")

    @property
    def name(self) -> str:
        """The class's name in snake case: "color_jitter", "shear_x"."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def draw(self, draws: Draws, size: int) -> Tensor:
        """Parameters for each image of the batch; here none.

        Args:
            draws: draws of this augmentation alone, for example `draws.at(name)`. Two augmentations that share
                them draw the same numbers.
            size: height and width of the images in pixels.

        Returns:
            float32, `b m`.
        """
        return torch.empty(len(draws.index), 0, device=draws.index.device)

    @abstractmethod
    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        """The augmented images.

        Args:
            x: float32, `b c h w` with `h = w`, in [0, 1], which is not written to.
            parameters: float32, `b m`, as drawn for images of this size.

        Returns:
            As `x`, and perhaps `x` itself.
        """

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Draw, and apply to every image."""
        return self.apply(x, self.draw(draws, x.shape[-1]))

    def _require_range(self, name: str, low: float, high: float = float("inf")) -> None:
        first, last = getattr(self, name)
        within = f"between {low:g} and {high:g}" if high < float("inf") else f"of {low:g} or more"
        require(low <= first <= last <= high, self, name, f"an increasing pair {within}")


def _whole(draws: Draws, name: str, low: int, high: int) -> Tensor:
    """Whole numbers from low to high, both included: float32, `b 1`."""
    # Added last: a float32 next to `high + 1` may round to it, one next to the range's length never does.
    return low + draws.uniform(name, 1, 0, high - low + 1).floor()


@dataclass(frozen=True)
class Identity(Augmentation):
    """The images as they are."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return x


# -- SimCLR's five, with the ranges of BYOL; its probabilities too, except the blur's: SimCLR's half ------------------


@dataclass(frozen=True)
class ColorJitter(Augmentation):
    """Brightness, contrast, saturation and hue in a random order; see `Color`.

    Parameters: the four factors, and the order in which they come.
    """

    p: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("brightness", "contrast", "saturation"):
            require(getattr(self, name) >= 0, self, name, "0 or more")
        require(0 <= self.hue <= 0.5, self, "hue", "between 0 and 0.5")

    def draw(self, draws: Draws, size: int) -> Tensor:
        drawn = draw_distortion(draws, Color(self.brightness, self.contrast, self.saturation, self.hue))
        return torch.cat([drawn.factors, drawn.order.float()], 1)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.jitter(x, parameters[:, :4], parameters[:, 4:].long())


@dataclass(frozen=True)
class _Blur(Augmentation):
    """What mixes pixels within a window.

    Attributes:
        kernel: the window's odd width in pixels, at least 3; None for the odd number nearest to a tenth of the image.
    """

    kernel: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        odd = self.kernel is None or (self.kernel >= 3 and self.kernel % 2 == 1)
        require(odd, self, "kernel", "odd and 3 or more")

    def kernel_at(self, size: int) -> int:
        """Its width in images of `size` pixels."""
        return Color(kernel=self.kernel).kernel_at(size)


@dataclass(frozen=True)
class GaussianBlur(_Blur):
    """Parameters: the standard deviation in pixels, uniform in `sigma`."""

    sigma: Range = (0.1, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.sigma[0] <= self.sigma[1], self, "sigma", "a positive and increasing pair")

    def draw(self, draws: Draws, size: int) -> Tensor:
        return draws.uniform("sigma", 1, *self.sigma)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return gaussian_blur(x, parameters[:, 0], self.kernel_at(x.shape[-1]))


@dataclass(frozen=True)
class HorizontalFlip(Augmentation):
    """Left is right."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return x.flip(3)


@dataclass(frozen=True)
class Grayscale(Augmentation):
    """The luma in all channels."""

    of_rgb: ClassVar[bool] = True

    p: float = 0.2

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.grayscale(x)


@dataclass(frozen=True)
class ResizedCrop(Augmentation):
    """A random resized crop, at the size of the image.

    Cut from a view it loses resolution; a view that it begins is better cut from its canvas, with `boxes`.

    Attributes:
        area: range of the crop's fraction of the image.
        ratio: range of its width / height.

    Parameters: top, left, height and width in pixels.
    """

    p: float = 1.0
    area: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.area[0] <= self.area[1] <= 1, self, "area", "an increasing pair in (0, 1]")
        require(0 < self.ratio[0] <= self.ratio[1], self, "ratio", "a positive and increasing pair")

    def boxes(self, draws: Draws, extent: Tensor) -> Tensor:
        """Crops of images of an `extent`, int64 `b 2`: int64, `b 4`; see `draw_boxes`."""
        return draw_boxes(draws, extent, self.area, self.ratio)

    def draw(self, draws: Draws, size: int) -> Tensor:
        return self.boxes(draws, torch.full_like(draws.index, size)[:, None].expand(-1, 2)).float()

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return crop_resize(x, parameters.long(), x.shape[-1])


# -- Affine maps, in the ranges of FixMatch (Sohn et al. 2020, table 12), about the center and on gray ---------------


@dataclass(frozen=True)
class _Signed(Augmentation):
    """What goes either way.

    Attributes:
        magnitude: range of the parameter without its sign, which is + or - with equal probability.
    """

    magnitude: Range = (0.0, 0.3)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range("magnitude", 0)

    def draw(self, draws: Draws, size: int) -> Tensor:
        magnitude = draws.uniform("magnitude", 1, *self.magnitude)
        return torch.where(draws.bernoulli("sign", 0.5)[:, None], -magnitude, magnitude)


@dataclass(frozen=True)
class ShearX(_Signed):
    """Parameters: pixels to the left for each pixel below the center."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return affine(x, shear_x=parameters[:, 0])


@dataclass(frozen=True)
class ShearY(_Signed):
    """Parameters: pixels up for each pixel to the right of the center."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return affine(x, shear_y=parameters[:, 0])


@dataclass(frozen=True)
class TranslateX(_Signed):
    """Parameters: a fraction of the width, to the right."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return affine(x, translate_x=parameters[:, 0])


@dataclass(frozen=True)
class TranslateY(_Signed):
    """Parameters: a fraction of the height, down."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return affine(x, translate_y=parameters[:, 0])


@dataclass(frozen=True)
class Rotate(_Signed):
    """Parameters: degrees, clockwise."""

    magnitude: Range = (0.0, 30.0)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return affine(x, angle=parameters[:, 0])


# -- Blends with something plainer, in the ranges of FixMatch --------------------------------------------------------


@dataclass(frozen=True)
class _Enhancement(Augmentation):
    """A blend with something plainer.

    Attributes:
        factor: range of the image's weight: 1 leaves it as it is, and more exaggerates it.
    """

    factor: Range = (0.05, 0.95)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range("factor", 0)

    def draw(self, draws: Draws, size: int) -> Tensor:
        return draws.uniform("factor", 1, *self.factor)


@dataclass(frozen=True)
class Brightness(_Enhancement):
    """A blend with black. Parameters: the factor."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.adjust_brightness(x, parameters[:, 0])


@dataclass(frozen=True)
class Contrast(_Enhancement):
    """A blend with the mean gray. Parameters: the factor."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.adjust_contrast(x, parameters[:, 0])


@dataclass(frozen=True)
class Saturation(_Enhancement):
    """A blend with the gray image; FixMatch's "Color". Parameters: the factor."""

    of_rgb: ClassVar[bool] = True

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.adjust_saturation(x, parameters[:, 0])


@dataclass(frozen=True)
class Sharpness(_Enhancement):
    """A blend with a slightly blurred image. Parameters: the factor."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return adjust_sharpness(x, parameters[:, 0])


# -- Changes of the values, in the ranges of FixMatch ----------------------------------------------------------------


@dataclass(frozen=True)
class AutoContrast(Augmentation):
    """Each channel stretched from black to white."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.autocontrast(x)


@dataclass(frozen=True)
class Equalize(Augmentation):
    """Each channel with a flat histogram."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.equalize(x)


@dataclass(frozen=True)
class Invert(Augmentation):
    """The negative."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.invert(x)


@dataclass(frozen=True)
class Posterize(Augmentation):
    """Parameters: how many of 8 bits are kept, a whole number, uniform in `bits`, both ends included."""

    bits: tuple[int, int] = (4, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(isinstance(n, int) for n in self.bits), self, "bits", "whole numbers")
        self._require_range("bits", 1, 8)

    def draw(self, draws: Draws, size: int) -> Tensor:
        return _whole(draws, "bits", *self.bits)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.posterize(x, parameters[:, 0])


@dataclass(frozen=True)
class Solarize(Augmentation):
    """Parameters: the value from which on all are inverted, uniform in `threshold`."""

    threshold: Range = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range("threshold", 0, 1)

    def draw(self, draws: Draws, size: int) -> Tensor:
        return draws.uniform("threshold", 1, *self.threshold)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.solarize(x, parameters[:, 0])


@dataclass(frozen=True)
class Erase(Augmentation):
    """A gray square, MAST's "Cutout" (DeVries and Taylor 2017): centered anywhere, so that part of it may lie outside.

    Attributes:
        side: range of its side's fraction of the image's; FixMatch's, and at the most DeVries and Taylor's on CIFAR-10.

    Parameters: top, left, height and width in pixels.
    """

    side: Range = (0.0, 0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range("side", 0, 1)

    def draw(self, draws: Draws, size: int) -> Tensor:
        length = (draws.uniform("side", 1, *self.side) * size).round()
        center = (draws.uniform("place", 2) * size).floor()
        return torch.cat([center - (length / 2).floor(), length, length], 1)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return x.masked_fill(inside(parameters.long(), *x.shape[-2:]), 0.5)


# -- MAST's others, of which it gives no ranges ----------------------------------------------------------------------


@dataclass(frozen=True)
class GaussianNoise(Augmentation):
    """Independent noise on every value.

    Attributes:
        std: range of its standard deviation.

    Parameters: the standard deviation, and a key of 24 bits, which float32 holds exactly, for the noise.
    """

    std: Range = (0.0, 0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range("std", 0)

    def draw(self, draws: Draws, size: int) -> Tensor:
        return torch.cat([draws.uniform("std", 1, *self.std), draws.uniform("key", 1, 0, 2**24)], 1)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.gaussian_noise(x, parameters[:, 0], parameters[:, 1].long())


@dataclass(frozen=True)
class Sobel(Augmentation):
    """The edges of each channel."""

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return sobel(x)


@dataclass(frozen=True)
class MotionBlur(_Blur):
    """A smear along a line.

    Attributes:
        angle: range of its direction in degrees.
        direction: range of how much heavier its end is than its middle, within [-1, 1].

    Parameters: the line's width in pixels, odd, uniform from 3 to the kernel's; its angle; its direction.
    """

    angle: Range = (0.0, 180.0)
    direction: Range = (-1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_range("angle", -360, 360)
        self._require_range("direction", -1, 1)

    def draw(self, draws: Draws, size: int) -> Tensor:
        reach = _whole(draws, "width", 1, self.kernel_at(size) // 2)
        angle, direction = draws.uniform("angle", 1, *self.angle), draws.uniform("direction", 1, *self.direction)
        return torch.cat([2 * reach + 1, angle, direction], 1)

    def apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        width, angle, direction = parameters.unbind(1)
        return motion_blur(x, width, angle, direction, self.kernel_at(x.shape[-1]))


# MAST (Huang et al. 2023), section 3.2 and table 5, in the paper's order.
MAST_5 = (ColorJitter(), GaussianBlur(), HorizontalFlip(), Grayscale(), ResizedCrop())
MAST_15 = (
    *MAST_5,
    ShearX(),
    ShearY(),
    TranslateX(magnitude=(0.0, 0.45)),  # RandAugment's 100 of 224 pixels (Cubuk et al. 2019), from which MAST borrows
    TranslateY(magnitude=(0.0, 0.45)),
    Rotate(),
    Invert(),
    Sharpness(factor=(0.1, 1.9)),  # both ways, as in RandAugment; the paper does not say so of this one
    GaussianNoise(),
    Sobel(),
    Erase(),
)
MAST_19 = (*MAST_15, Solarize(), Equalize(), Posterize(), MotionBlur())

# The 14 of FixMatch (Sohn et al. 2020, table 12), which the rescue of easy samples uses, before cutout: `Erase`.
RANDAUGMENT = (
    AutoContrast(),
    Brightness(),
    Saturation(),
    Contrast(),
    Equalize(),
    Identity(),
    Posterize(),
    Rotate(),
    Sharpness(),
    ShearX(),
    ShearY(),
    Solarize(),
    TranslateX(),
    TranslateY(),
)
