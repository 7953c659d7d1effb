"""Names that others chose, made harmless for a terminal and for a plot."""

from __future__ import annotations


def printable(text: object, most: int = 200) -> str:
    """The text in one line, at most `most` characters, without control characters, line breaks and broken Unicode.

    File names and labels come from anywhere: they may hold escape sequences, which a terminal would obey, and bytes
    that are no text, which cannot be printed.
    """
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    return clean if len(clean) <= most else clean[: most - 3] + "..."


def unmathed(text: object, most: int = 24) -> str:
    """`printable`, for matplotlib, which takes what stands between dollar signs for formulas."""
    return printable(text, most).replace("$", r"\$")
