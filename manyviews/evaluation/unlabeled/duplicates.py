"""Images that occur twice: exact copies by their pixels, and near copies that features propose and pixels confirm.

Features alone take look-alikes for copies, and chains of such pairs join everything. So every two images of a group
were found to be the same themselves (complete linkage): by features, by a small gray picture, and by a second look at
pixels (`manyviews.evaluation.unlabeled.aligned`). How alike copies are to an encoder is measured on planted ones.
"""

from __future__ import annotations

import csv
import io
import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyviews import machine
from manyviews.data.canvas import in_threads
from manyviews.data.decode import BadImage
from manyviews.data.room import ROOM
from manyviews.data.source import Source
from manyviews.errors import UserError
from manyviews.evaluation.features import Features, Progress
from manyviews.evaluation.unlabeled.aligned import SAME, SIDE, likeness, small

_BLOCK = 4096  # rows and columns of similarities at a time: 64 MiB
_PAIRS = 50_000_000  # that are held, 1 GB
_ROUNDING = 1e-4  # how far normalized features of the same pixels may be from each other
_LINES = 8
_READ = 256
_GRAY = 8  # side of the small gray picture
_FLAT = 0.2  # deviation below which a gray picture shows nothing, in those of the encoder's input
_LOST = 0.01  # share of the planted copies that each limit may miss
_LOOKS = 20  # pairs to look at for each image, on average
_OTHERS = 20_000  # images that planted copies are compared with
_CLOSEST = 500  # pairs of a copy and another image that are looked at


class Gray(nn.Module):
    """A small gray picture of an image of any channels, as a vector whose cosine similarity compares two."""

    def forward(self, x: Tensor) -> Tensor:
        """Float32 `b c h w` to `b 65`."""
        x = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), _GRAY).flatten(1)
        x = x - x.mean(1, keepdim=True)
        return torch.cat([x, x.new_full((len(x), 1), _FLAT)], 1)  # two flat pictures are alike


@dataclass(frozen=True)
class Limits:
    """How alike two images must be for a second look.

    Attributes:
        similarity: cosine similarity of features.
        gray: that of small gray pictures, of which one may be mirrored.
    """

    similarity: float
    gray: float


@dataclass(frozen=True)
class Calibration:
    """What planted copies tell of an encoder and a set.

    Attributes:
        limits: chosen so that each loses 1 % of the copies, or more if there were too many pairs to look at.
        copies: number of planted copies.
        recall: share of them that was found, in [0, 1].
        by_kind: the same for each kind of copy.
        passed: share of pairs of a copy and another image whose features are as alike as `limits` ask.
        looked: how many such pairs were looked at: the most alike.
        taken: how many of these pixels took for the same.
    """

    limits: Limits
    copies: int
    recall: float
    by_kind: dict[str, float]
    passed: float
    looked: int
    taken: int

    @property
    def words(self) -> str:
        """One sentence or two for people."""
        worst = min(self.by_kind, key=lambda kind: self.by_kind[kind])
        found = f"{100 * self.recall:.0f} % of {self.copies} planted copies are found"
        if self.by_kind[worst] < self.recall - 0.05:
            found += f", {100 * self.by_kind[worst]:.0f} % of those that are {worst}"
        text = f"Threshold {self.limits.similarity:.3f}, the similarity of features: {found}. "
        if not self.looked:
            return text + "No pair of a copy and another image passes it."
        return text + (
            f"{_percent(self.passed)} of the pairs of a copy and another image pass it too; a look at the pixels of "
            f"the {self.looked} most alike took {self.taken} for the same."
        )


@dataclass(frozen=True)
class Pairs:
    """Pairs of images.

    Attributes:
        rows: int64, `p 2`: rows of the features, the smaller first.
        similarity: float32, `p`: cosine similarity of their features.
        pixels: float32, `p`: likeness of their pixels; see `aligned.likeness`.
        mirrored: bool, `p`: whether one is like the other's mirror image.
    """

    rows: Tensor
    similarity: Tensor
    pixels: Tensor
    mirrored: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Tensor) -> Pairs:
        return Pairs(self.rows[chosen], self.similarity[chosen], self.pixels[chosen], self.mirrored[chosen])


