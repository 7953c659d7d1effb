"""Names that others chose, made harmless for a plot."""

from __future__ import annotations

from manyviews.errors import printable


def unmathed(text: object, most: int = 24) -> str:
    """`printable`, for matplotlib, which takes what stands between dollar signs for formulas."""
    return printable(text, most).replace("$", r"\$")
