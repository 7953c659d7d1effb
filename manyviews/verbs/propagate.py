"""Evaluate patch features by following objects through videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manyviews.evaluation import dense
from manyviews.evaluation.dense import Dense
from manyviews.verbs._dense import evaluated
from manyviews.weights import Pretrained


def propagate(weights: str | Path | Pretrained, data: str | Path, *, baseline: bool = True, **options: Any) -> Dense:
    """Follow the objects of a video's first frame by nearest patch features, and report DAVIS's J&F.

    Args:
        weights: a run folder or weights: see `manyviews.load`.
        data: a folder: see `manyviews.evaluation.dense.propagate`.
        baseline: whether to evaluate an untrained encoder of the same architecture too.
        options: see `manyviews.evaluation.dense.propagate`.

    Raises:
        UserError: bad input, or an encoder without maps of features.
    """
    return evaluated(dense.propagate, weights, data, baseline, options)
