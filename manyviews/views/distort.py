"""Photometric distortion of a view: color jitter, grayscale, blur and solarization, as nearly every paper has it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from manyviews.errors import require
from manyviews.views import color as ops
from manyviews.views.draws import Draws, between
from manyviews.views.filters import gaussian_blur
from manyviews.views.regions import apply_to

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
        threshold: brightness in [0, 1].

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
class Distortion:
    """Drawn photometric parameters of `b` views; see `Color` for the distributions.

    Attributes:
        jitter, gray, blur, solarize: bool, `b`: the images that get it.
        factors: float32, `b 4`, of brightness, contrast, saturation, hue.
        order: int64, `b 4`, in which order these four come.
        sigma: float32, `b`, standard deviation of the blur in pixels.
    """

    jitter: Tensor
    factors: Tensor
    order: Tensor
    gray: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor

    def __getitem__(self, rows: slice) -> Distortion:
        return Distortion(**{k: v[rows] for k, v in vars(self).items()})


def draw_distortion(draws: Draws, color: Color) -> Distortion:
    """Parameters for each image of the batch."""
    around = {"brightness": color.brightness, "contrast": color.contrast, "saturation": color.saturation}
    ranges = {k: (max(0.0, 1 - v), 1 + v) for k, v in around.items()} | {"hue": (-color.hue, color.hue)}
    masks = {k: getattr(color, k) for k in ("jitter", "gray", "blur", "solarize")}
    u = draws.uniforms(dict.fromkeys((*ranges, "sigma", *masks), 1))
    return Distortion(
        factors=torch.cat([between(u[k], *v) for k, v in ranges.items()], 1),
        order=draws.permutation("order", 4),
        sigma=between(u["sigma"], *color.sigma)[:, 0],
        **{k: u[k][:, 0] < p for k, p in masks.items()},  # always for 1, never for 0
    )


def distort(x: Tensor, color: Color, drawn: Distortion) -> Tensor:
    """Color jitter, grayscale, blur and solarization of `b c h w` in [0, 1], which may be overwritten."""
    global _fuse
    if x.is_cuda and _fuse:
        try:
            return _fused()(x, color, drawn)
        except Exception as error:
            from torch._dynamo import is_dynamo_supported  # takes a second to import
            from torch._dynamo.exc import TorchDynamoException

            if not isinstance(error, TorchDynamoException) and is_dynamo_supported():
                raise
            _fuse = False  # no Triton, no compiler for its stub, or a Python that is too new
            print("Colors are changed one operation at a time, for they cannot be compiled here.", file=sys.stderr)
    return _distort(x, color, drawn)


_fuse = True


@cache
def _fused() -> Callable[[Tensor, Color, Distortion], Tensor]:
    """On a GPU sixty operations on single values become some ten passes over the memory."""
    import torch._dynamo

    # It is compiled for each color setting, size and number of rows, of which multi-crop has more than PyTorch's 8.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    print("Compiling what changes the colors, for each size and setting: some seconds each.", file=sys.stderr)
    return torch.compile(_distort, dynamic=False)


def _distort(x: Tensor, color: Color, drawn: Distortion) -> Tensor:
    if color.jitter:
        x = apply_to(drawn.jitter, ops.jitter, x, drawn.factors, drawn.order)
    if color.gray:
        x = apply_to(drawn.gray, ops.grayscale, x)
    if color.blur:
        x = apply_to(drawn.blur, partial(gaussian_blur, kernel=color.kernel_at(x.shape[-1])), x, drawn.sigma)
    if color.solarize:
        x = apply_to(drawn.solarize, partial(ops.solarize, threshold=color.threshold), x)
    return x


@dataclass(frozen=True)
class Distorting:
    """What a view's hook `paint` gives when it is nothing but `distort`.

    Attributes:
        color: the settings.
        drawn: the parameters of all images of the batch.
    """

    color: Color
    drawn: Distortion

    def __call__(self, x: Tensor, rows: slice) -> Tensor:
        return distort(x, self.color, self.drawn[rows])
