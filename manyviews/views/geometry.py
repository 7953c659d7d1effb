"""Where a view looks: random resized crops, flips and affine maps, drawn and resampled for a whole batch at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.views.draws import Draws, between

_TRIES = 10


def draw_boxes(draws: Draws, extent: Tensor, area: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Boxes of random resized crops, as torchvision's RandomResizedCrop draws them (Szegedy et al. 2015).

    The area is uniform, the aspect ratio log-uniform, the place uniform; the first of ten tries that fits is taken,
    and a central crop when none does.

    Args:
        draws: the view's draws.
        extent: int64, `b 2`, height and width of the images, in pixels.
        area: range of the crop's fraction of the image, in (0, 1].
        ratio: range of width / height.

    Returns:
        int64, `b 4`: top, left, height and width in pixels.
    """
    there, draws = draws.index.device, draws.exact
    extent = extent.to(draws.index.device)
    height, width, corner = _tries(draws, extent, area, ratio)
    # A central crop is as large as its ratio allows.
    h, w = extent.double().unbind(1)
    central = torch.stack([torch.minimum(h, w / ratio[0]), torch.minimum(w, h * ratio[1])], 1).round().long()
    return _place(corner, extent, height, width, central).to(there)


def draw_blocks(
    draws: Draws, side: int, area: tuple[float, float], ratio: tuple[float, float], times: Tensor | None = None
) -> Tensor:
    """Rectangles inside a view of `side` pixels; as `draw_boxes`, but the central one, when no try fits, is a square.

    The square has the mean of the areas.

    Args:
        draws: the view's draws.
        side: of the view, in pixels.
        area: range of the rectangle's fraction of the view.
        ratio: range of width / height.
        times: float32, `b`: factors on the fractions that are tried; None for 1.
    """
    there, draws = draws.index.device, draws.exact
    extent = torch.full_like(draws.index, side)[:, None].expand(-1, 2)
    height, width, corner = _tries(draws, extent, area, ratio, times)
    square = torch.full_like(extent, round(side * math.sqrt(sum(area) / 2)))
    return _place(corner, extent, height, width, square).to(there)


