"""Analyze the subspaces that MAST learned, or the one space of another method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manyviews import checkpoint, machine
from manyviews.data import read_as
from manyviews.evaluation.unlabeled import subspaces as numbers
from manyviews.progress import progress
from manyviews.regularizers import inner
from manyviews.reporting import subspaces as plots
from manyviews.reporting.embedding_map import lay_out
from manyviews.verbs._common import new_file, opened
from manyviews.verbs.run import Run


def subspaces(
    run: str | Path | Run,
    data: Any,
    out: str | Path,
    labels: str | Path | None = None,
    *,
    baseline: str | Path | Run | None = None,
) -> dict[str, Any]:
    """Analyze what a MAST run learned about its augmentations, and write numbers and plots to a new folder.

    Args:
        run: a run of "mast", or its folder. Of another method with projections, such as "vicreg", the whole embedding
            is looked at as one subspace.
        data: images. If they have labels, the numbers also show which classes each subspace tells apart.
        out: a new folder for `subspaces.json` and the plots.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.
        baseline: another run, such as one of "vicreg", whose invariance is shown next to that of the subspaces
            (figure 7).

    Returns:
        The numbers: see `manyviews.evaluation.unlabeled.subspaces.analyze`. With a baseline, each of "invariance" has
        its "baseline".

    Raises:
        UserError: a run of a method without projections, or `out` exists.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    other = baseline if isinstance(baseline, Run) or baseline is None else Run(Path(baseline))
    out = new_file(out)
    with progress("subspaces"):
        found = numbers.analyze(
            inner(run.method),
            read_as(opened(data, labels), run.recipe.data.reading),
            **_look(run),
            seed=run.recipe.seed,
            lay_out=lay_out,
        )
        if other is not None:
            beside = numbers.invariances(
                inner(other.method),
                read_as(opened(data, labels), other.recipe.data.reading),
                **_look(other),
                seed=run.recipe.seed,
                augmentations=numbers.swept_of(inner(run.method)),
            )
            for name, sweep in found["invariance"].items():
                sweep["baseline"] = beside[name]["all"]
    with checkpoint.new_folder(out) as part:
        checkpoint.write_text(part / "subspaces.json", json.dumps(found))
        plots.draw(found, part)
    return found


def _look(run: Run) -> dict[str, Any]:
    data = run.recipe.data
    return {"test_size": run.recipe.test_size, "mean": data.mean, "std": data.std, "device": machine.device()}
