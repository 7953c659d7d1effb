"""Backbones: every architecture of timm behind one contract."""

from manyviews.backbones.blocks import recompute_blocks
from manyviews.backbones.convolution import protect
from manyviews.backbones.encoder import Encoder, Features, Layer, names, per_channel, take
from manyviews.backbones.external import ExternalEncoder, reinitialized
from manyviews.backbones.positions import sincos
from manyviews.backbones.representation import Kind, by_layer, patch_features, represent, width

__all__ = [
    "Encoder",
    "ExternalEncoder",
    "Features",
    "Kind",
    "Layer",
    "by_layer",
    "names",
    "patch_features",
    "per_channel",
    "protect",
    "recompute_blocks",
    "reinitialized",
    "represent",
    "sincos",
    "take",
    "width",
]
