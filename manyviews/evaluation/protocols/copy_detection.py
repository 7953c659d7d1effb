"""Distorted copies of images, found among many others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import UserError
from manyviews.evaluation import metrics
from manyviews.evaluation.baselines import Pixels
from manyviews.evaluation.contract import Count, ImageTask, LabeledTask, Metric, MetricProtocol
from manyviews.evaluation.corrupt import jpeg
from manyviews.evaluation.features import encode, read_again
from manyviews.evaluation.knn import neighbors
from manyviews.evaluation.linear import Standardizer
from manyviews.evaluation.protocols._images import comparable
from manyviews.evaluation.rankings import ascending
from manyviews.views import Draws
from manyviews.views.augmentations import (
    Augmentation,
    ColorJitter,
    Erase,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    ResizedCrop,
    Rotate,
)
from manyviews.views.regions import apply_to, inside

_BLOCK = 2**24  # similarities at a time: 64 MiB
_RESAMPLES = 1000

DISTORTIONS: tuple[Augmentation, ...] = (
    ResizedCrop(p=0.8, area=(0.2, 1.0), ratio=(0.5, 2.0)),
    HorizontalFlip(p=0.5),
    Rotate(p=0.2),
    ColorJitter(p=0.8, brightness=0.6, contrast=0.6, saturation=0.6, hue=0.1),
    Grayscale(p=0.1),
    GaussianBlur(p=0.3),
)
"""Distortions of a copy, in order; after them come a piece of another image and a JPEG file."""

_OVERLAY = Erase(p=0.3, side=(0.2, 0.5))
_JPEG, _QUALITY = 0.5, (30.0, 90.0)


def distorted(pixels: Tensor, others: Tensor, index: Tensor, seed: int) -> Tensor:
    """Copies as people make them: cropped, mirrored, rotated, recolored, blurred, pasted over, and compressed.

    The edits are like those of DISC21 (Douze et al. 2021), with other strengths and probabilities.

    Args:
        pixels: uint8, `b 3 s s`.
        others: uint8, `b 3 s s`: for each image another one, a piece of which is pasted over it.
        index: int64, `b`: a number of each image's own, which decides its distortion.
        seed: seed of the distortions.

    Returns:
        uint8, `b 3 s s`.
    """
    x, draws = pixels.float() / 255, Draws(seed, 0, index).at("copy")
    for kind in DISTORTIONS:
        own = draws.at(kind.name)
        x = apply_to(draws.bernoulli(kind.name, kind.p), kind.apply, x, kind.draw(own, x.shape[-1]))
    boxes = _OVERLAY.draw(draws.at("overlay"), x.shape[-1]).long()
    covered = inside(boxes, *x.shape[-2:]) & draws.bernoulli("overlay", _OVERLAY.p)[:, None, None, None]
    found = (torch.where(covered, others / 255, x) * 255).round_().to(torch.uint8)
    quality = draws.uniform("quality", 1, *_QUALITY)[:, 0].round().long()
    return apply_to(draws.bernoulli("jpeg", _JPEG), jpeg, found, quality)


@dataclass(frozen=True)
class Pooled:
    """The true pairs in the ranking of all pairs of queries and references.

    Attributes:
        score: scores of the true pairs, descending: float32, `p`.
        query: the query of each: int64, `p`.
        ahead: number of false pairs of each query that score at least as high: int64, `p q`.
    """

    score: Tensor
    query: Tensor
    ahead: Tensor


def pool(queries: Tensor, references: Tensor, pairs: Tensor, offset: Tensor | None = None) -> Pooled:
    """Rank all pairs of queries and references by one score, blockwise.

    Args:
        queries: `q d`.
        references: `n d`.
        pairs: int64, `p 2`: a query that is a copy, and the reference that it is a copy of.
        offset: `q`, subtracted from each query's cosine similarities; None for zero.
    """
    q, r = F.normalize(queries.float(), dim=1), F.normalize(references.float(), dim=1)
    offset = q.new_zeros(len(q)) if offset is None else offset.float()
    of, to = pairs.to(q.device).unbind(1)
    score, order = ((q[of] * r[to]).sum(1) - offset[of]).sort(descending=True, stable=True)
    ahead = torch.empty(len(q), len(score), dtype=torch.int64, device=q.device)
    size = max(1, _BLOCK // len(r))
    for start in range(0, len(q), size):
        block = q[start : start + size] @ r.T - offset[start : start + size, None]
        mine = (of >= start) & (of < start + size)
        block[of[mine] - start, to[mine]] = -torch.inf
        wanted = score.expand(len(block), -1).contiguous()
        ahead[start : start + size] = len(r) - torch.searchsorted(ascending(block), wanted)
    return Pooled(score.cpu(), of[order].cpu(), ahead.T.cpu())


def micro_average_precision(pooled: Pooled, weights: Tensor | None = None) -> Tensor:
    """Area under the one curve of precision by recall of all pairs, in [0, 1]: one threshold serves all queries.

    All true pairs count (Douze et al. 2021, DISC21; Pizzi et al. 2022, SSCD).

    Args:
        pooled: the ranking.
        weights: float64, `... q`, weights of the queries, for resampling; 1 each if not given.

    Returns:
        float64, with the shape of the weights without their last axis.
    """
    if weights is None:
        weights = torch.ones(pooled.ahead.shape[1], dtype=torch.float64)
    own = weights[..., pooled.query]
    true, false = own.cumsum(-1), weights @ pooled.ahead.T.double()
    return (own * true / (true + false).clamp(min=1e-12)).sum(-1) / own.sum(-1)


@dataclass(frozen=True)
class CopyDetection(MetricProtocol):
    """Micro average precision of finding the originals of distorted test images among all images; without labels.

    Queries are distorted copies of some test images, and of others that are not among the references, which are all
    training images and the other test images. One threshold must tell which queries are copies, and of what.

    Details: the same with scores from which each query's mean similarity to its nearest training images is subtracted
    (Pizzi et al. 2022, SSCD: score normalization); the share of copies whose nearest reference is the original; the
    share of copies that are found at the lowest threshold at which 90 % of the pairs are true, and this threshold, 1
    where there is none. The interval is over queries.

    Args:
        copies: number of queries with an original, at most half of the test images.
        distractors: number of queries without one, at most half of the test images.
        neighbors: number of nearest training images for the normalized scores.

    Raises:
        UserError: fewer than two test images.
    """

    name = "copy_detection"
    title = "copy detection"
    seeded = True
    in_color = True

    copies: Count = 1000
    distractors: Count = 1000
    neighbors: Count = 3

    def run(self, task: LabeledTask, seed: int) -> Metric:
        known, test_x = comparable(task)
        m = len(test_x)
        if m < 2:
            raise UserError("Copy detection needs at least two test images.")
        order = Draws(seed, 0, torch.arange(m)).bits("queries", 1)[:, 0].argsort()
        originals, strangers = order[: min(self.copies, m // 2)], order[m - min(self.distractors, m // 2) :]
        chosen = torch.cat([originals, strangers])
        queries = _queries(task, chosen, seed)
        if isinstance(task.encoder, Pixels):
            queries = Standardizer.of(task.frozen.trainval_x)(queries)

        kept = torch.ones(m, dtype=torch.bool)
        kept[strangers] = False
        position = kept.cumsum(0) - 1
        references = torch.cat([test_x[kept.to(test_x.device)], known])
        pairs = torch.stack([torch.arange(len(originals)), position[originals]], 1)
        pooled = pool(queries, references, pairs)
        near = min(self.neighbors, len(known))
        normalized = pool(queries, references, pairs, offset=neighbors(known, queries, near)[0].mean(1))

        resampled = np.random.default_rng(seed).multinomial(
            len(chosen), np.full(len(chosen), 1 / len(chosen)), _RESAMPLES
        )
        areas = micro_average_precision(pooled, torch.from_numpy(resampled).double())
        low, high = np.nanpercentile(areas.numpy(), [50 * (1 - metrics.LEVEL), 50 * (1 + metrics.LEVEL)])
        found = torch.arange(1, len(pooled.score) + 1)
        precise = (found / (found + pooled.ahead.sum(1)) >= 0.9).nonzero()[:, 0]
        last = int(precise[-1]) if len(precise) else -1
        first = pooled.ahead[torch.arange(len(found)), pooled.query] == 0
        return Metric(
            "micro-AP",
            micro_average_precision(pooled).item(),
            (float(low), float(high)),
            {
                "micro-AP, normalized scores": micro_average_precision(normalized).item(),
                "recall@1": first.double().mean().item(),
                "recall at 90 % precision": (last + 1) / len(found),
                "threshold at 90 % precision": pooled.score[last].item() if len(precise) else 1.0,
            },
            {"copies": len(originals), "distractors": len(strangers), "neighbors": near},
        )


def _queries(task: ImageTask, rows: Tensor, seed: int) -> Tensor:
    """Features of distorted copies of these test images, on the task's device: `q d`."""
    found: list[Tensor] = []
    done, before = 0, None
    for pixels in read_again(task.test.subset(rows.numpy()), task.size):
        # A piece of the image before is pasted over each image.
        others = torch.cat([pixels[-1:] if before is None else before, pixels[:-1]])
        before = pixels[-1:]
        copies = distorted(pixels, others, rows[done : done + len(pixels)], seed)
        found.append(encode(task.encoder, copies, mean=task.mean, std=task.std, device=task.device))
        done += len(pixels)
        task.tell(done, len(rows), f"copy {done} of {len(rows)}")
    return torch.cat(found)