@dataclass(frozen=True)
class Pair:
    """Two images of a group: their places in it, and the numbers of `Pairs`."""

    first: int
    second: int
    similarity: float
    pixels: float
    mirrored: bool


@dataclass(frozen=True)
class Group:
    """Images of which every two were found to be the same, ordered by their names and positions.

    Attributes:
        index: their positions in the source.
        ids: their stable names.
        pairs: every two of them.
        identical: whether an image has the very pixels of another one of the group.
    """

    index: tuple[int, ...]
    ids: tuple[str, ...]
    pairs: tuple[Pair, ...]
    identical: tuple[bool, ...]

    @property
    def similarity(self) -> tuple[float, ...]:
        """Similarity of each image to the least similar other one, in [-1, 1]."""
        return self._lowest([pair.similarity for pair in self.pairs])

    @property
    def pixels(self) -> tuple[float, ...]:
        """Likeness of each image's pixels to those of the least like other one, in [-1, 1]."""
        return self._lowest([pair.pixels for pair in self.pairs])

    @property
    def mirrored(self) -> tuple[bool, ...]:
        """Whether each image is like the mirror image of the first."""
        first = {pair.second: pair.mirrored for pair in self.pairs if not pair.first}
        return tuple(first.get(k, False) for k in range(len(self.ids)))

    def _lowest(self, values: Sequence[float]) -> tuple[float, ...]:
        found = [1.0] * len(self.ids)
        for pair, value in zip(self.pairs, values, strict=True):
            for k in (pair.first, pair.second):
                found[k] = min(found[k], value)
        return tuple(found)


def calibrate(
    source: Source,
    features: Features,
    grays: Features,
    copied: Source,
    copies: Features,
    copy_grays: Features,
    rows: Tensor,
    threshold: float | None = None,
    device: torch.device | str = "cpu",
) -> Calibration:
    """Choose limits by planted copies: see `Calibration`.

    Args:
        source: the images.
        features: their features.
        grays: their small gray pictures, as `Gray` gives them.
        copied: planted copies; the name of each begins with its kind: see `copies.copies_of`.
        copies: their features.
        copy_grays: their small gray pictures.
        rows: int64: the row in `features` of the original of each of `copied`.
        threshold: similarity of features; None to choose it.
        device: device to compare features on.

    Raises:
        UserError: the threshold is not above 0 and below 1.
    """
    if threshold is not None and not 0 < threshold < 1:
        raise UserError(f"The threshold of near-duplicates must be above 0 and below 1, not {threshold:g}.")
    of = rows[copies.index]
    c = F.normalize(copies.x.float(), dim=1).to(device)
    near = (c * F.normalize(features.x[of].float(), dim=1).to(device)).sum(1).cpu()
    looks = _grays(copy_grays.x)
    g = F.normalize(grays.x[of].float(), dim=1)
    gray = torch.maximum(*((look * g).sum(1) for look in looks))
    limit = float(gray.quantile(_LOST).clamp(0.2, 0.999))

    some = torch.linspace(0, len(features) - 1, min(len(features), _OTHERS)).long().unique()
    sims = (c @ F.normalize(features.x[some].float(), dim=1).to(device).T).cpu()
    sims[of[:, None] == some] = -1
    g = F.normalize(grays.x[some].float(), dim=1)
    alike = torch.maximum(*(look @ g.T for look in looks)) >= limit
    if threshold is None:
        threshold = float(near.quantile(_LOST))
        # Pairs to look at, for each image: as many as there are for each copy, twice counted.
        most = round(2 * _LOOKS * len(copies) * len(some) / len(features))
        candidates = sims[alike & (sims >= threshold)]
        if len(candidates) > most:
            threshold = float(candidates.topk(most + 1).values[-1])
        threshold = min(max(threshold, 0.01), 1 - _ROUNDING)
    passing = (sims >= threshold).sum().item() / max(1, sims.numel() - len(of))
    candidates = torch.where(alike, sims, -1).flatten()
    best = candidates.topk(min(_CLOSEST, len(candidates))).indices
    best = best[candidates[best] >= threshold]
    k, j = best // len(some), some[best % len(some)]

    own = look_at(copied, copies.index)
    needed, where = torch.cat([of, j]).unique(return_inverse=True)
    theirs = look_at(source, features.index[needed])
    originals, others = where[: len(of)], where[len(of) :]
    pixels, _ = _alike(own, torch.arange(len(of)), theirs, originals)
    good = (pixels >= SAME) & (near >= threshold) & (gray >= limit)
    wrong, _ = _alike(own, k, theirs, others)
    hits = (wrong >= SAME).nonzero()[:, 0]
    # An image that is like the original too occurs twice in the set itself.
    again, _ = _alike(theirs, originals[k[hits]], theirs, others[hits])
    by: dict[str, list[bool]] = defaultdict(list)
    for name, value in zip(copies.ids, good.tolist(), strict=True):
        by[name.partition(" ")[0]].append(value)
    return Calibration(
        Limits(threshold, limit),
        len(of),
        good.double().mean().item(),
        {kind: sum(values) / len(values) for kind, values in by.items()},
        passing,
        len(best),
        int((again < SAME).sum()),
    )


