"""Layers of a projector that stay with the encoder: fine-tuning begins inside of it (SimCLR v2, Chen et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from manyviews.errors import UserError

_LAYERS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "batch_norm": nn.BatchNorm1d,
    "layer_norm": nn.LayerNorm,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}


def described(layers: Iterable[nn.Module]) -> tuple[tuple[Any, ...], ...]:
    """Layers as data: such as `(("linear", 512, 2048, False), ("batch_norm", 2048, True), ("relu",))`.

    Raises:
        UserError: a layer of another kind.
    """
    found: list[tuple[Any, ...]] = []
    for layer in layers:
        if type(layer) is nn.Linear:
            found.append(("linear", layer.in_features, layer.out_features, layer.bias is not None))
        elif isinstance(layer, nn.BatchNorm1d | nn.SyncBatchNorm):
            found.append(("batch_norm", layer.num_features, layer.affine))
        elif isinstance(layer, nn.LayerNorm):
            found.append(("layer_norm", layer.normalized_shape[0]))
        elif isinstance(layer, nn.ReLU | nn.GELU):
            found.append((type(layer).__name__.lower(),))
        elif not isinstance(layer, nn.Identity):
            raise UserError(f"A projector with a {type(layer).__name__} cannot be cut: leave out --from-head-layer.")
    return tuple(found)


def made(neck: Sequence[Sequence[Any]]) -> nn.Sequential:
    """The layers that `described` describes, with fresh weights."""
    layers: list[nn.Module] = []
    for kind, *sizes in neck:
        if kind == "batch_norm":
            layers.append(nn.BatchNorm1d(sizes[0], affine=sizes[1]))
        else:
            layers.append(_LAYERS[kind](*sizes))
    return nn.Sequential(*layers)


def place_of(model: nn.Module) -> str | None:
    """timm's name of a model's classifier, if it has one and it is empty."""
    place: Any = getattr(model, "pretrained_cfg", {}).get("classifier")
    parts = dict(model.named_modules())
    return place if isinstance(place, str) and isinstance(parts.get(place), nn.Identity) else None


def attach(model: nn.Module, neck: Sequence[Sequence[Any]], name: str) -> int:
    """Put the layers in the place of a timm model's classifier. Returns the dimensions of what they give.

    Raises:
        UserError: the model has no such place.
    """
    place = place_of(model)
    if place is None:
        raise UserError(f"{name} has no single classifier, in whose place layers of a projector could stay.")
    model.set_submodule(place, made(neck))
    return int(next(sizes[1] for kind, *sizes in reversed(neck) if kind == "linear"))
