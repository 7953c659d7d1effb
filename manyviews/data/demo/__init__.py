"""The images that come with the package: see CREDITS in this folder."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from manyviews.data.files import local
from manyviews.data.parquet import Table
from manyviews.data.source import Source
from manyviews.errors import unknown

SPLITS = ("train", "test")
FILE = Path(str(files(__package__) / "images.parquet"))


def source(split: str = "train") -> Source:
    """Color clip art at 64x64 in twelve classes; `split` is "train" or "test".

    Near-identical pictures are on the same side. The ids are paths in Debian's package openclipart-png.

    Raises:
        UserError: another split.
    """
    if split not in SPLITS:
        raise unknown("split of the demo images", split, SPLITS)
    table = Table([local(FILE)], "label")
    whole = Source("demo", len(table), table.read, table.ids, table.labels)
    return whole.subset([i for i, side in enumerate(table.column("split").to_pylist()) if side == split])