def proposed(features: Features, grays: Features, limits: Limits, device: torch.device | str = "cpu") -> Pairs:
    """Pairs of images that are as alike as the limits ask, before a second look: their pixels are unknown (nan).

    Raises:
        UserError: there are more than 50 million.
    """
    rows, values = similar(features.x, features.x, limits.similarity, device=device, grays=(grays.x, limits.gray))
    return Pairs(rows, values, torch.full_like(values, torch.nan), torch.zeros(len(rows), dtype=torch.bool))


def confirmed(pairs: Pairs, source: Source, index: Tensor, progress: Progress | None = None) -> Pairs:
    """Pairs of which a second look at pixels says that they are the same.

    Args:
        pairs: proposed pairs.
        source: the images.
        index: the position in `source` of each row.
        progress: called with (steps done, steps in total).

    Raises:
        UserError: an image can no longer be read.
    """
    needed, where = pairs.rows.unique(return_inverse=True)
    total = len(needed) + len(pairs)
    pictures = look_at(source, index[needed], _from(progress, 0, total))
    pixels, mirrored = _alike(pictures, where[:, 0], pictures, where[:, 1], _from(progress, len(needed), total))
    return replace(pairs, pixels=pixels, mirrored=mirrored)[pixels >= SAME]


def grouped(
    features: Features, pairs: Pairs, source: Source | None = None
) -> tuple[list[Group], list[tuple[int, int]]]:
    """Groups of images of which every two are a pair, by complete linkage: the most alike are joined first.

    Args:
        features: the images' names and positions.
        pairs: pairs that are the same.
        source: the images, to see which have the very same pixels; None to leave this out.

    Returns:
        The groups, the largest first, of one size the most doubtful first; and the positions of pairs that are the same
        but in different groups, or of which one is in none.
    """
    ids, index = features.ids, features.index.tolist()
    facts: dict[tuple[int, int], tuple[float, float, bool]] = {}
    columns = (pairs.rows.tolist(), pairs.similarity.tolist(), pairs.pixels.tolist(), pairs.mirrored.tolist())
    for (i, j), similarity, pixels, mirrored in zip(*columns, strict=True):
        facts[i, j] = similarity, pixels, mirrored

    def key(pair: tuple[int, int]) -> tuple[float, float, list[tuple[str, int]]]:
        similarity, pixels, _ = facts[pair]
        return -pixels, -similarity, sorted((ids[row], index[row]) for row in pair)

    home: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    links: dict[int, dict[int, int]] = defaultdict(dict)  # pairs between two groups so far
    for i, j in sorted(facts, key=key):
        for row in (i, j):
            if row not in home:
                home[row], members[row] = row, [row]
        a, b = home[i], home[j]
        count = links[a].get(b, 0) + 1
        links[a][b] = links[b][a] = count
        if count < len(members[a]) * len(members[b]):
            continue
        for row in members[b]:
            home[row] = a
        members[a] += members.pop(b)
        for other, more in links.pop(b).items():
            links[other].pop(b)
            if other != a:
                links[a][other] = links[other][a] = links[a].get(other, 0) + more
    found = []
    for rows in members.values():
        if len(rows) > 1:
            rows.sort(key=lambda row: (ids[row], index[row]))
            inside = [
                Pair(m, n, *facts[min(rows[m], rows[n]), max(rows[m], rows[n])])
                for m in range(len(rows))
                for n in range(m + 1, len(rows))
            ]
            positions = tuple(index[row] for row in rows)
            found.append(Group(positions, tuple(ids[row] for row in rows), tuple(inside), (False,) * len(rows)))
    between = sorted((index[i], index[j]) for i, j in facts if home[i] != home[j])
    if source is not None:
        found = _with_identical(found, source)
    return sorted(found, key=lambda g: (-len(g.ids), min(g.pixels), g.ids, g.index)), between


