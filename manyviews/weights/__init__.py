"""Pretrained encoders in and out of files: our own, timm's, other libraries', ONNX."""

from manyviews.weights.export import FORMATS, Exported, write
from manyviews.weights.load import TIMM, Pretrained, load
from manyviews.weights.model import Model, Predictions
from manyviews.weights.recognize import Recognized, fetch, recognize
from manyviews.weights.segmenter import Segmenter

__all__ = [
    "FORMATS",
    "TIMM",
    "Exported",
    "Model",
    "Predictions",
    "Pretrained",
    "Recognized",
    "Segmenter",
    "fetch",
    "load",
    "recognize",
    "write",
]
