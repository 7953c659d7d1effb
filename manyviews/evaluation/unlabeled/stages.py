"""The stages of a curation: each drops some of the images that are left, and says what it did.

Features are float16 or float32, `n d`, of length one, with a row for each image that can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from manyviews.errors import UserError
from manyviews.evaluation.features import Progress
from manyviews.evaluation.knn import neighbors
from manyviews.evaluation.unlabeled import curation
from manyviews.evaluation.unlabeled.duplicates import Group

REASONS = ("unreadable", "duplicate", "outlier", "unlike", "balance")
"""Why an image is dropped, in the order in which it is decided."""

_ROWS = 65536  # features that are compared with the images to be like at a time


class Choice:
    """What is decided of each image of a source.

    Args:
        images: number of images of the source.
        rows: int64, `n`: positions of those that can be read.

    Attributes:
        rows: as given.
        reason: why an image is dropped, one of `REASONS`; empty if it is kept.
        duplicate_of: for a duplicate, the position of the copy that is kept, else -1: int64.
        isolation: mean of 1 - cosine similarity to its ten nearest; nan if it was not asked: float32.
        similarity: cosine similarity to the nearest of the images to be like; nan if there are none: float32.
        cluster: the finest cluster that it is in, else -1: int64.
        notes: sentences for people.
    """

    def __init__(self, images: int, rows: Tensor) -> None:
        self.rows = rows
        self.reason = ["unreadable"] * images
        for i in rows.tolist():
            self.reason[i] = ""
        self.duplicate_of = np.full(images, -1)
        self.isolation = np.full(images, np.nan, np.float32)
        self.similarity = self.isolation.copy()
        self.cluster = self.duplicate_of.copy()
        self.notes = list[str]()
        self._left = torch.ones(len(rows), dtype=torch.bool)
        if bad := images - len(rows):
            self.notes.append(f"{bad:,} of {images:,} images cannot be read.")

    @property
    def left(self) -> Tensor:
        """Rows of features of the images that are still kept: int64, ascending."""
        return self._left.nonzero()[:, 0]

    def drop(self, those: Tensor, why: str) -> None:
        """Drop images by their rows. Raises UserError if none is left."""
        self._left[those] = False
        for i in self.rows[those].tolist():
            self.reason[i] = why
        if not self._left.any():
            raise UserError(
                f"None of the {len(self.reason):,} images is left, and the last were dropped as '{why}': use milder "
                "settings."
            )


def drop_copies(choice: Choice, groups: Sequence[Group], best: Callable[[Sequence[int]], int], words: str) -> None:
    """Keep the best image of each group of copies. `words` say how the groups were found."""
    row = {int(i): row for row, i in enumerate(choice.rows.tolist())}
    gone = []
    for group in groups:
        kept = best(group.index)
        others = [i for i in group.index if i != kept]
        choice.duplicate_of[others] = kept
        gone += [row[i] for i in others]
    choice.drop(torch.tensor(gone, dtype=torch.int64), "duplicate")
    choice.notes.append(
        f"{len(gone):,} duplicates are dropped, from {len(groups):,} groups. The largest of a group is kept, "
        f"of equally large ones that of the most bytes. {words}"
    )


def drop_outliers(choice: Choice, x: Tensor, share: float, seed: int) -> None:
    """Drop a share of the images: those that are farthest from their ten nearest."""
    some = choice.left
    alone = curation.isolation(x[some], curation.cells(x[some], seed))
    choice.isolation[choice.rows[some]] = alone.numpy()
    far = alone.argsort(descending=True, stable=True)[: round(share * len(some))]
    choice.drop(some[far], "outlier")
    border = f", those whose distance is {float(alone[far].min()):.3f} or more" if len(far) else ""
    choice.notes.append(f"{len(far):,} outliers are dropped, {100 * share:g} %{border}.")


def keep_alike(
    choice: Choice,
    x: Tensor,
    wanted: Tensor,
    *,
    by: Literal["images", "clusters"],
    near: int,
    similarity: float | None,
    most: int | None,
    seed: int,
) -> None:
    """Keep images like some wanted ones, whose features are `m d`: see `manyviews.curate` for the rest."""
    some = choice.left
    found, closest = nearest(x[some], wanted, near)
    if by == "clusters":
        levels = curation.tree(x[some], seed)
        choice.cluster[choice.rows[some]] = levels.parents[0].numpy()
        found = in_clusters(levels, wanted)
    choice.similarity[choice.rows[some]] = closest.numpy()
    if similarity is not None:
        found &= closest >= similarity
    if most is not None and int(found.sum()) > most:
        order = torch.where(found, closest, -2).argsort(descending=True, stable=True)
        found = torch.zeros_like(found).index_fill_(0, order[:most], True)
    choice.drop(some[~found], "unlike")
    choice.notes.append(
        f"{int((~found).sum()):,} images are unlike the {len(wanted):,} images of --like, and are dropped."
    )


def nearest(x: Tensor, wanted: Tensor, near: int) -> tuple[Tensor, Tensor]:
    """The images that are nearest to some wanted ones.

    Args:
        x: features of the images.
        wanted: float, `m d`, those of the wanted ones, of length one.
        near: images for each of the wanted ones.

    Returns:
        Whether an image is among them, bool `n`; and the cosine similarity of every image to the nearest of the wanted
        ones, float32 `n`.
    """
    closest = torch.cat([neighbors(wanted, part, 1)[0][:, 0] for part in x.split(_ROWS)])
    found = torch.zeros(len(x), dtype=torch.bool)
    found[neighbors(x, wanted, min(near, len(x)))[1].flatten()] = True
    return found, closest


def in_clusters(levels: curation.Tree, wanted: Tensor) -> Tensor:
    """Whether an image is in one of the finest clusters that hold a wanted one: bool `n`."""
    return torch.isin(levels.parents[0], curation.nearest_centers(wanted, levels.centers, 1)[:, 0])


def keep_balanced(choice: Choice, x: Tensor, count: int, seed: int, progress: Progress | None = None) -> None:
    """Keep a balanced sample: see `curation.balanced`."""
    some = choice.left
    levels = curation.tree(x[some], seed, progress)
    found = curation.balanced(levels.parents, count, seed)
    choice.cluster[choice.rows[some]] = levels.parents[0].numpy()
    choice.drop(some[~found], "balance")
    counts = " and ".join(f"{int(parent.max()) + 1:,}" for parent in levels.parents)
    choice.notes.append(f"{int((~found).sum()):,} images are dropped for balance among {counts} clusters.")
