"""The corruptions of ImageNet-C and CIFAR-10-C (Hendrycks and Dietterich 2019), with their authors' parameters.

Frost is missing, as it needs photographs of frost. As in the authors' code, corruptions are applied to the encoder's
input, after the test-time transform. Three things differ: values are rounded to whole gray levels instead of cut,
images are not saved as JPEG in between as ImageNet-C's are, and the random numbers are others.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from manyviews import machine
from manyviews.errors import UserError, unknown
from manyviews.evaluation.features import SMALL
from manyviews.views import Draws
from manyviews.views import color as ops

SEVERITIES = (1, 2, 3, 4, 5)

# Parameters by severity from 1 to 5, for images of 32 pixels (CIFAR-10-C) and of 224 pixels (ImageNet-C). Each function
# below says which of its parameters are lengths in pixels.
_SMALL: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic": ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg": (80, 65, 58, 50, 40),
}
_LARGE: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    # Fractions of 244 pixels: a slip of the authors, which made the set.
    "elastic": (
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg": (25, 18, 15, 10, 7),
}


def corrupt(pixels: Tensor, kind: str, severity: int, index: Tensor | None = None, seed: int = 0) -> Tensor:
    """Corrupted images: uint8 `b 3 s s` to the same.

    Up to 64 pixels with the parameters of CIFAR-10-C, above with those of ImageNet-C; lengths are scaled from 32 and
    224 pixels to the size. All severities of a kind share their random numbers.

    Args:
        pixels: square images.
        kind: name of the corruption, from `KINDS`.
        severity: from 1 to 5; at 0 the images stay as they are.
        index: int64, `b`: a number of each image's own, which decides its noise; its position if not given.
        seed: seed of the noise.

    Raises:
        UserError: an unknown kind or severity.
    """
    if kind not in KINDS:
        raise unknown("corruption", kind, KINDS)
    if severity not in (0, *SEVERITIES):
        raise UserError(f"The severity of a corruption must be from 0 to 5, not {severity}.")
    if severity == 0:
        return pixels
    index = torch.arange(len(pixels)) if index is None else index
    there, pixels = pixels.device, pixels.to(machine.exact(pixels.device))
    draws = Draws(seed, 0, index.to(pixels.device)).at(kind)
    side = pixels.shape[-1]
    table, scale = (_SMALL, side / 32) if side <= SMALL else (_LARGE, side / 224)
    if kind == "jpeg":
        return jpeg(pixels, torch.full((len(pixels),), table[kind][severity - 1])).to(there)
    x = _OPERATIONS[kind](pixels.float() / 255, table[kind][severity - 1], scale, draws)
    return (x.clamp(0, 1) * 255).round_().to(torch.uint8).to(there)


# Each takes images (float32 `b 3 s s` in [0, 1]), the parameters of a severity, the scale of lengths, and draws.


def gaussian_noise(x: Tensor, std: float, scale: float, draws: Draws) -> Tensor:
    """Normal noise, independent for every value."""
    return ops.gaussian_noise(x, x.new_full((len(x),), std), draws.bits("noise", 1)[:, 0])


def shot_noise(x: Tensor, photons: float, scale: float, draws: Draws) -> Tensor:
    """Poisson noise: white is `photons` photons on average."""
    levels = (x * 255).round_().long()
    u = draws.uniform("photons", levels[0].numel()).double().view_as(x)
    # The counts of all 256 gray levels in one ascending table: level l's cumulative probabilities lie in l + [0, 1].
    table, first = (t.to(x.device) for t in _poisson(float(photons)))
    return ((torch.searchsorted(table, levels + u, right=True) - first[levels]) / photons).float()


@cache
def _poisson(photons: float) -> tuple[Tensor, Tensor]:
    """For each gray level l, l + P(count <= k) for k = 0, 1, ..., side by side, and where each level begins."""
    from scipy.stats import poisson

    rate = photons * np.arange(256) / 255
    most = poisson.ppf(1 - 1e-9, rate).astype(np.int64) + 1
    rows = [level + poisson.cdf(np.arange(k), r) for level, (r, k) in enumerate(zip(rate, most, strict=True))]
    return torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.cumsum([0, *most[:-1]]))


def impulse_noise(x: Tensor, amount: float, scale: float, draws: Draws) -> Tensor:
    """Salt and pepper: a share of the values become 0 or 1, with equal probability."""
    u = draws.uniform("noise", x[0].numel()).view_as(x)
    return torch.where(u < amount / 2, 0.0, torch.where(u >= 1 - amount / 2, 1.0, x))


def defocus_blur(x: Tensor, c: tuple[float, float], scale: float, draws: Draws) -> Tensor:
    """A lens out of focus: a disk with a radius in pixels, smoothed by a Gaussian with a deviation in pixels."""
    kernel = disk(c[0] * scale, c[1] * scale).to(x)
    reach = len(kernel) // 2
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).view_as(x)


def disk(radius: float, smooth: float) -> Tensor:
    """A kernel of equal weights within `radius` pixels, convolved with a small Gaussian of deviation `smooth`.

    float32, `k k` with k odd; its sum is 1. The Gaussian is 3 pixels wide, 5 for radii above 8, like the authors', and
    wider only where scaled lengths need it.
    """
    reach = max(1 + (radius > 8), math.ceil(1.5 * smooth))
    t = torch.arange(-math.floor(radius) - reach, math.floor(radius) + reach + 1)
    flat = (t.square() + t[:, None].square() <= radius**2).float()
    line = torch.softmax(-0.5 * (torch.arange(-reach, reach + 1) / max(smooth, 1e-6)).square(), 0)
    found = F.conv2d((flat / flat.sum())[None, None], torch.outer(line, line)[None, None], padding=reach)
    return found[0, 0]


def glass_blur(x: Tensor, c: tuple[float, int, int], scale: float, draws: Draws) -> Tensor:
    """Frosted glass: a blur, rounds in which every pixel is replaced by a near one, and a blur.

    The parameters: the deviation of the blur in pixels, the largest distance of a near pixel, and the rounds. The
    authors mean to exchange two pixels, but their code, which made the sets, copies one over the other.
    """
    b, side = len(x), x.shape[-1]
    reach = max(1, round(c[1] * scale))
    x = (gaussian(x, c[0] * scale) * 255).floor_() / 255
    order = np.tile(np.arange(side * side), (b, 1))
    rows = np.arange(b)
    positions = range(side - reach, reach, -1)
    for k in range(c[2]):
        u = draws.uniform(f"steps {k}", 2 * len(positions) ** 2).cpu()
        # From -reach to reach - 1, as in the authors' code.
        steps = (u * (2 * reach)).floor_().long().view(b, -1, 2).sub_(reach).numpy()
        shift = np.ascontiguousarray((steps[..., 0] * side + steps[..., 1]).T)
        for i, (h, w) in enumerate((h, w) for h in positions for w in positions):
            here = h * side + w
            order[:, here] = order[rows, here + shift[i]]
    shuffled = x.flatten(2).gather(2, torch.from_numpy(order).to(x.device)[:, None].expand(-1, 3, -1))
    return gaussian(shuffled.view_as(x), c[0] * scale)


def motion_blur(x: Tensor, c: tuple[float, float], scale: float, draws: Draws) -> Tensor:
    """A moving camera: half a Gaussian along a line at up to 45 degrees, with a reach and a deviation in pixels."""
    return smear(x, c[0] * scale, c[1] * scale, draws.uniform("angle", 1, -45, 45)[:, 0])


def smear(x: Tensor, radius: float, sigma: float, angle: Tensor) -> Tensor:
    """Each pixel averaged with those along a line that starts at it, the border repeated, as ImageMagick does it.

    Args:
        x: float32, `b c s s`.
        radius: radius in pixels: there are 2 * ceil(radius) + 1 points, a pixel apart.
        sigma: deviation of their Gaussian weights, which are largest at the pixel itself.
        angle: float32, `b`, in degrees, from the axis to the right, downwards.
    """
    side, points = x.shape[-1], 2 * math.ceil(radius) + 1
    t = torch.arange(points)
    weights = torch.softmax(-0.5 * (t / max(sigma, 1e-6)).square(), 0).tolist()
    theta = angle.double().cpu().deg2rad()[:, None]
    down, right = ((t * f - 0.5).ceil().long().tolist() for f in (theta.sin(), theta.cos()))
    reach = points - 1
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    out = torch.zeros_like(x)
    for i in range(len(x)):
        for dy, dx, weight in zip(down[i], right[i], weights, strict=True):
            top, left = reach + dy, reach + dx
            out[i].add_(padded[i, :, top : top + side, left : left + side], alpha=weight)
    return out


def zoom_blur(x: Tensor, c: tuple[float, float], scale: float, draws: Draws) -> Tensor:
    """A moving zoom: the mean of the image and its zooms from 1 to the first parameter, in steps of the second."""
    factors = np.arange(1, *c).tolist()
    return (x + torch.stack([zoom(x, f) for f in factors]).sum(0)) / (len(factors) + 1)


def zoom(x: Tensor, factor: float) -> Tensor:
    """The center of the images, `b c s s`, magnified by a factor of 1 or more, bilinearly from corner to corner."""
    side = x.shape[-1]
    seen = math.ceil(side / factor)
    top = (side - seen) // 2
    grown = round(seen * factor)
    found = F.interpolate(
        x[..., top : top + seen, top : top + seen], size=(grown, grown), mode="bilinear", align_corners=True
    )
    trim = (grown - side) // 2
    return found[..., trim : trim + side, trim : trim + side]


def snow(x: Tensor, c: tuple[float, ...], scale: float, draws: Draws) -> Tensor:
    """Falling snow: bright spots of magnified noise, blurred by motion, on a paler image.

    The parameters: mean and deviation of the noise, its magnification, the threshold below which it is no flake, reach
    and deviation of the motion in pixels, and the share of the image that is not paled.
    """
    mean, std, factor, threshold, radius, sigma, rest = c
    b, side = len(x), x.shape[-1]
    normal = torch.erfinv(2 * draws.uniform("flakes", side * side).double() - 1 + 2**-24) * math.sqrt(2)
    flakes = zoom((mean + std * normal).float().view(b, 1, side, side), factor)
    flakes = torch.where(flakes < threshold, 0.0, flakes.clamp(0, 1))
    flakes = smear(flakes, radius * scale, sigma * scale, draws.uniform("angle", 1, -135, -45)[:, 0])
    gray = (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    pale = rest * x + (1 - rest) * torch.maximum(x, gray * 1.5 + 0.5)
    return pale + flakes + flakes.rot90(2, (2, 3))


def fog(x: Tensor, c: tuple[float, float], scale: float, draws: Draws) -> Tensor:
    """A fractal cloud with a brightness and a decay; a low decay makes it rough. The brightest value stays the same."""
    amount, decay = c
    side = x.shape[-1]
    cloud = plasma(draws, 2 ** math.ceil(math.log2(side)), decay)[:, None, :side, :side]
    white = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * cloud) * white / (white + amount)


def plasma(draws: Draws, side: int, decay: float) -> Tensor:
    """Clouds by the diamond-square algorithm (Fournier et al. 1982) on a torus: float32, `b side side`, in [0, 1].

    Args:
        draws: draws of the heights.
        side: a power of two.
        decay: heights fall by its square whenever the step is halved.
    """
    b, device = len(draws.index), draws.index.device
    grid = torch.zeros(b, side, side, device=device)
    step, height = side, 1.0

    def around(name: str, *four: Tensor) -> Tensor:
        n = side // step
        return torch.stack(four).mean(0) + height * draws.uniform(f"{name} {step}", n * n, -1, 1).view(b, n, n)

    while step >= 2:
        half = step // 2
        corners = grid[:, ::step, ::step].clone()
        right, below = corners.roll(-1, 2), corners.roll(-1, 1)
        middles = around("square", corners, right, below, right.roll(-1, 1))
        grid[:, half::step, half::step] = middles
        grid[:, ::step, half::step] = around("across", corners, right, middles, middles.roll(1, 1))
        grid[:, half::step, ::step] = around("down", corners, below, middles, middles.roll(1, 2))
        step, height = half, height / decay**2
    grid -= grid.amin((1, 2), keepdim=True)
    return grid / grid.amax((1, 2), keepdim=True).clamp(min=1e-12)


def brightness(x: Tensor, amount: float, scale: float, draws: Draws) -> Tensor:
    """Raise HSV's value, which is the largest channel; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    # Channels keep their ratios. Black becomes gray.
    return torch.where(value > 0, x / value.clamp(min=1e-12), 1.0) * (value + amount).clamp(0, 1)


