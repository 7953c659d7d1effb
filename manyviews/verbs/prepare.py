"""Decode images once, for many runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from manyviews import data as images
from manyviews.data import Source
from manyviews.data.folder import is_image
from manyviews.data.reading import MAX_PIXELS
from manyviews.data.source import given
from manyviews.data.tiles import MOST
from manyviews.errors import UserError
from manyviews.progress import progress
from manyviews.settings import Data
from manyviews.verbs._common import opened, tell


def prepare(
    data: Any,
    out: str | Path,
    canvas: int = 800,
    labels: str | Path | None = None,
    *,
    channels: int | tuple[int, ...] = 3,
    range: Literal["type", "auto"] | tuple[float, float] = "type",
    frames: Literal["first", "middle", "all"] = "first",
    max_pixels: int | None = None,
    tile: int | None = None,
    overlap: int = 0,
) -> Path:
    """Decode images once, to canvases on disk, or cut large ones into tiles. Every later run reads these.

    You may interrupt it and call it again. Canvases may also be made by several processes at once: see
    `manyviews.data.prepare`. Tiles are image files with the values of the scenes: see `manyviews.data.tile`.

    Args:
        data: see `manyviews.data.open_source`; with `tile`, also a single file.
        out: a new folder, or one that the same call began. Other verbs then take it as their data.
        canvas: longest short side of the canvases in pixels. 800 are as many as views of 224 pixels can use; a run says
            what its views can use.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.
        channels: a recipe's `data.channels`.
        range: a recipe's `data.range`.
        frames: a recipe's `data.frames`.
        max_pixels: images of more pixels are left out: 179 million by default, or 2 billion with `tile`.
        tile: side of the tiles in pixels; None makes canvases.
        overlap: pixels that neighboring tiles share.

    Raises:
        UserError: bad input, or the folder holds something else.
    """
    if canvas < 1:
        raise UserError(f"Canvases need a side of 1 pixel or more, not {canvas}.")
    if tile is None and overlap:
        raise UserError("Only tiles overlap: give --tile too.")
    asked = Data(channels=channels, range=range, frames=frames, max_pixels=max_pixels or MAX_PIXELS)
    if tile is not None:
        if (channels, range) != (3, "type"):
            raise UserError(
                "Tiles keep all bands and values: leave out --channels and --range, and give "
                "data.channels and data.range to the run that reads the tiles."
            )
        scenes = _scenes(data, labels)
        scenes = images.read_as(scenes, asked.reading)
        with progress("tiles") as update:
            images.tile(scenes, Path(out), tile, overlap, max_pixels or MOST, update)
        return Path(out)
    source = opened(data, labels)
    if source.canvases is None:
        wanted: Literal["type", "auto"] = "auto" if range == "auto" else "type"
        reading, notes = images.measured(source, asked.reading, wanted, "--range {}")
        tell(source, notes)
        source = images.read_as(source, reading)
    with progress("prepare") as update:
        return images.prepare(source, Path(out), canvas, update)


def _scenes(data: Any, labels: str | Path | None) -> Source:
    """Images to cut: as other verbs take them, or one file."""
    if isinstance(data, str | Path) and Path(data).is_file() and is_image(str(data)):
        path = Path(data)
        return Source(path.stem, 1, [path].__getitem__, partial(given, [path.name]))
    return opened(data, labels)
