"""Choosing images by their features: pairs, outliers, images like a curated set, and balance.

Up to `EXACT` images everything is compared with everything. More are laid into cells by k-means, and an image is
compared with those in the `PROBES` cells that are nearest to it (an inverted file: Sivic and Zisserman 2003).

Balance is hierarchical k-means: Vo et al. 2024, "Automatic data curation for self-supervised learning: a
clustering-based approach", sections 3.2 to 3.4. k-means puts more centers where there are more images. Clusters of
centers, level upon level, come nearer to a uniform distribution over the images' support, and so does a sample that is
shared out evenly from the top down. Two things differ from the paper: centers are found on a sample of the images, and
the size of the result is exact.

Features are float16 or float32, `n d`, of length one, on the CPU; they may lie in a mapped file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from manyviews.errors import UserError
from manyviews.evaluation.features import Progress
from manyviews.evaluation.knn import neighbors
from manyviews.evaluation.unlabeled.duplicates import Limits, Pairs, similar

REASONS = ("unreadable", "duplicate", "outlier", "unlike", "balance")
"""Why an image is dropped, in the order in which it is decided."""

EXACT = 30_000
"""Images that are compared with one another without cells."""

PROBES = 3

_ROWS = 8192  # rows that are compared with all centers at a time
_PER_CENTER = 64  # images that a center is found from
_BATCH = 2**30  # products of images and centers from which k-means goes by minibatches
_RESAMPLED = 2  # times that a level is found anew from the images nearest to its centers
_NEAREST = 16  # of them for each center
_MOST = 50_000_000  # pairs


@dataclass
class Choice:
    """What is decided of each image of a source.

    Attributes:
        reason: why it is dropped, one of `REASONS`; empty if it is kept.
        duplicate_of: of a duplicate, the position of the copy that is kept, else -1: int64, `n`.
        isolation: mean of 1 - cosine similarity to its ten nearest; nan if it was not asked: float32, `n`.
        similarity: cosine similarity to the nearest of the images to be like; nan if there are none: float32, `n`.
        cluster: the finest cluster that it is in, else -1: int64, `n`.
        notes: sentences for people, one for each stage.
    """

    reason: list[str]
    duplicate_of: np.ndarray
    isolation: np.ndarray
    similarity: np.ndarray
    cluster: np.ndarray
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cells:
    """Images in cells, so that each is compared with few.

    Attributes:
        centers: float32, `k d`; of no rows if there is one cell.
        probes: int64, `n p`: the cells that are nearest to each image; the first is its own.
    """

    centers: Tensor
    probes: Tensor

    def __len__(self) -> int:
        return max(1, len(self.centers))

    def near(self, x: Tensor) -> Tensor:
        """The cells that are nearest to other features: int64, `m p`."""
        return nearest_centers(x, self.centers, PROBES) if len(self.centers) else torch.zeros(len(x), 1).long()

    def each(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each cell that is not empty, its images, and the images that are compared with them: int64, ascending."""
        if not len(self.centers):
            everything = torch.arange(len(self.probes))
            yield everything, everything
            return
        order = self.probes.flatten().argsort(stable=True)
        counts = torch.bincount(self.probes.flatten(), minlength=len(self)).tolist()
        for cell, found in enumerate((order // self.probes.shape[1]).split(counts)):
            rows = found.sort().values
            mine = rows[self.probes[rows, 0] == cell]
            if len(mine):
                yield mine, rows


def cells(x: Tensor, seed: int = 0) -> Cells:
    """Lay images into cells: one up to `EXACT` images, else twice the square root of their number."""
    if len(x) <= EXACT:
        return Cells(torch.empty(0, x.shape[1]), torch.zeros(len(x), 1, dtype=torch.int64))
    # By cosine: short centers, the means of images that have little in common, would else be nearest to very many.
    centers = normalize(kmeans(x, round(2 * len(x) ** 0.5), seed), dim=1)
    return Cells(centers, nearest_centers(x, centers, PROBES))


def pairs(
    x: Tensor, grays: Tensor, limits: Limits, where: Cells, device: torch.device | str = "cpu", most: int = _MOST
) -> Pairs:
    """Pairs of images that are as alike as the limits ask, before a second look: see `duplicates.proposed`.

    Of each pair one image must be in a cell that the other probes, or it is not found.

    Raises:
        UserError: there are more than `most`.
    """
    found, values = [torch.empty(0, 2, dtype=torch.int64)], [torch.empty(0)]
    for mine, rows in where.each():
        asked = x[rows], (grays[rows], limits.gray)
        if mine is rows:
            local, near = similar(asked[0], asked[0], limits.similarity, most, device, asked[1])
            both = rows[local]
        else:
            local, near = similar(asked[0], x[mine], limits.similarity, most, device, asked[1], grays[mine])
            both = torch.stack([rows[local[:, 0]], mine[local[:, 1]]], 1).sort(1).values
            others = both[:, 0] != both[:, 1]
            both, near = both[others], near[others]
        found.append(both)
        values.append(near)
        if sum(map(len, values)) > 2 * PROBES * most:  # a pair comes from each of its cells that the other probes
            raise UserError(f"More than {most:,} pairs of images are {limits.similarity:g} alike: raise --duplicates.")
    both = torch.cat(found)
    keys, order = (both[:, 0] * len(x) + both[:, 1]).sort(stable=True)
    first = order[torch.cat([torch.ones(1, dtype=torch.bool), keys[1:] != keys[:-1]])[: len(keys)]]
    close = torch.cat(values)[first]
    return Pairs(both[first], close, torch.full_like(close, torch.nan), torch.zeros(len(close), dtype=torch.bool))


def isolation(x: Tensor, where: Cells, k: int = 10) -> Tensor:
    """How far each image is from its `k` nearest others: the mean of 1 - cosine similarity; float32, `n`, in [0, 2]."""
    k = min(k, len(x) - 1)
    if k < 1:
        return torch.zeros(len(x))
    best = torch.full((len(x), k), -2.0)
    for keys, queries in where.each():
        near, column = neighbors(x[keys], x[queries], min(k + 1, len(keys)))
        near[keys[column] == queries[:, None]] = -2.0  # an image is no neighbor of its own
        best[queries] = torch.cat([best[queries], near], 1).topk(k).values
    found = best > -2
    mean = torch.where(found, best, 0).sum(1) / found.sum(1).clamp(min=1)
    return torch.where(found.any(1), 1 - mean, 2.0)


def kmeans(x: Tensor, k: int, seed: int) -> Tensor:
    """Centers of k-means by scikit-learn, on at most 64 images for each: float32, `k d`.

    There are fewer centers than `k` if there are fewer images, and none without an image.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(x) <= k:
        return x.float()
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: _PER_CENTER * k].sort().values
    z = x[some].float().numpy()
    if z.size * k <= _BATCH:
        model = KMeans(k, n_init=1, max_iter=50, random_state=seed)
    else:
        # Random centers at first: k-means++ takes longer than all the rest.
        batch = max(4096, 2 * k)
        model = MiniBatchKMeans(k, init="random", n_init=1, batch_size=batch, max_iter=4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct images than centers
        centers = torch.from_numpy(model.fit(z).cluster_centers_).float()
    return centers[torch.bincount(nearest_centers(x[some], centers, 1)[:, 0], minlength=k) > 0]


@dataclass(frozen=True)
class Tree:
    """Clusters of images, clusters of clusters, and so on.

    Attributes:
        parents: for each level int64: the cluster of each image, then the cluster of each cluster; none is empty.
        centers: float32, `k d`: those of the finest clusters.
    """

    parents: tuple[Tensor, ...]
    centers: Tensor


def tree(x: Tensor, seed: int = 0, progress: Progress | None = None) -> Tree:
    """Hierarchical k-means with resampling.

    The finest level has four times the square root of the number of images, and each further one a tenth of that
    below it, as long as it has more than one.
    """
    counts = [max(1, round(4 * len(x) ** 0.5))]
    while counts[-1] >= 20:
        counts.append(counts[-1] // 10)
    parents, finest = list[Tensor](), None
    for level, k in enumerate(counts):
        centers = kmeans(x, k, seed + level)
        home, distance = _homes(x, centers)
        for again in range(_RESAMPLED):
            centers = kmeans(x[_closest(home, distance)], k, seed + level + again + 1)
            home, distance = _homes(x, centers)
        used, home = home.unique(return_inverse=True)
        centers = centers[used]
        parents.append(home)
        finest = centers if finest is None else finest
        x = centers
        if progress is not None:
            progress(level + 1, len(counts))
    assert finest is not None
    return Tree(tuple(parents), finest)


def balanced(levels: Sequence[Tensor], n: int, seed: int = 0) -> Tensor:
    """Choose `n` images, shared out as evenly as the clusters' sizes allow, from the top down: bool, one per image.

    Args:
        levels: the `parents` of a `Tree`.
        n: how many; all images if there are not as many.
        seed: draws the images of a finest cluster, and the clusters that get one more where a division leaves a rest.
    """
    rng = np.random.default_rng(seed)
    sizes = [torch.bincount(levels[0])]
    for parent in levels[1:]:
        sizes.append(torch.zeros(int(parent.max()) + 1, dtype=torch.int64).index_add_(0, parent, sizes[-1]))
    shares = fair(sizes[-1].numpy(), n, rng)
    for level in range(len(levels) - 1, 0, -1):
        below = np.zeros(len(sizes[level - 1]), dtype=np.int64)
        for children, share in zip(_members(levels[level]), shares, strict=True):
            below[children] = fair(sizes[level - 1].numpy()[children], int(share), rng)
        shares = below
    chosen = torch.zeros(len(levels[0]), dtype=torch.bool)
    for images, share in zip(_members(levels[0]), shares, strict=True):
        chosen[rng.choice(images, int(share), replace=False)] = True
    return chosen


def fair(sizes: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` shared out among clusters as evenly as their sizes allow: int64. All of them if there are not as many."""
    if n >= sizes.sum():
        return sizes.copy()
    order = np.sort(sizes)
    # Each of the smaller clusters gives all it has; those left share the rest alike.
    before = np.cumsum(order) - order
    level = (n - before) // np.arange(len(order), 0, -1)
    limit = int(level[np.flatnonzero(level < order)[0]])
    found: np.ndarray = np.minimum(sizes, limit)
    larger = np.flatnonzero(sizes > limit)
    found[rng.permutation(larger)[: n - found.sum()]] += 1
    return found


def _homes(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest center of each row, int64, and its squared distance, both `n`."""
    homes, distances = [], []
    for part in x.split(_ROWS):
        home = nearest_centers(part, centers, 1)[:, 0]
        homes.append(home)
        distances.append((part.float() - centers[home]).square().sum(1))
    return torch.cat(homes), torch.cat(distances)


def nearest_centers(x: Tensor, centers: Tensor, count: int) -> Tensor:
    """The `count` nearest centers of each row, the nearest first: int64, `n count`."""
    offset = centers.square().sum(1) / 2
    count = min(count, len(centers))
    found = []
    for part in x.split(_ROWS):
        close = torch.addmm(-offset, part.float(), centers.T)
        found.append(close.argmax(1, keepdim=True) if count == 1 else close.topk(count).indices)
    return torch.cat(found) if found else torch.empty(0, count, dtype=torch.int64)


def _closest(home: Tensor, distance: Tensor) -> Tensor:
    """Of each cluster, the rows that are nearest to its center: int64, ascending."""
    order = distance.argsort(stable=True)
    order = order[home[order].argsort(stable=True)]
    counts = torch.bincount(home)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[home[order]]
    return order[rank < _NEAREST].sort().values


def _members(parent: Tensor) -> list[np.ndarray]:
    """The rows of each cluster."""
    return [rows.numpy() for rows in parent.argsort(stable=True).split(torch.bincount(parent).tolist())]
