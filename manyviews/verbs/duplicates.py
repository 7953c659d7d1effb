"""List images that are nearly the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manyviews import checkpoint, machine
from manyviews.data.layout import ALL
from manyviews.evaluation.unlabeled import duplicates as copies
from manyviews.verbs._common import features, new_file, opened
from manyviews.weights import Pretrained


def duplicates(
    weights: str | Path | Pretrained, data: Any, out: str | Path, threshold: float = 0.95
) -> list[copies.Group]:
    """List groups of images that are nearly the same in a CSV file: `group`, `id`, `keep`, `similarity`.

    Args:
        weights: a run folder or weights: see `manyviews.load`.
        data: images: see `manyviews.data.open_source`.
        out: a new file.
        threshold: cosine similarity of features above which two images count as the same, in (0, 1).

    Returns:
        The groups: see `manyviews.evaluation.unlabeled.duplicates`.

    Raises:
        UserError: bad input, `out` exists, or the threshold is so low that nearly all images are the same.
    """
    out = new_file(out)
    groups = copies.duplicates(features(weights, opened(data, split=ALL), "duplicates"), threshold, machine.device())
    checkpoint.write_text(out, copies.to_csv(groups))
    return groups
