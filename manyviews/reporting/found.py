"""A page of the images that a search found, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manyviews.data.source import Source
from manyviews.errors import printable
from manyviews.reporting import single


def render(source: Source, found: Sequence[Any], images: int, queries: tuple[Source, Sequence[int]] | None) -> str:
    """The HTML of a page: see `manyviews.reporting.single`.

    Args:
        source: the images.
        found: for each query an object with `query`, `index` and `similarity`, as `manyviews.verbs.search.Found`.
        images: number of images that were searched.
        queries: the source of the pictures that were asked for, and their positions in it; None for texts.
    """
    room, rows = single.MOST, list[dict[str, Any]]()
    for n, one in enumerate(found):
        room -= 1 + len(one.index)
        if room < 0 and rows:
            break
        near = [single.picture(source, i) | {"similarity": s} for i, s in zip(one.index, one.similarity, strict=True)]
        asked = None if queries is None else single.picture(queries[0], queries[1][n])
        rows.append({"title": printable(one.query, 300), "query": asked, "images": near})
    name = printable(source.name, 200)
    return single.render(
        "found.html", name=name, rows=rows, images=images, count=len(found), left=len(found) - len(rows)
    )
