"""Verbs that look at an encoder, or with it, and write what they found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from manyviews import checkpoint
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.errors import UserError
from manyviews.evaluation import diagnosis
from manyviews.evaluation import duplicates as copies
from manyviews.evaluation.dense import Dense
from manyviews.evaluation.diagnosis import Diagnosis
from manyviews.evaluation.protocol import untrained
from manyviews.evaluation.task import check_seed
from manyviews.pretrained import Pretrained
from manyviews.progress import progress
from manyviews.run import Run, device_here, features, loaded_from, new_file


def page(
    runs: Sequence[str | Path | Run],
    out: str | Path,
    *,
    data: Any = None,
    labels: str | Path | None = None,
    queries: Any = None,
    images: int = 10_000,
    seed: int = 0,
) -> Path:
    """Write a page about runs, which opens from disk in any browser: see `manyviews.report.page.write`.

    Args:
        runs: their folders; several are shown side by side.
        out: a new or empty folder.
        data: images for the map, the galleries and the views; those of the first run if None.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.
        queries: images of one's own, whose nearest neighbors are shown.
        images: on the map, at most.
        seed: of the map.

    Returns:
        The page's `index.html`.
    """
    from manyviews.report import page as pages

    check_seed(seed)
    found = [run if isinstance(run, Run) else Run(Path(run)) for run in runs]
    with progress("report") as update:
        return pages.write(
            found,
            out,
            data=data,
            labels=labels,
            queries=queries,
            images=images,
            device=device_here(),
            seed=seed,
            progress=update,
        )


def diagnose(weights: str | Path | Pretrained, data: Any, *, images: int = 10_000, seed: int = 0) -> Diagnosis:
    """What an encoder's features are like, from unlabeled images: how many dimensions they use, and how they lie.

    Args:
        weights: a run folder or weights: see `manyviews.load`.
        data: images: see `manyviews.data.open_source`.
        images: to look at, at most.
        seed: of the views, and of the untrained encoder to compare with.
    """
    check_seed(seed)
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
    groups = copies.duplicates(features(weights, open_source(data), "duplicates"), threshold, device_here())
    checkpoint.write_text(out, copies.to_csv(groups))
    return groups


def segment(weights: str | Path | Pretrained, data: str | Path, *, baseline: bool = True, **options: Any) -> Dense:
    """Linear segmentation on frozen patch features: see `manyviews.evaluation.dense.segment` for data and options.

    With `baseline`, an untrained encoder of the same architecture is judged in the same way, and is among the result's
    baselines.
    """
    from manyviews.evaluation.dense import segment

    return _judged(segment, weights, data, baseline, options)


def detect(weights: str | Path | Pretrained, data: str | Path, *, baseline: bool = False, **options: Any) -> Dense:
    """Detection or instance segmentation by fine-tuning: see `manyviews.evaluation.dense.detect` and `segment` here."""
    from manyviews.evaluation.dense import detect

    return _judged(detect, weights, data, baseline, options)


def propagate(weights: str | Path | Pretrained, data: str | Path, *, baseline: bool = True, **options: Any) -> Dense:
    """Label propagation through videos: see `manyviews.evaluation.dense.propagate` and `segment` here."""
    from manyviews.evaluation.dense import propagate

    return _judged(propagate, weights, data, baseline, options)


def _judged(
    judge: Callable[..., Dense],
    weights: str | Path | Pretrained,
    data: str | Path,
    baseline: bool,
    options: Mapping[str, Any],
) -> Dense:
    check_seed(options.get("seed", 0))
    loaded = loaded_from(weights)
    encoder = loaded.encoder
    if not isinstance(encoder, Encoder):
        raise UserError(f"{encoder.name} has no maps of features, which this needs: give an encoder that timm builds.")
    if not all(values.isfinite().all() for values in encoder.parameters()):
        raise UserError("The encoder's weights are not finite: the file is damaged, or its training diverged.")
    how = {"mean": loaded.mean, "std": loaded.std, "device": device_here(), **options}
    with progress(judge.__name__) as update:
        found = judge(encoder, Path(data), progress=update, **how)
    if not baseline:
        return found
    fresh = untrained(encoder, how.get("seed", 0))
    with progress(f"{judge.__name__}: untrained") as update:
        theirs = judge(fresh, Path(data), progress=update, **how)
    return replace(found, baselines={"an untrained encoder": theirs.value, **found.baselines})
