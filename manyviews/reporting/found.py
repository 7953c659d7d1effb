"""A page of the images that a search found, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

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


@dataclass(frozen=True, eq=False)
class Row:
    """What one network shows of a few images.

    Attributes:
        title: its name.
        near: for each of the few, its position in the source and those of its neighbors.
        maps: for each of the few a picture of the regions that its patches fall into, uint8 `h w 3`; None without.
    """

    title: str
    near: Sequence[Sequence[int]]
    maps: Sequence[np.ndarray] | None = None


def compared(source: Source, networks: Sequence[Row], verb: str) -> str:
    """The HTML of a page of the nearest neighbors to a few images, those of several networks below one another.

    Args:
        source: the images.
        networks: what each network shows, of the same few images.
        verb: the verb that makes the page.
    """
    groups = []
    for n, (i, *_) in enumerate(networks[0].near):
        rows = [
            {
                "title": printable(row.title, 200),
                "map": None if row.maps is None else single.small(Image.fromarray(row.maps[n]), ""),
                "images": [single.picture(source, j) for j in row.near[n][1:]],
            }
            for row in networks
            if n < len(row.near) and row.near[n][0] == i
        ]
        groups.append({"query": single.picture(source, i), "rows": rows})
    name = printable(source.name, 200)
    return single.render("compared.html", name=name, groups=groups, images=len(source), verb=verb)
