"""From canvases to one view of each: crop and resize, color, normalize, and what sets the kind of view apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from manyviews.types import Canvases
from manyviews.views import color as ops
from manyviews.views.draws import Draws
from manyviews.views.filters import gaussian_blur
from manyviews.views.geometry import crop_resize, draw_boxes
from manyviews.views.kinds import Color, View
from manyviews.views.masks import apply_to

Triple = tuple[float, float, float]

# Values of a view handled at once: on a CPU what stays in its cache from one operation to the next, elsewhere what
# keeps the temporary copies to about a gigabyte.
_VALUES = {"cpu": 3 * 2**17}
_VALUES_ELSEWHERE = 2**25


@dataclass(frozen=True)
class Distortion:
    """Drawn photometric parameters of `b` views; see `kinds.Color` for the distributions.

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
    factors = [draws.uniform(k, 1, max(0.0, 1 - v), 1 + v) for k, v in around.items()]
    return Distortion(
        jitter=draws.bernoulli("jitter", color.jitter),
        factors=torch.cat([*factors, draws.uniform("hue", 1, -color.hue, color.hue)], 1),
        order=draws.permutation("order", 4),
        gray=draws.bernoulli("gray", color.gray),
        blur=draws.bernoulli("blur", color.blur),
        sigma=draws.uniform("sigma", 1, *color.sigma)[:, 0],
        solarize=draws.bernoulli("solarize", color.solarize),
    )


def distort(x: Tensor, color: Color, drawn: Distortion) -> Tensor:
    """Color jitter, grayscale, blur and solarization of `b 3 h w` in [0, 1], which may be overwritten."""
    if color.jitter:
        x = apply_to(drawn.jitter, ops.jitter, x, drawn.factors, drawn.order)
    if color.gray:
        x = apply_to(drawn.gray, ops.grayscale, x)
    if color.blur:
        x = apply_to(drawn.blur, partial(gaussian_blur, kernel=color.kernel_at(x.shape[-1])), x, drawn.sigma)
    if color.solarize:
        x = apply_to(drawn.solarize, partial(ops.solarize, threshold=color.threshold), x)
    return x


@torch.no_grad()
def make(canvases: Canvases, kind: View, i: int, draws: Draws, mean: Triple, std: Triple) -> Tensor:
    """View `i` of a kind, of each canvas.

    Args:
        canvases: the images.
        kind: the view's settings.
        i: which of the kind's views.
        draws: of the batch; the view takes its own from them by name.
        mean, std: of the channels in [0, 1], for normalization.

    Returns:
        float32, `b 3 size size`, channels last in memory, normalized, without gradient.
    """
    draws = draws.at(f"{kind.name}/{i}")
    device, b, color = canvases.pixels.device, len(canvases), kind.color_of(i)
    boxes = draw_boxes(draws.at("crop"), canvases.extent, canvases.pixels.shape[-1], kind.area, kind.ratio)
    flip = draws.bernoulli("flip", kind.flip)
    drawn = draw_distortion(draws.at("color"), color) if color else None
    out = torch.empty(b, 3, kind.size, kind.size, device=device, memory_format=torch.channels_last)
    step = max(1, _VALUES.get(device.type, _VALUES_ELSEWHERE) // (3 * max(kind.size, *canvases.pixels.shape[-2:]) ** 2))
    # A method may ask for a view under autocast: its matrix products would lose the pixels' last bits.
    with torch.autocast(device.type, enabled=False):
        for start in range(0, b, step):
            rows = slice(start, start + step)
            x = crop_resize(canvases.pixels[rows], boxes[rows], kind.size, flip[rows])
            if color and drawn:
                x = distort(x, color, drawn[rows])
            ops.normalize(x, mean, std, out[rows])
        return kind.transform(out, draws)
