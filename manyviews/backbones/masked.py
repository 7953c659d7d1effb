"""Networks with a pyramid of maps that see a part of an image. They hide places of their last map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manyviews.errors import UserError


def hides_places(model: Any) -> bool:
    """Whether `partial_map` takes this model: timm's ConvNeXt and Swin, of either version."""
    return _is_convnext(model) or _is_swin(model)


def skips_places(model: Any) -> bool:
    """Whether this model hides places by skipping them, without tokens: timm's ConvNeXt."""
    return _is_convnext(model)


def place_size(model: Any) -> int:
    """Side in pixels of a place of the last map."""
    found: int = model.feature_info[-1]["reduction"]
    return found


def token_dim(model: Any) -> int:
    """Width of the token that replaces hidden places of a Swin: that of its first map."""
    found: int = model.patch_embed.proj.out_channels
    return found


def partial_map(model: Any, x: Tensor, keep: Tensor | None, hide: Tensor | None, token: Tensor | None) -> Tensor:
    """The last map of a network that sees some places of an image.

    Convolutions skip hidden places: a map is zero there before each depthwise convolution, which then gives what a
    sparse convolution would (ConvNeXt V2, Woo et al. 2023), and the global response norm counts visible places alone.
    Windows of tokens see a token in place of each hidden one (SimMIM, Xie et al. 2022), and of `keep` a smaller image
    is made (UM-MAE, Li et al. 2022).

    Args:
        model: a model that `hides_places`.
        x: images, `b c h w`.
        keep: int64, `b n/4`, one of each 2 x 2 places, cell by cell; for Swin alone.
        hide: bool, `b n`, row by row.
        token: `token_dim`, for Swin alone.

    Returns:
        `b d h' w'` of a ConvNeXt, `b h' w' d` of a Swin; a quarter of the places with `keep`.

    Raises:
        UserError: the mask is not one of the image's places, or the network cannot hide them in this way.
    """
    side = place_size(model)
    rows, columns = x.shape[2] // side, x.shape[3] // side
    if x.shape[2] % side or x.shape[3] % side or (hide is not None and hide.shape[1] != rows * columns):
        raise UserError(
            f"Places of {side} pixels do not tile an image of {x.shape[2]} x {x.shape[3]}: change the view's size."
        )
    if _is_convnext(model):
        if keep is not None or token is not None or hide is None:
            raise UserError("A ConvNeXt skips hidden patches, without tokens: take fcmae.")
        return _convolved(model, x, hide.view(-1, 1, rows, columns))
    if keep is not None:
        if rows % 2 or columns % 2 or keep.shape[1] * 4 != rows * columns:
            raise UserError("A Swin drops three of each 2 x 2 patches: set method.masking=Uniform().")
        if not model.layers[0].blocks[0].dynamic_mask:
            raise UserError("A Swin that sees smaller images needs --set backbone.strict_img_size=False.")
        hide = None if hide is None else hide.gather(1, keep)
        rows, columns = rows // 2, columns // 2
        x = _compact(x, keep, side)
    x = model.patch_embed(x)
    if hide is not None:
        assert token is not None, "Patches are hidden by a token."
        x = torch.where(_enlarged(hide.view(-1, rows, columns, 1), x, (1, 2)), token.to(x.dtype), x)
    last: Tensor = model.norm(model.layers(x))
    return last


def _is_convnext(model: Any) -> bool:
    from timm.models.convnext import ConvNeXt

    return isinstance(model, ConvNeXt)


def _is_swin(model: Any) -> bool:
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    return isinstance(model, (SwinTransformer, SwinTransformerV2))


def _enlarged(mask: Tensor, like: Tensor, dims: tuple[int, int]) -> Tensor:
    """A mask of places for a larger map, whose rows and columns are in these dimensions."""
    for dim in dims:
        mask = mask.repeat_interleave(like.shape[dim] // mask.shape[dim], dim)
    return mask


def _compact(x: Tensor, keep: Tensor, side: int) -> Tensor:
    """Images of half the height and width, of the squares of `side` pixels that are kept."""
    b, c, h, w = x.shape
    squares = x.view(b, c, h // side, side, w // side, side).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    squares = squares[torch.arange(b, device=x.device)[:, None], keep]
    squares = squares.view(b, h // side // 2, w // side // 2, c, side, side)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h // 2, w // 2)


def _convolved(model: Any, x: Tensor, hidden: Tensor) -> Tensor:
    """The last map, zero in hidden places (bool, `b 1 h' w'`), of a ConvNeXt whose visible places see no others."""
    steps = [model.stem[0], *(stage.downsample[1] for stage in model.stages if len(list(stage.downsample.children())))]
    if any(step.kernel_size != step.stride for step in steps):
        raise UserError("A ConvNeXt whose stem or downsampling overlaps cannot hide patches: leave its stem as it is.")
    x = model.stem(x)
    for stage in model.stages:
        x = stage.downsample(x)
        seen = ~_enlarged(hidden, x, (2, 3))
        for block in stage.blocks:
            x = _block(block, x * seen, seen)
    last: Tensor = model.norm_pre(x * seen)
    return last


def _block(block: Any, x: Tensor, seen: Tensor) -> Tensor:
    """A block of timm's, with only visible places in the statistics of its global response norm, if it has one."""
    if not hasattr(block.mlp, "grn"):
        found: Tensor = block(x)
        return found
    y = block.conv_dw(x)
    if not block.use_conv_mlp:
        y, seen = y.permute(0, 2, 3, 1), seen.permute(0, 2, 3, 1)
    mlp = block.mlp
    y = mlp.drop1(mlp.act(mlp.fc1(block.norm(y))))
    y = mlp.drop2(mlp.fc2(mlp.grn(y * seen)))
    if not block.use_conv_mlp:
        y = y.permute(0, 3, 1, 2)
    if block.gamma is not None:
        y = y * block.gamma.view(1, -1, 1, 1)
    added: Tensor = block.drop_path(y) + block.shortcut(x)
    return added