def look_at(source: Source, index: Tensor, progress: Progress | None = None) -> np.ndarray:
    """Small pictures (`aligned.small`) of the images at these positions: uint8 `n c SIDE SIDE`.

    They are in a temporary file if memory is too small for them.

    Raises:
        UserError: one cannot be read, or there is no room for the file.
    """
    found = _room((len(index), source.reading.count, SIDE, SIDE))

    def read(i: int) -> np.ndarray:
        try:
            with ROOM.turn():
                return small(source.load(i))
        except BadImage as error:
            raise UserError(
                f"{source.where(i)} could be read a moment ago, and no longer can ({error.reason}): try again."
            ) from None

    chosen, done = index.tolist(), 0
    for pictures in in_threads(read, (chosen[start : start + _READ] for start in range(0, len(chosen), _READ))):
        found[done : done + len(pictures)] = np.stack(pictures)
        done += len(pictures)
        if progress is not None:
            progress(done, len(chosen))
    return found


def _room(shape: tuple[int, ...]) -> np.ndarray:
    """An array of bytes in memory, or on disk if it would take more than a quarter of what is free."""
    size = math.prod(shape)
    if size <= machine.free_memory() // 4:
        return np.empty(shape, np.uint8)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # a full disk would end the process later
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise UserError(
            f"There is no room for {size / 1e9:.1f} GB of small pictures in {tempfile.gettempdir()} "
            f"({error.strerror}): set TMPDIR to a folder on a larger disk, or raise --threshold."
        ) from None


