"""How good an encoder is for tasks about every position of an image: segmentation, detection, propagation."""

from manyviews.evaluation.dense.detection import average_precision, detect
from manyviews.evaluation.dense.propagation import boundary, propagate, propagate_labels, region
from manyviews.evaluation.dense.report import Dense
from manyviews.evaluation.dense.segmentation import segment

__all__ = [
    "Dense",
    "average_precision",
    "boundary",
    "detect",
    "propagate",
    "propagate_labels",
    "region",
    "segment",
]
