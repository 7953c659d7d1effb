"""Choosing images by their features: pairs, outliers, images like a curated set, and balance.

Up to `EXACT` images everything is compared with everything. More are laid into cells by k-means, and an image is
compared with those in the cells that are nearest to it (an inverted file: Sivic and Zisserman 2003): in as many as
planted copies need to meet their originals. Cells are of very different sizes, so that the largest take most of the
time; there `Sketches` leave few pairs to compare, and `isolation` compares with a sample.

Balance is hierarchical k-means: Vo et al. 2024, "Automatic data curation for self-supervised learning: a
clustering-based approach", sections 3.2 to 3.4. k-means puts more centers where there are more images. Clusters of
centers, level upon level, come nearer to a uniform distribution over the images' support, and so does a sample that is
shared out evenly from the top down. Two things differ from the paper: centers are found on a sample of the images, and
the size of the result is exact.

Features are float16 or float32, `n d`, of length one, on the CPU; they may lie in a mapped file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from manyviews import machine
from manyviews.data.canvas import in_threads
from manyviews.errors import UserError
from manyviews.evaluation.features import Progress
from manyviews.evaluation.unlabeled.duplicates import Limits, Pairs, looks_alike, similar
from manyviews.evaluation.unlabeled.sketches import Sketches

_R = TypeVar("_R")

EXACT = 30_000
"""Images that are compared with one another without cells."""

PROBES = 8
"""Nearest cells of an image that are known, of which few are compared with it."""

MEET = 0.995
"""Share of the planted copies that must meet their originals, if the probes allow it."""

_NEAR = 3  # cells that an image is compared with unless planted copies say otherwise
_KEYS = 4096  # images of a cell that the isolation of one of them is measured from
_QUERIES = 1024  # images whose isolation is measured at a time
_ROWS = 8192  # rows that are compared with all centers at a time
_PER_CENTER = 64  # images that a center is found from
_BATCH = 2**30  # products of images and centers from which k-means goes by minibatches
_RESAMPLED = 2  # times that a level is found anew from the images nearest to its centers
_NEAREST = 16  # of them for each center
_MOST = 50_000_000  # pairs


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
        count = self.probes.shape[1]
        return nearest_centers(x, self.centers, count) if len(self.centers) else torch.zeros(len(x), 1).long()

    def narrowed(self, count: int) -> Cells:
        """The same cells, of which each image probes so many."""
        return Cells(self.centers, self.probes[:, :count])

    def meeting(self, copies: Tensor, originals: Tensor) -> tuple[Cells, float]:
        """As few probes as let `MEET` of the copies meet their originals, and the share of them that do.

        Args:
            copies: float, `m d`, features of planted copies, of length one.
            originals: int64, `m`, the rows of what they are copies of.
        """
        mine, theirs = self.near(copies), self.probes[originals]
        # The first of the probes by which a copy is in its original's cell, or the original in the copy's.
        first = torch.stack([mine == theirs[:, :1], theirs == mine[:, :1]]).any(0)
        share = first.cumsum(1).clamp(max=1).double().mean(0)
        count = int((share < min(MEET, float(share[-1]))).sum()) + 1
        return self.narrowed(count), float(share[count - 1])

    def each(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each cell that is not empty, its images, and others that are compared with them: int64, ascending."""
        if not len(self.centers):
            yield torch.arange(len(self.probes)), torch.empty(0, dtype=torch.int64)
            return
        order = self.probes.flatten().argsort(stable=True)
        counts = torch.bincount(self.probes.flatten(), minlength=len(self)).tolist()
        for cell, rows in enumerate((order // self.probes.shape[1]).split(counts)):
            home = self.probes[rows, 0] == cell
            if home.any():
                yield rows[home], rows[~home]


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
    if len(where) == 1:
        both, close = similar(x, x, limits.similarity, most, device, (grays, limits.gray))
        return _unseen(both, close)
    sketches = Sketches(x, limits.similarity)
    found, values, count = [torch.empty(0, 2, dtype=torch.int64)], [torch.empty(0)], 0

    def within(cell: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        mine, others = cell
        both, near = (torch.cat(parts) for parts in zip(sketches.near(mine), sketches.near(mine, others), strict=True))
        alike = looks_alike(grays, both) >= limits.gray
        return both[alike].sort(1).values, near[alike]

    for both, near in _by_cell(within, where):
        found.append(both)
        values.append(near)
        count += len(near)
        if count > 2 * most:  # each may come twice: either image may probe the other's cell
            raise UserError(f"More than {most:,} pairs of images are {limits.similarity:g} alike: raise --duplicates.")
    both = torch.cat(found)
    keys, order = (both[:, 0] * len(x) + both[:, 1]).sort(stable=True)
    first = order[torch.cat([torch.ones(1, dtype=torch.bool), keys[1:] != keys[:-1]])[: len(keys)]]
    return _unseen(both[first], torch.cat(values)[first])


def _by_cell(do: Callable[[tuple[Tensor, Tensor]], _R], where: Cells) -> Iterator[_R]:
    """Something done for each cell, in as many threads as there are cores, each with one of its own."""
    if len(where) == 1:
        yield from map(do, where.each())
        return
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # threads of one operation would wait for one another at every small one
        for done in in_threads(do, ([cell] for cell in where.each()), ahead=2 * machine.cores()):
            yield from done
    finally:
        torch.set_num_threads(before)


def _unseen(rows: Tensor, similarity: Tensor) -> Pairs:
    """Pairs whose pixels nobody has compared."""
    return Pairs(rows, similarity, torch.full_like(similarity, torch.nan), torch.zeros(len(rows), dtype=torch.bool))


def isolation(x: Tensor, where: Cells, k: int = 10) -> Tensor:
    """How far each image is from its `k` nearest others: the mean of 1 - cosine similarity; float32, `n`, in [0, 2].

    With more cells than one, others are those of its own cell and those that probe it. If they are many, a sample of
    `_KEYS` of them: images of very large cells seem a little more isolated than they are.
    """
    k = min(k, len(x) - 1)
    if k < 1:
        return torch.zeros(len(x))
    best = torch.full((len(x), k), -2.0)

    def within(cell: tuple[Tensor, Tensor]) -> None:
        keys = torch.cat(cell)
        if len(where) > 1 and len(keys) > _KEYS:
            keys = keys[torch.linspace(0, len(keys) - 1, _KEYS).long()]
        held = normalize(x[keys].float(), dim=1).T
        for mine in cell[0].split(_QUERIES):
            near = normalize(x[mine].float(), dim=1) @ held
            near.masked_fill_(keys == mine[:, None], -2.0)  # an image is no neighbor of its own
            best[mine, : len(keys)] = near.topk(min(k, len(keys))).values

    for _ in _by_cell(within, where.narrowed(_NEAR)):
        pass
    found = best > -2
    mean = torch.where(found, best, 0).sum(1) / found.sum(1).clamp(min=1)
    return torch.where(found.any(1), 1 - mean, 2.0)


def sample(n: int, most: int, seed: int) -> Tensor:
    """At most so many of n rows: int64, ascending."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:most].sort().values


def kmeans(x: Tensor, k: int, seed: int) -> Tensor:
    """Centers of k-means by scikit-learn, on at most 64 images for each: float32, `k d`.

    There are fewer centers than `k` if there are fewer images, and none without an image.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(x) <= k:
        return x.float()
    some = sample(len(x), _PER_CENTER * k, seed)
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
        some = x[sample(len(x), _PER_CENTER * k, seed + level)]
        centers = kmeans(some, k, seed + level)
        for again in range(_RESAMPLED):
            centers = kmeans(some[_closest(*_homes(some, centers))], k, seed + level + again + 1)
        used, home = nearest_centers(x, centers, 1)[:, 0].unique(return_inverse=True)
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
