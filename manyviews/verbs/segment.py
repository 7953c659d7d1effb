"""Evaluate patch features by linear segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manyviews.evaluation import dense
from manyviews.evaluation.dense import Dense
from manyviews.verbs._dense import evaluated
from manyviews.weights import Pretrained


def segment(weights: str | Path | Pretrained, data: str | Path, *, baseline: bool = True, **options: Any) -> Dense:
    """Train a linear layer on frozen patch features to segment images, and report its mIoU.

    Args:
        weights: a run folder or weights: see `manyviews.load`.
        data: a folder: see `manyviews.evaluation.dense.segment`.
        baseline: whether to evaluate an untrained encoder of the same architecture too.
        options: see `manyviews.evaluation.dense.segment`.

    Raises:
        UserError: bad input, or an encoder without maps of features.
    """
    return evaluated(dense.segment, weights, data, baseline, options)
