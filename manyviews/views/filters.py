"""What mixes neighboring pixels: blurs, sharpness and edges, with parameters of each image's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.views.geometry import resample_columns, resample_rows


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Convolve each image with a Gaussian, reflecting it at the borders, as torchvision's `gaussian_blur` does.

    Args:
        x: float32, `b c h w`.
        sigma: float32, `b`, standard deviations in pixels, positive.
        kernel: odd number of pixels on which the Gaussian is cut off and normalized; half of it, rounded down, is less
            than `h` and `w`.
    """
    h, w = x.shape[-2:]
    rows = _gaussian(sigma, kernel, h)
    columns = rows if h == w else _gaussian(sigma, kernel, w)
    return resample_rows(resample_columns(x, columns), rows)


def _gaussian(sigma: Tensor, kernel: int, side: int) -> Tensor:
    """The matrix that blurs a line of `side` pixels: float32, `b side side`."""
    offset = torch.arange(kernel, device=sigma.device) - kernel // 2
    weights = torch.softmax(-0.5 * (offset / sigma[:, None]).square(), 1)
    taps = (torch.arange(side, device=sigma.device)[:, None] + offset).abs()
    taps = (side - 1) - ((side - 1) - taps).abs()  # reflected at either end, without repeating the edge
    b = len(sigma)
    matrix = weights.new_zeros(b, side, side)
    return matrix.scatter_add_(2, taps.expand(b, -1, -1), weights[:, None].expand(-1, side, -1))


def motion_blur(x: Tensor, width: Tensor, angle: Tensor, direction: Tensor, kernel: int) -> Tensor:
    """Smear each image along a line, repeating it at the borders.

    Points of the line are a pixel apart, and each is shared bilinearly by the four pixels around it.

    Args:
        x: float32, `b c h w`.
        width: float32, `b`, odd numbers of points, at most `kernel`.
        angle: float32, `b`, of the line in degrees: 0 points to the right, 90 up.
        direction: float32, `b`, in [-1, 1]: how much heavier the end to which the line points is than its middle; 0 for
            an even line, negative for a heavier start.
        kernel: odd, the largest width.
    """
    t = torch.arange(kernel, device=x.device) - kernel // 2
    reach = (width[:, None] - 1) / 2
    weights = torch.where(t.abs() <= reach, 1 + direction[:, None] * t / reach.clamp(min=1), 0) / width[:, None]
    angle = angle.deg2rad()[:, None, None]
    # What moves right comes from the left, and rows are counted from the top down.
    columns, rows = ((1 - (t + t[:, None] * shift).abs()).clamp_(min=0) for shift in (angle.cos(), -angle.sin()))
    kernels = (rows * weights[..., None]).mT @ columns  # `b kernel kernel`
    padded = F.pad(x, (kernel // 2,) * 4, mode="replicate").transpose(0, 1)
    return F.conv2d(padded, kernels[:, None], groups=len(x)).transpose(0, 1)


def adjust_sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """0 gives a slightly blurred image, 1 the image, 2 a sharper one; as PIL and torchvision, which spare the border.

    Args:
        x: float32, `b c h w`, in [0, 1], at least 3 pixels high and wide.
        factor: float32, `b`.
    """
    out, inner = x.clone(), x[..., 1:-1, 1:-1]
    smooth = F.avg_pool2d(x, 3, 1).mul_(9 / 13).add_(inner, alpha=4 / 13)  # a kernel of 1, with 5 in the middle
    out[..., 1:-1, 1:-1] = torch.lerp(smooth, inner, factor[:, None, None, None]).clamp_(0, 1)
    return out


def sobel(x: Tensor) -> Tensor:
    """Length of each channel's gradient (Sobel and Feldman 1968), repeating the image at the borders.

    A step from black to white gives 1, to which steeper corners are cut; a ramp gives twice its slope per pixel.
    """
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across, down = x[..., 2:] - x[..., :-2], x[..., 2:, :] - x[..., :-2, :]
    across = (across[..., :-2, :] + across[..., 2:, :]).add_(across[..., 1:-1, :], alpha=2)
    down = (down[..., :-2] + down[..., 2:]).add_(down[..., 1:-1], alpha=2)
    return torch.hypot(across, down).div_(4).clamp_(max=1)
