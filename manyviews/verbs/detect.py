"""Evaluate an encoder by fine-tuning a detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manyviews import distributed
from manyviews.evaluation import dense
from manyviews.evaluation.dense import Dense
from manyviews.verbs._dense import evaluated
from manyviews.weights import Pretrained


def detect(
    weights: str | Path | Pretrained,
    data: str | Path | Sequence[str | Path],
    *,
    baseline: bool = False,
    **options: Any,
) -> Dense:
    """Fine-tune a Faster or Mask R-CNN on a copy of the encoder, and report COCO's average precision.

    Processes that `torchrun` started share each batch and the test images, and all return the same result.

    Args:
        weights: a run folder or weights: see `manyviews.load`.
        data: a folder, or several that are one set: see `manyviews.evaluation.dense.detect`.
        baseline: whether to evaluate an untrained encoder of the same architecture too.
        options: see `manyviews.evaluation.dense.detect`.

    Raises:
        UserError: bad input, or an encoder without maps of features.
    """
    distributed.start()
    return evaluated(dense.detect, weights, data, baseline, options)
