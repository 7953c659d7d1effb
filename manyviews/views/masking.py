"""What is hidden of a view: frozen settings, drawn from counters like everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews import distributed
from manyviews.errors import UserError, require
from manyviews.views.draws import Draws, between
from manyviews.views.regions import inside
from manyviews.views.view import Range


class Mask(NamedTuple):
    """Which of a view's n patches are hidden. Patches are counted row by row.

    Attributes:
        hidden: bool, `b n`.
        kept: int64, `b v`, the patches that are not hidden, ascending; None where images keep different numbers. Those
            of `Uniform` are in the order of its cells, and some of them may be hidden.
        blocks: int64, `b m` each, the patches to predict, block by block. Where images hide different numbers, the
            hidden ones come first and others fill up.
    """

    hidden: Tensor
    kept: Tensor | None
    blocks: tuple[Tensor, ...]


@dataclass(frozen=True)
class Masking(ABC):
    """A way to hide patches, as a frozen setting."""

    @abstractmethod
    def draw(self, grid: tuple[int, int], draws: Draws) -> Mask:
        """A mask of each image.

        Args:
            grid: rows and columns of patches.
            draws: the view's draws.

        Raises:
            UserError: the grid is too small.
        """


@dataclass(frozen=True)
class Random(Masking):
    """The same number of patches of every image, uniformly at random without replacement (MAE, He et al. 2022).

    Attributes:
        ratio: fraction that is hidden, rounded to whole squares.
        side: rows and columns of patches that are hidden or shown together. SimMIM (Xie et al. 2022) hides squares of
            32 pixels: 2 patches of 16.
    """

    ratio: float = 0.75
    side: int = 1

    def __post_init__(self) -> None:
        require(0 < self.ratio < 1, self, "ratio", "between 0 and 1")
        require(self.side >= 1, self, "side", "1 or more")

    def draw(self, grid: tuple[int, int], draws: Draws) -> Mask:
        (rows, columns), side = grid, self.side
        if rows % side or columns % side:
            raise UserError(f"Squares of {side} x {side} patches do not tile a grid of {rows} x {columns}.")
        n, visible = _visible((rows // side, columns // side), self.ratio)
        kept = draws.uniform("mask", n).argsort(dim=1, stable=True)[:, :visible]
        if side > 1:
            first = (kept // (columns // side) * columns + kept % (columns // side)) * side
            within = torch.arange(side, device=kept.device)
            kept = (first[:, :, None] + (within[:, None] * columns + within).flatten()).flatten(1)
        return _mask_of(kept.sort(1).values, rows * columns)


@dataclass(frozen=True)
class Grid(Masking):
    """One of every four patches stays, at even rows and columns (MAE's ablation, He et al. 2022, figure 6)."""

    def draw(self, grid: tuple[int, int], draws: Draws) -> Mask:
        rows, columns = (torch.arange(0, side, 2, device=draws.index.device) for side in grid)
        kept = (rows[:, None] * grid[1] + columns).flatten()
        if len(kept) == grid[0] * grid[1]:
            raise UserError(f"A grid of {grid[0]} x {grid[1]} patches is too small to hide three of every four.")
        return _mask_of(kept.expand(len(draws.index), -1), grid[0] * grid[1])


@dataclass(frozen=True)
class Uniform(Masking):
    """One patch of each cell of 2 x 2 stays, at random, and tokens hide some of these (UM-MAE, Li et al. 2022).

    The patches that stay are an image of half the height and width, which networks with windows can see. Without the
    second mask they learn less, because a hidden patch always has visible neighbors.

    Attributes:
        secondary: share of the patches that stay which are hidden after all, rounded to whole patches.
    """

    secondary: float = 0.25

    def __post_init__(self) -> None:
        require(0 <= self.secondary < 1, self, "secondary", "at least 0 and less than 1")

    def draw(self, grid: tuple[int, int], draws: Draws) -> Mask:
        (rows, columns), n = grid, grid[0] * grid[1] // 4
        hidden_too = round(n * self.secondary)
        if rows % 2 or columns % 2 or hidden_too >= n:
            raise UserError(f"A grid of {rows} x {columns} patches has no cells of 2 x 2, or too few to hide some.")
        cell = torch.arange(n, device=draws.index.device)
        first = 2 * (cell // (columns // 2) * columns + cell % (columns // 2))
        within = (draws.uniform("cell", n) * 4).long()
        kept = first + within // 2 * columns + within % 2
        order = draws.uniform("secondary", n).argsort(dim=1, stable=True)
        seen = kept.gather(1, order[:, hidden_too:])
        return _mask_of(seen.sort(1).values, rows * columns)._replace(kept=kept)


@dataclass(frozen=True)
class Blocks(Masking):
    """Rectangles, laid one after the other until a share of the patches is hidden (BEiT, Bao et al. 2022; iBOT).

    The last rectangle is cut short, row by row, so that the share is exact. iBOT (Zhou et al. 2022) leaves half of the
    images as they are, and draws the share of the others. BEiT hides 40 % of each, `Blocks((0.4, 0.4), p=1.0)`; with
    such a fixed share all images keep equally many patches, as MAE needs it.

    Attributes:
        ratio: range of the share that is hidden.
        p: probability that anything of an image is hidden.
        aspect: range of a rectangle's height / width, of which the logarithm is uniform.
    """

    ratio: Range = (0.1, 0.5)
    p: float = 0.5
    aspect: Range = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        require(0 < self.ratio[0] <= self.ratio[1] < 1, self, "ratio", "an increasing pair between 0 and 1")
        require(0 <= self.p <= 1, self, "p", "between 0 and 1")
        require(0 < self.aspect[0] <= self.aspect[1], self, "aspect", "a positive and increasing pair")

    def draw(self, grid: tuple[int, int], draws: Draws) -> Mask:
        h, w = grid
        n, most = h * w, max(1, round(h * w * self.ratio[1]))
        count = _counts(draws, n, self.ratio, self.p)
        least = (min(grid) // 3) ** 2
        area = torch.lerp(torch.full_like(count, least).minimum(count), count, draws.uniform("area", _RECTANGLES))
        boxes = _rectangles(draws, "block", grid, area, self.aspect)
        covered = inside(boxes.flatten(0, 1), h, w).view(len(count), _RECTANGLES, n)
        # The first rectangle over each patch; patches under none come last. Within a rectangle, row by row.
        first = torch.where(covered.any(1), covered.int().argmax(1), _RECTANGLES)
        order = (first * n + torch.arange(n, device=first.device)).argsort(1)
        same = self.p == 1 and self.ratio[0] == self.ratio[1]
        hidden = order.argsort(1) < (most if same else count)
        return Mask(hidden, order[:, most:].sort(1).values if same else None, (order[:, :most],))


@dataclass(frozen=True)
class InverseBlocks(Masking):
    """Squares that stay, until a share of the patches is left (data2vec 2.0, Baevski et al. 2023).

    Squares are laid around patches drawn at random, and may reach over the edge. The last one is cut at random, so that
    all images keep equally many patches.

    Attributes:
        ratio: fraction that is hidden, rounded to whole patches.
        block: side of a square, in patches.
    """

    ratio: float = 0.8
    block: int = 3

    def __post_init__(self) -> None:
        require(0 < self.ratio < 1, self, "ratio", "between 0 and 1")
        require(self.block >= 1, self, "block", "1 or more")

    def draw(self, grid: tuple[int, int], draws: Draws) -> Mask:
        n, visible = _visible(grid, self.ratio)
        rank = draws.uniform("block", n).view(-1, 1, *grid)
        before, after = (self.block - 1) // 2, self.block // 2
        around = F.pad(-rank, (before, after, before, after), value=-torch.inf)
        first = -F.max_pool2d(around, self.block, stride=1).flatten(1)  # of the squares over a patch
        shuffled = draws.uniform("cut", n).argsort(1)
        order = shuffled.gather(1, first.gather(1, shuffled).argsort(dim=1, stable=True))
        return _mask_of(order[:, :visible].sort(1).values, n)


@dataclass(frozen=True)
class Scattered(Masking):
    """Single patches, uniformly at random without replacement, until a share of them is hidden (iBOT's random masks).

    Attributes:
        ratio: range of the share that is hidden.
        p: probability that anything of an image is hidden.
    """

    ratio: Range = (0.1, 0.5)
    p: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.ratio[0] <= self.ratio[1] < 1, self, "ratio", "an increasing pair between 0 and 1")
        require(0 <= self.p <= 1, self, "p", "between 0 and 1")

    def draw(self, grid: tuple[int, int], draws: Draws) -> Mask:
        n = grid[0] * grid[1]
        order = draws.permutation("mask", n)
        hidden = order.argsort(1) < _counts(draws, n, self.ratio, self.p)
        return Mask(hidden, None, (order[:, : max(1, round(n * self.ratio[1]))],))


@dataclass(frozen=True)
class MultiBlock(Masking):
    """Several blocks to predict from one large block that shows none of them (I-JEPA, Assran et al. 2023).

    All images of a step have blocks of one size, drawn for the step, each at a place of its own. So that a batch is one
    tensor, all images of all processes keep as many patches as the one with the fewest, chosen at random. Alone of all
    maskings, this depends on the batch.

    Attributes:
        targets: blocks to predict.
        scale: range of a target's share of the patches.
        aspect: range of a target's height / width.
        context: range of the large block's share of the patches; it is as wide as high.
        least: patches that stay in any case, even if they are to be predicted.
    """

    targets: int = 4
    scale: Range = (0.15, 0.2)
    aspect: Range = (0.75, 1.5)
    context: Range = (0.85, 1.0)
    least: int = 4

    def __post_init__(self) -> None:
        require(self.targets >= 1, self, "targets", "1 or more")
        for name in ("scale", "context"):
            low, high = getattr(self, name)
            require(0 < low <= high <= 1, self, name, "an increasing pair in (0, 1]")
        require(0 < self.aspect[0] <= self.aspect[1], self, "aspect", "a positive and increasing pair")
        require(self.least >= 1, self, "least", "1 or more")

    def draw(self, grid: tuple[int, int], draws: Draws) -> Mask:
        h, w = grid
        n, b, k = h * w, len(draws.index), self.targets
        if n <= self.least:
            raise UserError(f"A grid of {h} x {w} patches is too small for masks that keep {self.least}.")
        u = draws.shared().uniform("size", 3)[0]  # on the CPU, where shapes must be known
        size = _side(between(u[0], *self.scale) * n, between(u[1], *self.aspect), grid)
        large = _side(between(u[2], *self.context) * n, torch.ones(()), grid)
        tall, wide = (int(x) for x in size)
        corners = _corners(draws, "target", grid, size, k)
        rows = torch.arange(tall, device=corners.device)[:, None]
        columns = torch.arange(wide, device=corners.device)
        blocks = [((c[:, :1, None] + rows) * w + c[:, 1:, None] + columns).flatten(1) for c in corners.unbind(1)]
        target = torch.zeros(b, n, dtype=torch.bool, device=corners.device).scatter(1, torch.cat(blocks, 1), True)
        corner = _corners(draws, "context", grid, large, 1)[:, 0]
        box = torch.cat([corner, corner.new_tensor([int(x) for x in large]).expand(b, 2)], 1)
        outside = ~inside(box, h, w).view(b, n)
        fewest = max(self.least, distributed.least(int((~(target | outside)).sum(1).min())))
        # Patches of the context come first, at random; where they do not suffice, targets follow.
        order = (draws.uniform("rest", n) + target.float() + 2 * outside.float()).argsort(1)
        return _mask_of(order[:, :fewest].sort(1).values, n)._replace(blocks=tuple(blocks))


_RECTANGLES = 10  # candidates of `Blocks`: their union covers the share in all but a few images in a thousand


def _visible(grid: tuple[int, int], ratio: float) -> tuple[int, int]:
    """The number of patches, and of those that stay. Raises UserError where none would, or all."""
    n = grid[0] * grid[1]
    visible = n - round(n * ratio)
    if not 0 < visible < n:
        raise UserError(f"A mask ratio of {ratio} hides {n - visible} of {n} patches: some must stay and some must go.")
    return n, visible


def _counts(draws: Draws, n: int, ratio: Range, p: float) -> Tensor:
    """float32, `b 1`: how many of n patches are hidden of each image; of the others of `p`, none."""
    count = (draws.uniform("ratio", 1, *ratio) * n).round().clamp(min=1)
    return count * draws.bernoulli("any", p)[:, None]


def _mask_of(kept: Tensor, n: int) -> Mask:
    hidden = torch.ones(len(kept), n, dtype=torch.bool, device=kept.device).scatter(1, kept, False)
    rest = hidden.int().argsort(stable=True, dim=1, descending=True)[:, : n - kept.shape[1]]
    return Mask(hidden, kept, (rest,))


def _side(area: Tensor, aspect: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Height and width in whole patches, which fit into the grid."""
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    return tall.clamp(1, grid[0]), wide.clamp(1, grid[1])


def _corners(draws: Draws, name: str, grid: tuple[int, int], size: tuple[Tensor, Tensor], k: int) -> Tensor:
    """int64, `b k 2`: top and left of k blocks of one size, uniform."""
    u = draws.uniform(name, 2 * k).view(-1, k, 2)
    return (u * torch.tensor([grid[0] - int(size[0]) + 1, grid[1] - int(size[1]) + 1], device=u.device)).long()


def _rectangles(draws: Draws, name: str, grid: tuple[int, int], area: Tensor, aspect: Range) -> Tensor:
    """int64, `b k 4`: top, left, height and width of blocks of these areas, `b k`, in patches."""
    k = area.shape[1]
    low, high = torch.tensor(aspect).log().tolist()
    tall, wide = _side(area, draws.uniform(f"{name} aspect", k, low, high).exp(), grid)
    u = draws.uniform(name, 2 * k).view(-1, k, 2)
    top, left = u[..., 0] * (grid[0] - tall + 1), u[..., 1] * (grid[1] - wide + 1)
    return torch.stack([top, left, tall, wide], 2).long()
