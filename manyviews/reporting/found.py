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


def compared(source: Source, titles: Sequence[str], near: Sequence[Sequence[Sequence[int]]], verb: str) -> str:
    """The HTML of a page of the nearest neighbors to a few images, those of several networks below one another.

    Args:
        source: the images.
        titles: names of the networks.
        near: for each network, for each of the few, its position in the source and those of its neighbors.
        verb: the verb that makes the page.
    """
    asked = [row[0] for row in near[0]]
    groups = []
    for n, i in enumerate(asked):
        rows = [
            {"title": printable(title, 200), "images": [single.picture(source, j) for j in theirs[n][1:]]}
            for title, theirs in zip(titles, near, strict=True)
            if n < len(theirs) and theirs[n][0] == i
        ]
        groups.append({"query": single.picture(source, i), "rows": rows})
    name = printable(source.name, 200)
    return single.render("compared.html", name=name, groups=groups, images=len(source), verb=verb)
