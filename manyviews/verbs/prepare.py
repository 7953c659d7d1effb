"""Decode images once, for many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manyviews import data as images
from manyviews.errors import UserError
from manyviews.progress import progress
from manyviews.verbs._common import opened


def prepare(data: Any, out: str | Path, canvas: int = 800, labels: str | Path | None = None) -> Path:
    """Decode images once, to canvases on disk. Every later run reads these and decodes nothing.

    You may interrupt it and call it again, or call it in several processes at once: see `manyviews.data.prepare`.

    Args:
        data: see `manyviews.data.open_source`.
        out: a new folder, or one that the same call began. Other verbs then take it as their data.
        canvas: longest short side of the canvases in pixels. 800 are as many as views of 224 pixels can use; a run says
            what its views can use.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.

    Raises:
        UserError: bad input, or the folder holds something else.
    """
    if canvas < 1:
        raise UserError(f"Canvases need a side of 1 pixel or more, not {canvas}.")
    with progress("prepare") as update:
        return images.prepare(opened(data, labels), Path(out), canvas, update)
