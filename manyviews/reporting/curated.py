"""A page of the images that a curation dropped, in one file: by reason, with those that are kept beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from manyviews.data.source import Source
from manyviews.errors import printable
from manyviews.evaluation.unlabeled.stages import Choice
from manyviews.reporting import single

SHOWN = 60
"""Pictures of one reason, at most."""

_WORDS = {
    "duplicate": ("Duplicates", "Each kept image, then its copies that are dropped."),
    "outlier": (
        "Outliers",
        "Far from their ten nearest images; the number is the mean cosine distance. Farthest first.",
    ),
    "unlike": ("Unlike the curated set", "The number is the similarity to the nearest image of it. The nearest first."),
    "balance": ("Dropped for balance", "Drawn by chance from their clusters, whose numbers are given."),
}


def render(source: Source, choice: Choice, notes: list[str], kept: int) -> str:
    """The HTML of a page: see `manyviews.reporting.single`.

    Args:
        source: the images.
        choice: what was decided.
        notes: what each stage did, in sentences.
        kept: number of images that are kept.
    """
    reason = np.array(choice.reason)
    sections = []
    for why, (title, how) in _WORDS.items():
        rows = np.flatnonzero(reason == why)
        if not len(rows):
            continue
        total, labels = len(rows), list[str]()
        if why == "duplicate":
            rows, labels = _beside(rows, choice.duplicate_of)
        elif why == "outlier":
            rows = rows[np.argsort(-choice.isolation[rows], kind="stable")][:SHOWN]
            labels = [f"{choice.isolation[i]:.2f}" for i in rows]
        elif why == "unlike":
            rows = rows[np.argsort(-choice.similarity[rows], kind="stable")][:SHOWN]
            labels = [f"{choice.similarity[i]:.2f}" for i in rows]
        else:
            rows = _some(rows)
            labels = [f"cluster {choice.cluster[i]}" for i in rows]
        sections.append(_section(source, title, how, rows, labels, total))
    sections.append(_section(source, "Kept", "Drawn by chance.", _some(np.flatnonzero(reason == "")), [], int(kept)))
    name = printable(source.name, 200)
    said = [printable(note) for note in notes]
    return single.render("curated.html", name=name, sections=sections, notes=said, images=len(source), kept=kept)


def _section(source: Source, title: str, how: str, rows: np.ndarray, labels: list[str], total: int) -> dict[str, Any]:
    labels = labels or [""] * len(rows)
    images = [single.picture(source, int(i)) | {"label": label} for i, label in zip(rows, labels, strict=True)]
    return {"title": title, "how": how, "images": images, "total": total}


def _some(rows: np.ndarray) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(rows)[:SHOWN])


def _beside(rows: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Kept images and their copies in turn."""
    found, labels, last = list[int](), list[str](), -1
    for i in rows[np.argsort(kept[rows], kind="stable")].tolist():
        if kept[i] != last:
            last = int(kept[i])
            found.append(last)
            labels.append("kept")
        found.append(i)
        labels.append("copy")
        if len(found) >= SHOWN:
            break
    return np.array(found), labels
