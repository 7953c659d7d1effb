"""Shared by segment, detect and propagate: the evaluation of an encoder and of an untrained one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from manyviews import distributed
from manyviews.backbones import Encoder
from manyviews.data import RGB
from manyviews.errors import UserError, say
from manyviews.evaluation import untrained
from manyviews.evaluation.contract import check_seed
from manyviews.evaluation.dense import Dense
from manyviews.progress import progress
from manyviews.verbs._common import loaded, preprocessing
from manyviews.weights import Pretrained


def evaluated(
    judge: Callable[..., Dense],
    weights: str | Path | Pretrained,
    data: str | Path | Sequence[str | Path],
    baseline: bool,
    options: Mapping[str, Any],
) -> Dense:
    """Evaluate an encoder with one of the functions of `evaluation.dense`, and an untrained one if asked.

    Raises:
        UserError: bad input, an encoder without maps of features, or weights that are not finite.
    """
    check_seed(options.get("seed", 0))
    found = loaded(weights)
    encoder = found.encoder
    if not isinstance(encoder, Encoder):
        raise UserError(f"{encoder.name} has no maps of features, which this needs: give an encoder that timm builds.")
    if not all(values.isfinite().all() for values in encoder.parameters()):
        raise UserError("The encoder's weights are not finite: the file is damaged, or its training diverged.")
    if encoder.channels != 3:
        raise UserError(
            f"segment, detect and propagate read images as RGB, and {encoder.name} takes {encoder.channels} channels."
        )
    first = distributed.rank() == 0
    if first and found.reading is not None and found.reading.words != RGB.words:
        say(f"This command reads images as {RGB.words}; the encoder learned from {found.reading.words}.")
    options = {k: v for k, v in preprocessing(found).items() if k != "test_size"} | dict(options)
    where = Path(data) if isinstance(data, str | Path) else [Path(folder) for folder in data]
    with progress(judge.__name__, quiet=not first) as update:
        result = judge(encoder, where, progress=update, **options)
    for note in result.notes if first else ():
        say(note)
    if not baseline:
        return result
    fresh = untrained(encoder, options.get("seed", 0))
    with progress(f"{judge.__name__}: untrained", quiet=not first) as update:
        theirs = judge(fresh, where, progress=update, **options)
    return replace(result, baselines={"an untrained encoder": theirs.value, **result.baselines})
