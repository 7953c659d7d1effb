"""Backbones: any architecture of timm, behind the contract that methods and evaluations need."""

from manyviews.backbones.encoder import Encoder, names
from manyviews.backbones.outside import ExternalEncoder, reinitialized
from manyviews.backbones.positions import sincos

__all__ = ["Encoder", "ExternalEncoder", "names", "reinitialized", "sincos"]
