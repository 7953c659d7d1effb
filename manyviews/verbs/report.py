"""Write a page about runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manyviews import machine
from manyviews.evaluation.contract import check_seed
from manyviews.progress import progress
from manyviews.reporting import page
from manyviews.verbs.run import Run


def report(
    runs: Sequence[str | Path | Run],
    out: str | Path,
    *,
    data: Any = None,
    labels: str | Path | None = None,
    queries: Any = None,
    images: int = 10_000,
    seed: int = 0,
) -> Path:
    """Write a page about runs that opens from disk in any browser: see `manyviews.reporting.page.write`.

    Args:
        runs: runs or their folders; several are shown side by side.
        out: a new or empty folder.
        data: images for the map, the galleries and the views; those of the first run if None.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.
        queries: your own images, shown with their nearest neighbors.
        images: how many images the map shows at most.
        seed: seed of the map.

    Returns:
        The page's `index.html`.

    Raises:
        UserError: no run, images that cannot be used, or `out` is not a new or empty folder.
    """
    check_seed(seed)
    found = [run if isinstance(run, Run) else Run(Path(run)) for run in runs]
    with progress("report") as update:
        return page.write(
            found,
            out,
            data=data,
            labels=labels,
            queries=queries,
            images=images,
            device=machine.device(),
            seed=seed,
            progress=update,
        )
