"""A page of groups of images that look like copies of one image, in one file, to look through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manyviews.data.source import Source
from manyviews.errors import printable
from manyviews.evaluation.unlabeled.duplicates import Group, Pair
from manyviews.reporting import single
from manyviews.reporting.single import picture

SHOWN = 24
"""Pictures of one group, at most."""

_WRITTEN = 10  # pairs of one group that are written out, the least alike first


def render(source: Source, groups: Sequence[Group], between: Sequence[tuple[int, int]], images: int, how: str) -> str:
    """The HTML of a page. It holds its style and its pictures, has no script, and loads nothing.

    Args:
        source: the images.
        groups: the groups, in the order in which they are shown.
        between: positions of pairs that are the same but not in one group.
        images: number of images that were looked at.
        how: how similarity was judged, for people.
    """
    room = single.MOST
    shown: list[dict[str, Any]] = []
    for number, group in enumerate(groups, 1):
        count = min(len(group.ids), SHOWN)
        if count > room:
            break
        room -= count
        shown.append(_facts(source, number, group, count))
    bridges = [
        {"images": [picture(source, i), picture(source, j)]} for i, j in between[: min(len(between), room // 2, 100)]
    ]
    return single.render(
        "groups.html",
        name=printable(source.name, 200),
        groups=shown,
        left=len(groups) - len(shown),
        total=len(groups),
        copies=sum(len(group.ids) for group in groups),
        bridges=bridges,
        between=len(between),
        images=images,
        how=printable(how),
    )


def _facts(source: Source, number: int, group: Group, count: int) -> dict[str, Any]:
    pairs = sorted(group.pairs, key=lambda pair: (pair.pixels, pair.similarity))
    columns = (group.index[:count], group.mirrored, group.identical)
    marked = zip(*columns, strict=False)
    return {
        "number": number,
        "count": len(group.ids),
        "images": [
            picture(source, i) | {"mirrored": mirrored, "identical": identical} for i, mirrored, identical in marked
        ],
        "pixels": pairs[0].pixels,
        "similarity": min(pair.similarity for pair in pairs),
        "pairs": [_pair(pair) for pair in pairs[:_WRITTEN]],
        "more": len(pairs) - _WRITTEN,
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {"first": pair.first + 1, "second": pair.second + 1, "pixels": pair.pixels, "similarity": pair.similarity}
