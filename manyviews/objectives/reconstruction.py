"""Reconstruction: rebuild the hidden patches (MAE, He et al. 2022; SimMIM, Xie et al. 2022), or features of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import UserError
from manyviews.objectives._precision import in_float32


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into square patches.

    Args:
        images: `b 3 h w`.
        patch_size: pixels, a divisor of h and w.

    Returns:
        `b n patch_size**2*3`: patches row by row; within a patch pixels row by row, each with its channels.

    Raises:
        UserError: the patches do not tile the image.
    """
    b, c, h, w = images.shape
    if h % patch_size or w % patch_size:
        raise UserError(f"Patches of {patch_size} pixels do not tile an image of {h} x {w}: change the view's size.")
    x = images.reshape(b, c, h // patch_size, patch_size, w // patch_size, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch_size**2 * c)


def unpatchify(patches: Tensor, patch_size: int, size: tuple[int, int]) -> Tensor:
    """The images, `b c h w` of height and width `size`, that `patchify` cuts into these patches."""
    rows, columns = size[0] // patch_size, size[1] // patch_size
    x = patches.reshape(len(patches), rows, columns, patch_size, patch_size, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, *size)


def restored(pred: Tensor, target: Tensor) -> Tensor:
    """Predicted standardized pixels with the mean and deviation of the true patches, to look at.

    Args:
        pred: `b n p`.
        target: true pixels, `b n p`, from `patchify`.

    Returns:
        `b n p`.
    """
    mean, std = _statistics(target)
    return pred * std.expand_as(target) + mean


def _statistics(target: Tensor) -> tuple[Tensor, Tensor]:
    return target.mean(-1, keepdim=True), (target.var(-1, keepdim=True) + 1e-6).sqrt()


@in_float32
def masked_mse(pred: Tensor, target: Tensor, mask: Tensor, *, normalize: bool = True) -> Tensor:
    """The squared error of hidden patches, mean over their pixels and over the patches.

    Args:
        pred: predicted pixels, `b n p`.
        target: true pixels, `b n p`, from `patchify`; receives no gradient.
        mask: `b n`, true where a patch was hidden; other predictions do not count.
        normalize: standardize the true pixels within their patch (section 4.1), with the unbiased variance plus 1e-6 as
            in the authors' code.

    Returns:
        A scalar, at least 0; (p - 1) / p, nearly 1, for a prediction of 0 for standardized patches.
    """
    target = target.detach()
    if normalize:
        mean, std = _statistics(target)
        target = (target - mean) / std
    error = (pred - target).square().mean(-1)
    return (error * mask).sum() / mask.sum().clamp(min=1)


@in_float32
def masked_l1(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The absolute error of hidden patches, mean over their pixels and over the patches (SimMIM, Xie et al. 2022).

    Args:
        pred: predicted pixels, `b n p`.
        target: true pixels, `b n p`, from `patchify`; receives no gradient.
        mask: `b n`, true where a patch was hidden; other predictions do not count.

    Returns:
        A scalar, at least 0.
    """
    error = (pred - target.detach()).abs().mean(-1)
    return (error * mask).sum() / mask.sum().clamp(min=1)


@in_float32
def latent_error(
    pred: Tensor, target: Tensor, mask: Tensor | None = None, *, beta: float | None = 1.0, normalize: bool = True
) -> Tensor:
    """The distance of predicted features from a target network's, mean over numbers.

    I-JEPA (Assran et al. 2023), data2vec (Baevski et al. 2022). I-JEPA's paper has the squared distance; its authors
    trained with the smooth one, and with targets of unit variance.

    Args:
        pred: `... d`.
        target: `... d`; receives no gradient.
        mask: bool, `b m`, true for the patches of `b m d` that count; the mean is over each image's, then over images,
            and an image without any counts as zero. All if None.
        beta: the error where the smooth L1 distance turns from square to straight; None for the squared distance.
        normalize: standardize the target over d.

    Returns:
        A scalar, at least 0.
    """
    target = target.detach()
    if normalize:
        target = F.layer_norm(target, target.shape[-1:])
    if beta is None:
        each = F.mse_loss(pred, target, reduction="none")
    else:
        each = F.smooth_l1_loss(pred, target, reduction="none", beta=beta)
    if mask is None:
        return each.mean()
    return ((each.mean(-1) * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def layer_average(layers: Sequence[Tensor], over: Literal["features", "patches"]) -> Tensor:
    """data2vec's targets: the mean of a target network's normalized layers, standardized over d, without gradient.

    Args:
        layers: patch features of each layer, `b n d` each.
        over: what each layer is standardized over: the features of a patch (data2vec, Baevski et al. 2022), or the
            patches of an image, feature by feature (data2vec 2.0, Baevski et al. 2023).

    Returns:
        Float32, or float64 if the layers are, `b n d`.
    """
    with torch.no_grad(), torch.autocast(layers[0].device.type, enabled=False):
        total = torch.zeros_like(layers[0], dtype=torch.promote_types(layers[0].dtype, torch.float32))
        for layer in layers:
            x = layer.to(total.dtype)
            if over == "features":
                total += F.layer_norm(x, x.shape[-1:])
            else:
                total += F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
        return F.layer_norm(total / len(layers), total.shape[-1:])
