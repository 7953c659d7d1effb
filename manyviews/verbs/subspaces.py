"""Analyze the subspaces that MAST learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from manyviews import checkpoint, machine
from manyviews.data import read_as
from manyviews.errors import UserError
from manyviews.evaluation.unlabeled import subspaces as numbers
from manyviews.methods.mast import MAST
from manyviews.progress import progress
from manyviews.regularizers import inner
from manyviews.reporting import subspaces as plots
from manyviews.verbs._common import new_file, opened
from manyviews.verbs.run import Run


def subspaces(run: str | Path | Run, data: Any, out: str | Path, labels: str | Path | None = None) -> dict[str, Any]:
    """Analyze what a MAST run learned about its augmentations, and write numbers and plots to a new folder.

    Args:
        run: a run of the method "mast", or its folder.
        data: images. If they have labels, the numbers also show which classes each subspace tells apart.
        out: a new folder for `subspaces.json` and the plots.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.

    Returns:
        The numbers: see `manyviews.evaluation.unlabeled.subspaces.analyze`.

    Raises:
        UserError: the run is of another method, or `out` exists.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    if run.recipe.method.name != "mast":
        raise UserError(f"{run.folder} is a run of {run.recipe.method.name}: only mast learns subspaces.")
    out = new_file(out)
    source = read_as(opened(data, labels), run.recipe.data.reading)
    with progress("subspaces"):
        found = numbers.analyze(
            cast(MAST, inner(run.method)),
            source,
            test_size=run.recipe.test_size,
            mean=run.recipe.data.mean,
            std=run.recipe.data.std,
            device=machine.device(),
            seed=run.recipe.seed,
        )
    with checkpoint.new_folder(out) as part:
        checkpoint.write_text(part / "subspaces.json", json.dumps(found))
        plots.draw(found, part)
    return found