def contrast(x: Tensor, factor: float, scale: float, draws: Draws) -> Tensor:
    """Move every channel toward its mean."""
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def elastic(x: Tensor, c: tuple[float, float, float], scale: float, draws: Draws) -> Tensor:
    """A random affine map, and then smooth random displacements.

    The parameters, all in pixels: the length of the displacements (times smoothed uniform noise in [-1, 1]), the
    deviation of the Gaussian that smooths the noise, and the largest move of each of the three points that make the
    affine map.
    """
    far, sigma, moved = (v * scale for v in c)
    b, side = len(x), x.shape[-1]
    center, third = side // 2, side // 3
    points = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64) * third + center
    to = points + draws.uniform("points", 6, -1, 1).double().view(b, 3, 2).cpu() * moved
    one = torch.ones(b, 3, 1, dtype=torch.float64)
    # The moved points as rows (x, y, 1), times this matrix, are the points that they came from.
    back = torch.linalg.solve(torch.cat([to, one], 2), points.expand(b, -1, -1)).to(x)
    grid = torch.arange(side, device=x.device, dtype=x.dtype)
    across, down = grid.expand(side, side), grid[:, None].expand(side, side)
    positions = torch.stack([across, down, torch.ones_like(across)], 2).view(1, -1, 3) @ back
    # Reflected about the centers of the outermost pixels.
    x = F.grid_sample(
        x, (2 * positions / (side - 1) - 1).view(b, side, side, 2), padding_mode="reflection", align_corners=True
    )
    noise = draws.uniform("displacements", 2 * side * side, -1, 1).view(b, 2, side, side)
    noise = gaussian(noise, sigma, reflect=True, truncate=3.0) * far
    positions = torch.stack([across + noise[:, 0], down + noise[:, 1]], 3)
    # Reflected about the outermost pixels' edges.
    return F.grid_sample(x, (2 * positions + 1) / side - 1, padding_mode="reflection", align_corners=False)


