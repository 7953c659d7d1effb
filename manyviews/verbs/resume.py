"""Continue an interrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manyviews import distributed
from manyviews.data import read_as
from manyviews.engine.build import build_method, check
from manyviews.engine.folder import RunFolder
from manyviews.engine.loop import train
from manyviews.errors import UserError
from manyviews.verbs._common import opened
from manyviews.verbs.pretrain import finish
from manyviews.verbs.run import Run


def resume(folder: str | Path, data: Any = None, captions: Any = None) -> Run:
    """Continue an interrupted run. On one CPU thread it ends with the same bits as an uninterrupted run.

    Args:
        folder: the run's folder.
        data: the images; if None, they are read from where they were when the run started.
        captions: their captions, likewise.

    Raises:
        UserError: no run, other images, or another process is training in the folder.
    """
    folder = Path(folder)
    recipe, facts = RunFolder(folder).recipe, RunFolder(folder).facts
    if data is None:
        data = facts["data"]
    if data is None:
        raise UserError(f"The images of {folder} were given in memory: pass them to `resume(folder, data=...)` again.")
    if RunFolder(folder).complete:
        distributed.start()
        return Run(folder) if (RunFolder(folder).plots / "loss.png").exists() else finish(folder)
    captions = facts.get("captions") if captions is None else captions
    source = read_as(opened(data, captions=captions), recipe.data.reading)
    distributed.start()  # the check below depends on the number of processes
    check(recipe, source)
    trained = RunFolder(folder).checkpoint.exists()
    train(build_method(recipe, trained=trained), recipe, source, folder)
    return finish(folder)
