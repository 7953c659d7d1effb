"""Evaluate an encoder on labeled images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from manyviews import checkpoint, distributed, evaluation
from manyviews.engine.folder import RunFolder
from manyviews.errors import UserError, say
from manyviews.evaluation import Protocol, Report
from manyviews.evaluation.protocols import requested
from manyviews.evaluation.protocols.projector_layers import projector_of
from manyviews.evaluation.sets import frequent
from manyviews.progress import progress
from manyviews.regularizers import inner
from manyviews.reporting import plots
from manyviews.verbs._common import doubted, loaded, opened, own_test, preprocessing, seen_by, tell
from manyviews.verbs.run import Run
from manyviews.weights import Pretrained


def evaluate(
    weights: str | Path | Pretrained,
    data: Any,
    test: Any = None,
    *,
    protocols: Sequence[str | Protocol] = ("knn", "linear"),
    features: Literal["pooled", "last4", "cls_mean"] = "pooled",
    settings: Mapping[str, Any] | None = None,
    labels: str | Path | None = None,
    test_labels: str | Path | None = None,
    others: Sequence[Any] = (),
    seed: int = 0,
    seeds: int = 1,
    baselines: bool = True,
    min_per_class: int | None = None,
) -> Report:
    """Evaluate an encoder on labeled images, next to an untrained encoder and raw pixels.

    Processes that `torchrun` started share the reading of the images and the encoding; the first does the rest, and
    all return its report.

    Args:
        weights: a run folder or weights: see `load`.
        data: labeled images that the probes learn from.
        test: labeled images to test on; if None, the test or else the validation images of `data`, if it has folders
            or files of these names, else a fifth of `data`, chosen by a stable hash.
        protocols: names from `manyviews list protocols`, or protocols with settings of their own: see
            `manyviews.evaluation.protocols`.
        features: which features of a vision transformer: "pooled", "last4" (the class tokens of the last four
            blocks) or "cls_mean" (the class token and the mean patch token): see `Encoder.features`.
        settings: settings of the protocols: dotted paths and new values, such as
            `{"finetune.lrs": (0.01, 0.05), "finetune.epochs": 30, "linear_augmented.epochs": 20}`.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.
        test_labels: the same for `test`.
        others: sets of labeled images of the same classes under other conditions, such as sketches. A probe that
            learned from `data` is tested on each.
        seed: seed of the untrained encoder, of the protocols that draw, and of the intervals.
        seeds: how often each protocol that draws is run; its accuracy is the mean.
        baselines: whether to evaluate an untrained encoder and raw pixels too.
        min_per_class: leave out classes with fewer images in `data`, at least 10; None to refuse them.

    Returns:
        A report. It is also written to the run folder's `evaluations` when `weights` is a run folder.

    Raises:
        UserError: bad input.
    """
    distributed.start()
    chosen = requested(protocols, settings or {})
    source = opened(data, labels)
    held = own_test(data, source) if test is None else opened(test, test_labels)
    if held is not None and test is None:
        tell(held, [f"The test images are {held.name} ({len(held):,} images)."])
    further = [opened(other) for other in others]
    (source, *more), left_out = frequent([source, *([] if held is None else [held]), *further], min_per_class)
    held, further = (None, more) if held is None else (more[0], more[1:])
    if left_out:
        tell(source, [left_out])
    else:
        doubted(source)
    found = loaded(weights)
    source, *more = seen_by(found, source, *([] if held is None else [held]), *further)
    held, further = (None, more) if held is None else (more[0], more[1:])
    folder = Path(weights) if isinstance(weights, (str, os.PathLike)) and Path(weights).is_dir() else None
    keep = folder
    if folder is not None and distributed.rank() == 0:
        try:
            RunFolder(folder).guard()
        except UserError as e:
            say(f"Warning: {e} The evaluation is not kept.")
            keep = None
    keep = distributed.share(keep)
    projector = None
    if folder is not None and any(p.sees == "projector" for p in chosen):
        projector = projector_of(inner(Run(folder).method))
    with progress("evaluate", quiet=distributed.rank() > 0) as update:
        report = evaluation.evaluate(
            found.encoder,
            source,
            held,
            protocols=chosen,
            features=features,
            others=further,
            projector=projector,
            seed=seed,
            seeds=seeds,
            baselines=baselines,
            cache=None if keep is None else keep / "features",
            progress=update,
            **preprocessing(found),
        )
    notes = [note for note in (found.note, left_out) if note]
    report = replace(report, notes=(*notes, *report.notes))
    if keep is not None and distributed.rank() == 0:
        try:
            where = _numbered(RunFolder(keep).evaluations)
            checkpoint.write_text(where / "report.json", report.to_json())
            plots.evaluation(report, where, source, held)
        except OSError as e:  # the evaluation took minutes, so return it all the same
            say(f"The evaluation could not be written to {keep} ({e.strerror}).")
    return report


def _numbered(parent: Path) -> Path:
    """Make a new folder in `parent`, named by the next number."""
    parent.mkdir(exist_ok=True)
    i = 1 + max((int(p.name) for p in parent.iterdir() if p.name.isdigit()), default=0)
    while True:
        try:
            (parent / str(i)).mkdir()
            return parent / str(i)
        except FileExistsError:  # another evaluation of the same run was faster
            i += 1