def gaussian(x: Tensor, sigma: float, reflect: bool = False, truncate: float = 4.0) -> Tensor:
    """Gaussian filter with any deviation, like SciPy's: `... s s`, cut off at `truncate` deviations.

    At the border the outermost pixel is repeated, or the image reflected about the outermost pixels' edges.
    """
    side = x.shape[-1]
    reach = int(truncate * sigma + 0.5)
    if reach == 0:
        return x
    t = torch.arange(-reach, reach + 1)
    weights = torch.softmax(-0.5 * (t.double() / sigma).square(), 0)
    taps = torch.arange(side)[:, None] + t
    if reflect:
        taps = taps.remainder(2 * side)
        taps = torch.minimum(taps, 2 * side - 1 - taps)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    matrix.scatter_add_(1, taps.clamp_(0, side - 1), weights.expand(side, -1))
    matrix = matrix.to(x)
    return matrix @ x @ matrix.T


def pixelate(x: Tensor, factor: float, scale: float, draws: Draws) -> Tensor:
    """Fewer pixels: resampled to a fraction of the side, and back, by box filters like PIL's."""
    side = x.shape[-1]
    less = max(1, int(side * factor))
    down, up = box(side, less).to(x), box(less, side).to(x)
    small = ((down @ x @ down.T) * 255).round_() / 255
    return up @ small @ up.T


def box(before: int, after: int) -> Tensor:
    """Weights of PIL's box filter from `before` to `after` pixels: float32, `after before`."""
    scale = before / after
    center = (torch.arange(after, dtype=torch.float64)[:, None] + 0.5) * scale
    offset = (torch.arange(before) + 0.5 - center) / max(scale, 1.0)
    weights = ((offset > -0.5) & (offset <= 0.5)).float()
    return weights / weights.sum(1, keepdim=True)


def jpeg(pixels: Tensor, quality: Tensor) -> Tensor:
    """Images saved as JPEG and read again: uint8 `b 3 h w`, each with its own quality, int64 `b`."""
    found = []
    for image, q in zip(pixels.cpu().permute(0, 2, 3, 1).numpy(), quality.tolist(), strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=q)
        found.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous().to(pixels.device)


_OPERATIONS: dict[str, Callable[[Tensor, Any, float, Draws], Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic": elastic,
    "pixelate": pixelate,
}

KINDS = (*_OPERATIONS, "jpeg")
"""Names of the corruptions, in the paper's order."""
