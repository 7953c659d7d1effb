"""Names that other people chose, and long lists, made fit for a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from manyviews.errors import printable


def unmathed(text: object, most: int = 24) -> str:
    """`printable` for matplotlib, which reads text between dollar signs as a formula."""
    return printable(text, most).replace("$", r"\$")


T = TypeVar("T")
MOST_CLASSES = 40
"""How many classes a chart shows at most."""


def ends(ordered: Sequence[T], most: int = MOST_CLASSES) -> Sequence[T]:
    """The first and the last items, `most` in all; every item if there are no more than that."""
    return ordered if len(ordered) <= most else [*ordered[: most // 2], *ordered[-most // 2 :]]