def _tries(
    draws: Draws, extent: Tensor, area: tuple[float, float], ratio: tuple[float, float], times: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Heights and widths to try, int64, `b tries`, in images of height and width `extent`, `b 2`.

    And where the box lies in what is left, `b 2`, from 0 to 1.
    """
    u = draws.uniforms({"area": _TRIES, "ratio": _TRIES, "place": 2})
    # In float64, or a root that ends in .5 on one device and not on the other would round to another box.
    side = extent.double().prod(1, keepdim=True).sqrt()
    a = between(u["area"], *area).double()
    if times is not None:
        a = a * times[:, None].to(a)
    r = between(u["ratio"], math.log(ratio[0]), math.log(ratio[1])).double().exp()
    return ((a / r).sqrt() * side).round().long(), ((a * r).sqrt() * side).round().long(), u["place"].double()


def _place(corner: Tensor, extent: Tensor, height: Tensor, width: Tensor, central: Tensor) -> Tensor:
    fits = (height > 0) & (height <= extent[:, :1]) & (width > 0) & (width <= extent[:, 1:])
    first = fits.int().argmax(1, keepdim=True)  # of equal values the first
    size = torch.stack([height.gather(1, first), width.gather(1, first)], 2)[:, 0]
    corner = (corner * (extent - size + 1)).long()
    central = torch.minimum(central.clamp(min=1), extent)
    middle = torch.cat([(extent - central) // 2, central], 1)
    return torch.where(fits.any(1, keepdim=True), torch.cat([corner, size], 1), middle)


def crop_resize(pixels: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Cut a box out of each image and resample it, antialiased bicubic as in PIL and torchvision.

    The result is not rounded to 8 bits, as theirs is, so it is within one gray level of theirs.

    Args:
        pixels: `b c h w`: uint8, or float32 in [0, 1].
        boxes: int64, `b 4`: top, left, height, width.
        size: height and width of the result.
        flip: bool, `b`: mirror left and right; None for none.

    Returns:
        float32, `b c size size`, in [0, 1].
    """
    h, w = pixels.shape[-2:]
    top, left, height, width = boxes.unbind(1)
    rows = _bicubic(top, height, h, size)
    columns = _bicubic(left, width, w, size, flip) / (255 if pixels.dtype == torch.uint8 else 1)
    # Theirs cut what overshoots after each of the two passes.
    return resample_rows(resample_columns(pixels.float(), columns).clamp_(0, 1), rows).clamp_(0, 1)


def affine(
    x: Tensor,
    *,
    angle: Tensor | None = None,
    shear_x: Tensor | None = None,
    shear_y: Tensor | None = None,
    translate_x: Tensor | None = None,
    translate_y: Tensor | None = None,
    fill: float = 0.5,
) -> Tensor:
    """Shear, rotate about the center and then translate, bilinearly, in torchvision's directions.

    Args:
        x: float32, `b c h w`.
        angle: float32, `b`, degrees, clockwise.
        shear_x, shear_y: float32, `b`, tangents of torchvision's angles: at 1 a pixel below the center moves left, one
            to the right of it up, by its distance.
        translate_x, translate_y: float32, `b`, to the right and down, in fractions of the width and the height.
        fill: gray level of what comes from outside, with which the image's edge is blended once. Torchvision blends
            twice, so its outermost pixels differ.
    """
    h, w = x.shape[-2:]
    none = x.new_zeros(len(x))
    angle, shear_x, shear_y, translate_x, translate_y = (
        (none if v is None else v)[:, None, None] for v in (angle, shear_x, shear_y, translate_x, translate_y)
    )
    cos, sin = angle.deg2rad().cos(), angle.deg2rad().sin()
    # Rotation times shear along y times shear along x is [[a, b], [c, d]], its inverse [[d, -b], [-c, a]].
    a, c = cos + sin * shear_y, sin - cos * shear_y
    b, d = -sin - a * shear_x, cos - c * shear_x
    # From the center, in halves of the side. Not by `affine_grid`, whose matrix product may be of less precision.
    u = (2 * torch.arange(w, device=x.device) + 1) / w - 1 - 2 * translate_x
    v = (2 * torch.arange(h, device=x.device) + 1)[:, None] / h - 1 - 2 * translate_y
    grid = torch.stack([d * u - b * (h / w) * v, a * v - c * (w / h) * u], 3)
    return F.grid_sample(x - fill, grid, align_corners=False).add_(fill)


# A separable linear map of the pixels is two batched matrix products. The matrices are mostly zeros, but dense products
# are fast, and the same on every device.


def resample_columns(x: Tensor, weights: Tensor) -> Tensor:
    """Each line of `b c h w` from left to right times weights `b width w`, to `b c h width`."""
    b, c, h, w = x.shape
    return torch.bmm(x.reshape(b, c * h, w), weights.mT).view(b, c, h, -1)


def resample_rows(x: Tensor, weights: Tensor) -> Tensor:
    """Each line of `b c h w` from top to bottom times weights `b height h`, to `b c height w`."""
    return weights[:, None] @ x


def _bicubic(start: Tensor, length: Tensor, side: int, size: int, flip: Tensor | None = None) -> Tensor:
    """Weights of antialiased bicubic resampling of `length` pixels from `start` on to `size`: float32, `b size side`.

    Keys' kernel with a = -1/2, stretched when it shrinks the image; pixels outside the box have no weight.
    """
    scale = (length / size)[:, None]
    stretch = scale.clamp(min=1)
    i = torch.arange(size, device=start.device)
    if flip is not None:
        i = torch.where(flip[:, None], size - 1 - i, i)
    center = (i + 0.5) * scale
    # The kernel reaches 2 * stretch to either side: these are the pixels whose centers it may cover.
    first = (center - 2 * stretch + 0.5).floor()
    taps = first[..., None] + torch.arange(math.ceil(4 * max(1.0, side / size)), device=start.device)
    x = ((taps + 0.5 - center[..., None]) / stretch[..., None]).abs_()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    seen = (x < 2) & (taps >= 0) & (taps < length[:, None, None])
    weights = torch.where(seen, torch.where(x < 1, near, far), 0)
    weights /= weights.sum(2, keepdim=True)
    # Added and not set: taps outside the canvas are moved to its edge, where they add nothing.
    where = (taps + start[:, None, None]).clamp_(0, side - 1).long()
    return weights.new_zeros(len(start), size, side).scatter_add_(2, where, weights)
