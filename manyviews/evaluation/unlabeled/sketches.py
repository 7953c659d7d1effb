"""Which of very many features may be near-duplicates: a cheap first look whose misses are known beforehand.

A sketch is a feature's product with `WIDTH` random Gaussian directions. The squared distance between two sketches is
the features' own squared distance times a chi-squared variable of `WIDTH` degrees of freedom divided by `WIDTH`,
whatever the features are (Johnson and Lindenstrauss 1984). So the share of the pairs of any similarity that a limit on
the sketches' distance loses is known: `LOST` at the threshold itself, and fewer above it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from manyviews.evaluation.unlabeled.duplicates import similar

WIDTH = 32
LOST = 1e-3
"""Share of the pairs at the threshold that are not looked at."""

_ROWS, _COLUMNS = 256, 4096  # of a block of products, 4 MiB, which stays in the cache
_SKETCHED = 65536  # features that are sketched at a time
_PAIRS = 32768  # pairs whose features are compared at a time
_DENSE = 0.02  # share of a block's pairs that pass, from which all its features are compared at once


class Sketches:
    """Sketches of features of length one, and the limit that pairs of a cosine similarity must pass.

    Args:
        x: float16 or float32, `n d`, of length one, on the CPU; it may lie in a mapped file.
        threshold: cosine similarity, in (0, 1).
        seed: draws the directions.
    """

    def __init__(self, x: Tensor, threshold: float, seed: int = 0) -> None:
        from scipy.stats import chi2

        g = torch.Generator().manual_seed(seed)
        directions = torch.randn(x.shape[1], WIDTH, generator=g) / math.sqrt(WIDTH)
        self.x, self.threshold = x, threshold
        s = torch.cat([part.float() @ directions for part in x.split(_SKETCHED)])
        half, one = s.square().sum(1, keepdim=True) / 2, torch.ones(len(s), 1)
        # |a - b|^2 / 2 = |a|^2 / 2 + |b|^2 / 2 - a b, as one product.
        self._left, self._right = torch.cat([s, -half, one], 1), torch.cat([s, one, -half], 1)
        self._limit = -float(chi2.ppf(1 - LOST, WIDTH)) / WIDTH * (1 - threshold)

    def near(self, rows: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pairs of features as similar as the threshold, except for `LOST` of those that are hardly so.

        Args:
            rows: int64, `p`.
            columns: int64, `q`, none of them among the rows; None for pairs of two of the rows, each once.

        Returns:
            int64, `m 2`, rows of `x`, and float32, `m`, their cosine similarities.
        """
        pairs, values = [torch.empty(0, 2, dtype=torch.int64)], [torch.empty(0)]
        same = columns is None
        columns = rows if columns is None else columns
        left, right, room = self._left[rows], self._right[columns], torch.empty(_ROWS * _COLUMNS)
        for i in range(0, len(rows), _ROWS):
            for j in range(i - i % _COLUMNS if same else 0, len(columns), _COLUMNS):
                a, b = left[i : i + _ROWS], right[j : j + _COLUMNS]
                block = torch.mm(a, b.T, out=room[: len(a) * len(b)].view(len(a), len(b)))
                # Few rows of a block have a pair: to find these rows first costs a tenth of a look at every pair.
                some = (block.amax(1) >= self._limit).nonzero()[:, 0]
                places = (block[some] >= self._limit).nonzero()
                places[:, 0] = some[places[:, 0]]
                if len(places) > _DENSE * block.numel():
                    mine, theirs = self.x[rows[i : i + _ROWS]], self.x[columns[j : j + _COLUMNS]]
                    places, _ = similar(mine, theirs, self.threshold, block.numel())
                places += torch.tensor([i, j])
                if same:
                    places = places[places[:, 0] < places[:, 1]]
                found, near = self._exact(torch.stack([rows[places[:, 0]], columns[places[:, 1]]], 1))
                pairs.append(found)
                values.append(near)
        return torch.cat(pairs), torch.cat(values)

    def _exact(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        x = self.x
        near = [cosine_similarity(x[part[:, 0]].float(), x[part[:, 1]].float()) for part in pairs.split(_PAIRS)]
        similarity = torch.cat(near) if near else torch.empty(0)
        kept = similarity >= self.threshold
        return pairs[kept], similarity[kept].clamp(-1, 1)
