"""Kinds of features that probes take from an encoder, and features of every layer."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from manyviews.backbones.encoder import Encoder
from manyviews.backbones.external import ExternalEncoder
from manyviews.errors import UserError, unknown

Kind = Literal["pooled", "last4", "cls_mean"]
"""Kinds of features: see `represent`."""


def represent(encoder: Encoder, x: Tensor, kind: Kind = "pooled") -> Tensor:
    """Features of a kind, `b width(encoder, kind)`, for probes.

    The kinds of vision transformers are DINO's (Caron et al. 2021). Each block's tokens pass the final norm, which some
    networks have after the pool (EVA).

    Args:
        encoder: gives the features.
        x: `b channels h w`.
        kind: "pooled" is `encoder(x)`. "last4" concatenates the class tokens of the last four blocks, the last block's
            at the end: for ViT-S and smaller. "cls_mean" concatenates the last block's class token and the mean of its
            patch tokens: for ViT-B and larger.

    Raises:
        UserError: the backbone does not have them, or patches do not tile the image.
    """
    width(encoder, kind)
    if kind == "pooled":
        pooled: Tensor = encoder(x)
        return pooled
    found = encoder.features(x, layers=4 if kind == "last4" else 1)
    before, after = encoder.model.norm, getattr(encoder.model, "fc_norm", nn.Identity())
    if kind == "cls_mean":
        return torch.cat([after(found.prefix[:, 0]), after(found.patches.mean(1))], 1)
    return torch.cat([after(before(layer.prefix[:, 0])) for layer in found.layers], 1)


def width(encoder: Encoder | ExternalEncoder, kind: Kind) -> int:
    """Dimensions of `represent` of a kind.

    Raises:
        UserError: no such kind, or the backbone is not a vision transformer with a class token and, for "last4",
            four blocks.
    """
    if kind not in get_args(Kind):
        raise unknown("kind of features", kind, get_args(Kind))
    if kind == "pooled":
        return encoder.embed_dim
    if isinstance(encoder, ExternalEncoder):
        raise UserError(f"{encoder.name} cannot give features '{kind}' because it is a bare module: take 'pooled'.")
    vit = encoder.transformer(f"give features '{kind}'")
    if vit.cls_token is None:
        raise UserError(f"{encoder.name} cannot give features '{kind}' because it has no class token: take 'pooled'.")
    blocks = len(vit.blocks)
    if kind == "last4" and blocks < 4:
        raise UserError(f"{encoder.name} cannot give features 'last4' because it has {blocks} blocks: take 'cls_mean'.")
    return encoder.patch_dim * (4 if kind == "last4" else 2)


def patch_features(encoder: Encoder, x: Tensor) -> Tensor:
    """Features of each patch or place of the last map, row by row: `b channels h w` to `b n patch_dim`.

    Raises:
        UserError: patches do not tile the image, or the network gives several maps (CrossViT).
    """
    found = encoder.features(x).patches
    if not found.shape[1]:
        raise UserError(f"{encoder.name} has no single map of features: choose another backbone.")
    return found


def by_layer(encoder: Encoder, x: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor | None, Tensor]]]:
    """Pooled features, and those of every block or stage, from the first to the last, in one forward pass.

    Where an encoder pools by a class token, the tokens of every block pass the final norm, as in `represent`.

    Args:
        encoder: gives the features.
        x: `b channels h w`.

    Returns:
        pooled features, `b embed_dim`; and by timm's name of the layer ("layer1", "blocks.0") its class token, `b d`,
        None where the encoder does not pool by one, and its mean over all positions, `b d`.

    Raises:
        UserError: patches do not tile the image.
    """
    found = encoder.features(x, layers=len(encoder.layer_names))
    by_token = getattr(encoder.model, "global_pool", None) == "token" and found.layers[0].prefix.shape[1] > 0
    layers: dict[str, tuple[Tensor | None, Tensor]] = {}
    for name, layer in zip(encoder.layer_names, found.layers, strict=True):
        if by_token:
            norm = encoder.model.norm
            layers[name] = norm(layer.prefix)[:, 0], norm(layer.patches).mean(1)
        else:
            layers[name] = None, layer.patches.mean(1)
    return found.pooled, layers
