"""Heads: what is put on the encoder while training, and thrown away afterwards."""

from manyviews.backbones.pooling import GeM
from manyviews.heads.decoder import Decoder, GridDecoder
from manyviews.heads.gaussian import GaussianProjector
from manyviews.heads.masks import Masks
from manyviews.heads.mlp import mlp
from manyviews.heads.places import MapDecoder
from manyviews.heads.predictors import Predictors, Sharing, comparable, others, task_weights
from manyviews.heads.prototypes import DINOHead, Prototypes
from manyviews.heads.text import TextEncoder
from manyviews.heads.watch import Watch

__all__ = [
    "DINOHead",
    "Decoder",
    "GaussianProjector",
    "GeM",
    "GridDecoder",
    "MapDecoder",
    "Masks",
    "Predictors",
    "Prototypes",
    "Sharing",
    "TextEncoder",
    "Watch",
    "comparable",
    "mlp",
    "others",
    "task_weights",
]