def _alike(
    a: np.ndarray, rows: Tensor, b: np.ndarray, others: Tensor, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """Likeness of pictures `a[rows]` to `b[others]`, or to their mirror images if it is higher; and whether it is."""
    found, mirrored = torch.empty(len(rows)), torch.zeros(len(rows), dtype=torch.bool)
    for start in range(0, len(rows), _READ):
        part = slice(start, start + _READ)
        x, y = torch.from_numpy(a[rows[part].numpy()]), torch.from_numpy(b[others[part].numpy()])
        pixels = likeness(x, y)
        left = pixels < SAME
        flipped = torch.full_like(pixels, -1)
        flipped[left] = likeness(x[left], y[left].flip(3))
        found[part], mirrored[part] = torch.maximum(pixels, flipped), flipped > pixels
        if progress is not None:
            progress(min(start + _READ, len(rows)), len(rows))
    return found, mirrored


def _grays(x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalized small gray pictures, and their mirror images."""
    x = F.normalize(x.float(), dim=1)
    flipped = x[:, :-1].view(-1, _GRAY, _GRAY).flip(2).flatten(1)
    return x, torch.cat([flipped, x[:, -1:]], 1)


def _with_identical(groups: Sequence[Group], source: Source) -> list[Group]:
    chosen = [i for group in groups for i in group.index]
    digests = iter(_digests(source, chosen, None))
    found = []
    for group in groups:
        mine = [next(digests) for _ in group.index]
        found.append(replace(group, identical=tuple(d is not None and mine.count(d) > 1 for d in mine)))
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share >= 1e-5 else "fewer than 0.001 %"


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
    a: Tensor,
    b: Tensor,
    threshold: float,
    most: int = _PAIRS,
    device: torch.device | str = "cpu",
    grays: tuple[Tensor, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """All pairs of rows of `a` and `b` whose cosine similarity is at least the threshold, blockwise.

    Args:
        a: `n d`.
        b: `m d`. If it is `a` itself, each pair is given once, as (i, j) with i < j.
        threshold: in (-1, 1].
        most: largest number of pairs.
        device: device to compute on.
        grays: small gray pictures of `a`, which is then `b` too, and the cosine similarity that they or one of them and
            a mirror image must have besides.

    Returns:
        int64, `p 2`, positions in `a` and `b`, and float32, `p`, similarities.

    Raises:
        UserError: there are more than `most` pairs.
    """
    x = F.normalize(a.float(), dim=1).to(device)
    y = x if a is b else F.normalize(b.float(), dim=1).to(device)
    looks = None if grays is None else [look.to(device) for look in _grays(grays[0])]
    pairs, values, count = [], [], 0
    for i in range(0, len(x), _BLOCK):
        for j in range(i if a is b else 0, len(y), _BLOCK):
            block = x[i : i + _BLOCK] @ y[j : j + _BLOCK].T
            near = block >= threshold
            if a is b and i == j:
                near = near.triu(1)
            if looks is not None and grays is not None and near.any():
                mine = looks[0][i : i + _BLOCK]
                near &= torch.maximum(*(mine @ look[j : j + _BLOCK].T for look in looks)) >= grays[1]
            count += int(near.sum())
            if count > most:
                raise UserError(f"More than {most:,} pairs of images are {threshold:g} alike: raise the threshold.")
            values.append(block[near].cpu())
            pairs.append(near.nonzero().cpu() + torch.tensor([i, j]))
    if not pairs:
        return torch.empty(0, 2, dtype=torch.int64), torch.empty(0)
    return torch.cat(pairs), torch.cat(values).clamp(-1, 1)


def looks_alike(grays: Tensor, pairs: Tensor) -> Tensor:
    """Cosine similarity of the small gray pictures of pairs of rows, of which one may be mirrored: float32, `p`."""
    close = []
    for part in pairs.split(_BLOCK * _READ):
        looks, own = _grays(grays[part[:, 0]]), _grays(grays[part[:, 1]])[0]
        close.append(torch.maximum(*((look * own).sum(1) for look in looks)))
    return torch.cat(close) if close else torch.empty(0)


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
    """A line for each image of a group.

    The columns are `group` (its number from 1), `id`, `similarity` and `pixels` (to the least alike image of the
    group), and "yes" or "no" in `mirrored` (like the mirror image of the group's first) and `identical` (has the very
    pixels of another one of the group).
    """
    text = io.StringIO()
    # Quote everything: Python before 3.11.9 does not quote a carriage return in a name, which would begin a new line.
    table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    table.writerow(["group", "id", "similarity", "pixels", "mirrored", "identical"])
    for number, group in enumerate(groups, 1):
        columns = (group.ids, group.similarity, group.pixels, group.mirrored, group.identical)
        for name, similarity, pixels, mirrored, identical in zip(*columns, strict=True):
            text_id = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            marks = ("yes" if mark else "no" for mark in (mirrored, identical))
            table.writerow([number, text_id, f"{similarity:.4f}", f"{pixels:.4f}", *marks])
    return text.getvalue()


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
