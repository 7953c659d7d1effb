"""Heads: what is put on the encoder while training, and thrown away afterwards."""

from manyviews.heads.decoder import Decoder
from manyviews.heads.mlp import mlp
from manyviews.heads.predictors import Predictors, others, pairs, task_weights
from manyviews.heads.prototypes import DINOHead, Prototypes

__all__ = ["DINOHead", "Decoder", "Predictors", "Prototypes", "mlp", "others", "pairs", "task_weights"]
