"""Describe an encoder's features without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manyviews.evaluation.contract import check_seed
from manyviews.evaluation.unlabeled import diagnosis
from manyviews.evaluation.unlabeled.diagnosis import Diagnosis
from manyviews.progress import progress
from manyviews.verbs._common import loaded, opened, preprocessing, seen_by
from manyviews.weights import Pretrained


def diagnose(weights: str | Path | Pretrained, data: Any, *, images: int = 10_000, seed: int = 0) -> Diagnosis:
    """Describe an encoder's features on unlabeled images: how many dimensions they use, and how they are spread.

    Args:
        weights: a run folder or weights: see `manyviews.load`.
        data: images: see `manyviews.data.open_source`.
        images: how many images to use at most.
        seed: seed of the views, and of the untrained encoder to compare with.

    Raises:
        UserError: bad input.
    """
    check_seed(seed)
    found = loaded(weights)
    (source,) = seen_by(found, opened(data))
    with progress("diagnose") as update:
        return diagnosis.diagnose(
            found.encoder,
            source,
            seed=seed,
            images=images,
            progress=update,
            **preprocessing(found),
        )
