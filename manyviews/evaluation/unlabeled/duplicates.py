"""Images that occur twice: exact copies by their pixels, and near copies by their features.

A group is a connected component: two images belong together if a chain of pairs, each above the threshold, joins them.
So the groups do not depend on the images' order, and of those that are kept no two are above the threshold.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.data.canvas import in_threads
from manyviews.data.decode import BadImage
from manyviews.data.source import Source
from manyviews.errors import UserError
from manyviews.evaluation.features import Features, Progress

_BLOCK = 4096  # rows and columns of similarities at a time: 64 MiB
_PAIRS = 50_000_000  # that are held, 1 GB
_ROUNDING = 1e-4  # how far normalized features of the same pixels may be from each other
_LINES = 8
_READ = 256


@dataclass(frozen=True)
class Group:
    """Images that are (nearly) the same, ordered by their names and positions. The first is the one to keep.

    Attributes:
        index: their positions in the source.
        ids: their stable names.
        similarity: similarity of each to the most similar other one of the group, in [-1, 1]; 1 for exact copies.
    """

    index: tuple[int, ...]
    ids: tuple[str, ...]
    similarity: tuple[float, ...]


def duplicates(features: Features, threshold: float = 0.95, device: torch.device | str = "cpu") -> list[Group]:
    """Groups of images whose features' cosine similarity is at least the threshold, ordered by their first names.

    The threshold between copies and look-alikes depends on the encoder: the protocol "copy_detection" measures one.

    Args:
        features: features of the images.
        threshold: cosine similarity, above 0 and below 1.
        device: device to compare them on.

    Raises:
        UserError: the threshold is out of its range, or so low that there are more than 50 million pairs.
    """
    if not 0 < threshold < 1:
        raise UserError(f"The threshold of near-duplicates must be above 0 and below 1, not {threshold:g}.")
    return _groups(features.ids, features.index, *similar(features.x, features.x, threshold, device=device))


def exact(source: Source, progress: Progress | None = None) -> list[Group]:
    """Groups of images with the same pixels, however they are stored, ordered by their first names.

    All images are read. Those that cannot be read are in no group.
    """
    same = defaultdict(list)
    for i, digest in enumerate(_digests(source, range(len(source)), progress)):
        if digest is not None:
            same[digest].append(i)
    ids = source.ids
    found = [sorted(group, key=lambda i: (ids[i], i)) for group in same.values() if len(group) > 1]
    groups = [Group(tuple(g), tuple(ids[i] for i in g), (1.0,) * len(g)) for g in found]
    return sorted(groups, key=lambda g: (g.ids, g.index))


def across(
    source: Source,
    test: Source,
    seen: Features | None = None,
    held: Features | None = None,
    progress: Progress | None = None,
) -> list[tuple[int, int]]:
    """Test images that also occur in the training set, pixel by pixel: pairs of positions (source, test), ascending.

    With features of the good images of both, only images that they cannot tell apart are read. Without, all are.
    """
    some: Sequence[int] = range(len(source))
    others: Sequence[int] = range(len(test))
    if seen is not None and held is not None:
        # Only images with features: the others may belong to the other part of one source.
        pairs = _indistinct(seen.x, held.x)
        all_of = torch.arange(len(seen)), torch.arange(len(held))
        rows = all_of if pairs is None else tuple(column.unique() for column in pairs.T)
        some, others = (f.index[r].tolist() for f, r in zip((seen, held), rows, strict=True))
    total = len(some) + len(others)
    positions = defaultdict(list)
    for i, digest in zip(some, _digests(source, some, _from(progress, 0, total)), strict=True):
        if digest is not None:
            positions[digest].append(i)
    found = zip(others, _digests(test, others, _from(progress, len(some), total)), strict=True)
    return sorted((i, j) for j, digest in found if digest is not None for i in positions[digest])


def similar(
    a: Tensor, b: Tensor, threshold: float, most: int = _PAIRS, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """All pairs of rows of `a` and `b` whose cosine similarity is at least the threshold, blockwise.

    Args:
        a: `n d`.
        b: `m d`. If it is `a` itself, each pair is given once, as (i, j) with i < j.
        threshold: in (-1, 1].
        most: largest number of pairs.
        device: device to compute on.

    Returns:
        int64, `p 2`, positions in `a` and `b`, and float32, `p`, similarities.

    Raises:
        UserError: there are more than `most` pairs.
    """
    x = F.normalize(a.float(), dim=1).to(device)
    y = x if a is b else F.normalize(b.float(), dim=1).to(device)
    pairs, values, count = [], [], 0
    for i in range(0, len(x), _BLOCK):
        for j in range(i if a is b else 0, len(y), _BLOCK):
            block = x[i : i + _BLOCK] @ y[j : j + _BLOCK].T
            near = block >= threshold
            if a is b and i == j:
                near = near.triu(1)
            count += int(near.sum())
            if count > most:
                raise UserError(f"More than {most:,} pairs of images are {threshold:g} alike: raise the threshold.")
            values.append(block[near].cpu())
            pairs.append(near.nonzero().cpu() + torch.tensor([i, j]))
    if not pairs:
        return torch.empty(0, 2, dtype=torch.int64), torch.empty(0)
    return torch.cat(pairs), torch.cat(values).clamp(-1, 1)


def _indistinct(a: Tensor, b: Tensor) -> Tensor | None:
    """Pairs of rows of `a` and `b` that may differ by rounding alone: int64, `p 2`.

    None if there are more than ten for each row: such an encoder takes nearly all for one.
    """
    from scipy.spatial import cKDTree

    # A few projections tell nearly all apart, and a tree of them costs less than all similarities.
    lines = F.normalize(torch.randn(a.shape[1], _LINES, generator=torch.Generator().manual_seed(0)), dim=0)
    p, q = ((F.normalize(x.float(), dim=1).cpu() @ lines).numpy() for x in (a, b))
    tree = cKDTree(p)
    counts = tree.query_ball_point(q, _ROUNDING, return_length=True)
    if counts.sum() > 10 * (len(p) + len(q)):
        return None
    near = np.flatnonzero(counts)
    found = [(i, j) for j, rows in zip(near, tree.query_ball_point(q[near], _ROUNDING), strict=True) for i in rows]
    return torch.tensor(found, dtype=torch.int64).view(-1, 2)


def to_csv(groups: Sequence[Group]) -> str:
    """A line for each image of a group: `group` (its number from 1), `id`, `keep` ("yes" or "no") and `similarity`."""
    text = io.StringIO()
    # Quote everything: Python before 3.11.9 does not quote a carriage return in a name, which would begin a new line.
    table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    table.writerow(["group", "id", "keep", "similarity"])
    for number, group in enumerate(groups, 1):
        for i, (name, value) in enumerate(zip(group.ids, group.similarity, strict=True)):
            text_id = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            table.writerow([number, text_id, "no" if i else "yes", f"{value:.4f}"])
    return text.getvalue()


def _groups(ids: Sequence[str], index: Tensor, pairs: Tensor, similarity: Tensor) -> list[Group]:
    """Connected components of two or more items, from `n` items with these names and positions."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(ids)
    i, j = pairs.numpy().T
    _, component = connected_components(coo_array((np.ones(len(i), np.int8), (i, j)), shape=(n, n)), directed=False)
    nearest = np.full(n, -1.0, np.float32)
    np.maximum.at(nearest, i, similarity.numpy())
    np.maximum.at(nearest, j, similarity.numpy())
    members = defaultdict(list)
    for row in np.flatnonzero(nearest > -1).tolist():
        members[component[row]].append(row)
    groups = []
    for rows in members.values():
        rows.sort(key=lambda row: (ids[row], int(index[row])))
        positions, values = index[rows].tolist(), nearest[rows].tolist()
        groups.append(Group(tuple(positions), tuple(ids[row] for row in rows), tuple(values)))
    return sorted(groups, key=lambda g: (g.ids, g.index))


def _digests(source: Source, chosen: Sequence[int], progress: Progress | None) -> Iterator[bytes | None]:
    """A hash of the upright pixels and shape of each image, None for those that cannot be read."""

    def digest(i: int) -> bytes | None:
        try:
            pixels = np.asarray(source.load(i))
        except BadImage:
            return None
        return blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16).digest()

    done = 0
    for found in in_threads(digest, (chosen[start : start + _READ] for start in range(0, len(chosen), _READ))):
        yield from found
        done += len(found)
        if progress is not None:
            progress(done, len(chosen))


def _from(progress: Progress | None, before: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(before + done, total)
