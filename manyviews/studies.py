"""Verbs that look at an encoder, or with it, and write what they found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manyviews import checkpoint
from manyviews.data import open_source
from manyviews.evaluation import diagnosis
from manyviews.evaluation import duplicates as copies
from manyviews.evaluation.diagnosis import Diagnosis
from manyviews.pretrained import Pretrained
from manyviews.progress import progress
from manyviews.run import device_here, features, loaded_from, new_file


def diagnose(weights: str | Path | Pretrained, data: Any, *, images: int = 10_000, seed: int = 0) -> Diagnosis:
    """What an encoder's features are like, from unlabeled images: how many dimensions they use, and how they lie.

    Args:
        weights: a run folder or weights: see `manyviews.load`.
        data: images: see `manyviews.data.open_source`.
        images: to look at, at most.
        seed: of the views, and of the untrained encoder to compare with.
    """
    loaded = loaded_from(weights)
    with progress("diagnose") as update:
        return diagnosis.diagnose(
            loaded.encoder,
            open_source(data),
            test_size=loaded.test_size,
            mean=loaded.mean,
            std=loaded.std,
            device=device_here(),
            seed=seed,
            images=images,
            progress=update,
        )


def duplicates(
    weights: str | Path | Pretrained, data: Any, out: str | Path, threshold: float = 0.95
) -> list[copies.Group]:
    """List groups of images that are nearly the same in a CSV file: `group`, `id`, `keep`, `similarity`.

    Args:
        weights: a run folder or weights: see `manyviews.load`.
        data: images: see `manyviews.data.open_source`.
        out: a new file.
        threshold: cosine similarity of features from which images count as the same, in (0, 1).

    Returns:
        The groups: see `manyviews.evaluation.duplicates`.

    Raises:
        UserError: bad input, `out` exists, or the threshold is so low that nearly everything is the same.
    """
    out = new_file(out)
    groups = copies.duplicates(features(weights, open_source(data), "duplicates"), threshold)
    checkpoint.write_text(out, copies.to_csv(groups))
    return groups
