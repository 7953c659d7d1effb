"""From canvases to one view of each: crop and resize, color, normalize, and what sets the kind of view apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from manyviews.types import Batch
from manyviews.views import color as ops
from manyviews.views.distort import Distorting
from manyviews.views.draws import Draws
from manyviews.views.geometry import crop_resize
from manyviews.views.kinds import Triple, View

# Values of a view handled at once: on a CPU what stays in its cache from one operation to the next, elsewhere what
# keeps the temporary copies to about a gigabyte.
_VALUES = {"cpu": 3 * 2**17}
_VALUES_ELSEWHERE = 2**25


@torch.no_grad()
def make(canvases: Batch, kind: View, i: int, draws: Draws, mean: Triple, std: Triple) -> Tensor:
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
    draws, device, b = place(draws, kind, i), canvases.pixels.device, len(canvases)
    # A method may ask for a view under autocast: its matrix products would lose the pixels' last bits.
    with torch.autocast(device.type, enabled=False):
        pixels = kind.before(canvases, draws, mean)
        boxes, flip = kind.crop(canvases, draws)
        paint = kind.paint(i, draws)
        crop: Callable[[Tensor, Tensor, int, Tensor], Tensor] = crop_resize
        if device.type == "cpu" and pixels.dtype == torch.uint8:
            from manyviews.views import compiled  # Numba takes half a second to import

            if paint is None or isinstance(paint, Distorting):
                return kind.transform(compiled.render(pixels, boxes, flip, kind.size, mean, std, paint), draws)
            crop = compiled.crop
        out = torch.empty(b, 3, kind.size, kind.size, device=device, memory_format=torch.channels_last)
        values = _VALUES.get(device.type, _VALUES_ELSEWHERE)
        parts = max(1, math.ceil(3 * max(kind.size, *pixels.shape[-2:]) ** 2 * b / values))
        # Parts of one size, where the batch has a divisor that is not far: each size is compiled for.
        step = max(1, next((b // p for p in range(parts, 2 * parts + 1) if b % p == 0), math.ceil(b / parts)))
        for start in range(0, b, step):
            rows = slice(start, start + step)
            x = crop(pixels[rows], boxes[rows], kind.size, flip[rows])
            if paint:
                x = paint(x, rows)
            ops.normalize(x, mean, std, out[rows])
        return kind.transform(out, draws)


def place(draws: Draws, kind: View, i: int) -> Draws:
    """The draws of view `i` of a kind."""
    return draws.at(f"{kind.name}/{i}")


@torch.no_grad()
def relation(canvases: Batch, view: tuple[View, int], target: tuple[View, int], draws: Draws) -> Tensor:
    """Where a view lies as seen from a target view, and what was done to it: what a conditioned predictor is told.

    Returns:
        float32, `b 5+p`: the offset of the view's center from the target's, downwards and to the right, in units of the
        target's crop and as the target shows it; the logarithms of the ratios of their heights and widths; 1 if one is
        the mirror image of the other, else 0; and the kind's own `parameters`.
    """
    boxes, flips = [], []
    for kind, i in (view, target):
        box, flip = kind.crop(canvases, place(draws, kind, i))
        boxes.append(box.float())
        flips.append(flip)
    (corner, size), (its_corner, its_size) = (box.chunk(2, 1) for box in boxes)
    offset = (corner + size / 2 - its_corner - its_size / 2) / its_size
    offset[:, 1] *= torch.where(flips[1], -1.0, 1.0)
    mirrored = (flips[0] ^ flips[1])[:, None].float()
    own = view[0].parameters(place(draws, *view))
    return torch.cat([offset, (size / its_size).log(), mirrored, own], 1)


def relation_dim(kind: View) -> int:
    """How many numbers `relation` gives for a kind of view."""
    draws = Draws(0, 0, torch.zeros(1, dtype=torch.int64))
    return 5 + kind.parameters(place(draws, kind, 0)).shape[1]
