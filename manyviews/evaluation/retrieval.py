"""Images found by cosine similarity: those of the same class, of the revisited Oxford and Paris sets, and copies.

All relevant items count, found or not: precision is averaged over them and not over those that were retrieved. Where an
irrelevant item is exactly as similar as a relevant one, it comes first, so nothing is gained by giving all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import UserError
from manyviews.evaluation import metrics
from manyviews.evaluation.corruptions import jpeg
from manyviews.evaluation.features import Pixels, encode, read_again
from manyviews.evaluation.knn import neighbors
from manyviews.evaluation.linear import Standard
from manyviews.evaluation.task import ImageTask, Measure
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

KS = (1, 5, 10)

_BLOCK = 2**24  # similarities at a time: 64 MiB
_RESAMPLES = 1000


def comparable(task: ImageTask) -> tuple[Tensor, Tensor]:
    """Features of the training and validation images, and of the test images, that can be compared by their angles.

    As they are; raw pixels, whose angles mean nothing, standardized by the former.
    """
    known, asked = torch.cat([task.frozen.train_x, task.frozen.val_x]), task.frozen.test_x
    if isinstance(task.encoder, Pixels):
        standard = Standard.of(known)
        known, asked = standard(known), standard(asked)
    return known, asked


# -- average precision -----------------------------------------------------------------------------------------------


def average_precision(ranks: Sequence[int] | Tensor, relevant: int, trapezoidal: bool = False) -> float:
    """Area under the curve of precision by recall, in [0, 1].

    Args:
        ranks: of the relevant items that were retrieved, from 1, ascending.
        relevant: how many there are: of ranks 1 and 4 of 3 it is (1/1 + 2/4) / 3.
        trapezoidal: join the curve's points by lines, as the Oxford and Paris protocols do (Philbin et al. 2007): at
            every relevant item the mean of the precisions just before it and with it; by default with it.
    """
    return _areas(torch.as_tensor(ranks, dtype=torch.float64), trapezoidal).sum().item() / relevant


def _areas(ranks: Tensor, trapezoidal: bool = False) -> Tensor:
    """Precisions at ranks, float64 `... p`, ascending and from 1."""
    found = torch.arange(1, ranks.shape[-1] + 1, dtype=torch.float64, device=ranks.device)
    after = found / ranks
    if not trapezoidal:
        return after
    before = torch.where(ranks > 1, (found - 1) / (ranks - 1).clamp(min=1), 1.0)
    return (before + after) / 2


def average_precisions(
    similarity: Tensor,
    positives: Sequence[Sequence[int]],
    junk: Sequence[Sequence[int]] | None = None,
    *,
    trapezoidal: bool = False,
) -> Tensor:
    """Average precision of each query: float64, `q`; nan where nothing is relevant.

    Args:
        similarity: `q n`.
        positives: for each query which of the `n` items are relevant.
        junk: for each query which are taken out of its ranking, such as the query itself.
        trapezoidal: see `average_precision`.
    """
    ranks = _rank(similarity, positives, junk)
    found = [average_precision(r, len(r), trapezoidal) if len(r) else float("nan") for r in ranks]
    return torch.tensor(found, dtype=torch.float64)


def mean_average_precision(
    similarity: Tensor,
    positives: Sequence[Sequence[int]],
    junk: Sequence[Sequence[int]] | None = None,
    *,
    trapezoidal: bool = False,
) -> float:
    """Mean of `average_precisions` over the queries for which something is relevant."""
    return average_precisions(similarity, positives, junk, trapezoidal=trapezoidal).nanmean().item()


def revisited(
    similarity: Tensor,
    easy: Sequence[Sequence[int]],
    hard: Sequence[Sequence[int]],
    junk: Sequence[Sequence[int]],
    *,
    trapezoidal: bool = True,
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """mAP and mean precision at k of Easy, Medium and Hard, as on the revisited Oxford and Paris sets.

    Radenovic et al. 2018. Easy is without the hard positives, Hard without the easy ones: they count as junk. Precision
    at k is over fewer than k items where the last positive comes before.

    Args:
        similarity: `q n`, of queries and the database.
        easy, hard, junk: for each query, places in the database.
        trapezoidal: see `average_precision`; theirs is.
        ks: of the precisions at k.

    Returns:
        By "easy mAP", "easy mP@10" and so on; nan where no query has positives.
    """
    setups: dict[str, tuple[list[list[int]], list[list[int]]]] = {
        "easy": ([list(e) for e in easy], [[*j, *h] for j, h in zip(junk, hard, strict=True)]),
        "medium": ([[*e, *h] for e, h in zip(easy, hard, strict=True)], [list(j) for j in junk]),
        "hard": ([list(h) for h in hard], [[*j, *e] for j, e in zip(junk, easy, strict=True)]),
    }
    found: dict[str, float] = {}
    for name, (positives, ignored) in setups.items():
        ranks = [r for r in _rank(similarity, positives, ignored) if len(r)]
        areas = [average_precision(r, len(r), trapezoidal) for r in ranks]
        found[f"{name} mAP"] = float(np.mean(areas)) if areas else float("nan")
        for k in ks:
            depths = [min(k, int(r[-1])) for r in ranks]
            precisions = [(r <= depth).sum().item() / depth for r, depth in zip(ranks, depths, strict=True)]
            found[f"{name} mP@{k}"] = float(np.mean(precisions)) if ranks else float("nan")
    return found


def _rank(similarity: Tensor, positives: Sequence[Sequence[int]], junk: Sequence[Sequence[int]] | None) -> list[Tensor]:
    """Ranks of the positives among what is no junk, from 1, ascending: float64, one tensor for each query."""
    found = []
    for i, (row, relevant) in enumerate(zip(similarity, positives, strict=True)):
        here = torch.as_tensor(relevant, dtype=torch.int64, device=row.device)
        others = torch.ones(len(row), dtype=torch.bool, device=row.device)
        others[here] = False
        if junk is not None:
            others[torch.as_tensor(junk[i], dtype=torch.int64, device=row.device)] = False
        found.append(_ranks(row[None, here], row[None, others])[0].cpu())
    return found


def _ranks(relevant: Tensor, others: Tensor) -> Tensor:
    """Ranks from 1, ascending, of relevant items among them and others, by similarity: `b p` and `b n`."""
    p, n = relevant.shape[1], others.shape[1]
    best = _sorted(relevant).flip(1)
    ahead = n - torch.searchsorted(_sorted(others), best.contiguous())  # as similar counts as ahead
    return ahead.double() + torch.arange(1, p + 1, device=best.device)


def _sorted(x: Tensor) -> Tensor:
    """Rows in ascending order. On CPUs NumPy sorts ten times as fast as PyTorch."""
    return x.sort(dim=1)[0] if x.device.type != "cpu" else torch.from_numpy(np.sort(x.numpy(), axis=1))


# -- images of the same class ----------------------------------------------------------------------------------------


def retrieval(task: ImageTask, test_y: Tensor, seed: int) -> Measure:
    """Mean average precision: each test image searches the training images for its class, by cosine similarity.

    R-precision is the share of relevant items among the first R, if R are relevant; recall@k is how often one of the
    first k is relevant. The interval is over queries.

    Args:
        task: the problem. Validation images are training images too.
        test_y: classes of the test images, int64, `m`.
        seed: of the interval.
    """
    known, asked = comparable(task)
    y = torch.cat([task.frozen.train_y, task.frozen.val_y])
    found = by_class(known, y, asked, test_y.to(asked.device), task)
    # To the nearest thousandth, for a bootstrap's cost grows with how many values there are.
    interval = metrics.bootstrap((found["mAP"] * 1000).round() / 1000, seed)
    means = {name: values.mean().item() for name, values in found.items()}
    return Measure("mAP", means.pop("mAP"), interval, means, {})


def by_class(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, task: ImageTask | None = None
) -> dict[str, Tensor]:
    """What each query finds of its class: float64, `m`, by "mAP", "R-precision" and "recall@k" for k in `KS`.

    Args:
        train_x: the items, `n d`.
        train_y: their classes, int64, `n`, among them every one of `test_y`.
        test_x: the queries, `m d`.
        test_y: their classes, int64, `m`.
        task: whose progress is told.
    """
    # One class after the other: its items then lie side by side, and its queries have the same number of them.
    order = train_y.argsort(stable=True)
    items = F.normalize(train_x.float(), dim=1)[order]
    ends = torch.bincount(train_y, minlength=int(test_y.max()) + 1).cumsum(0).tolist()
    queries = F.normalize(test_x.float(), dim=1)
    found = {k: queries.new_zeros(len(queries), dtype=torch.float64) for k in _names()}
    done = 0
    for c in test_y.unique().tolist():
        first, last = (ends[c - 1] if c else 0), ends[c]
        if first == last:
            raise UserError(f"Nothing can be retrieved for class {c}: no training image is of it.")
        for rows in (test_y == c).nonzero()[:, 0].split(max(1, _BLOCK // len(items))):
            similarity = queries[rows] @ items.T
            others = torch.cat([similarity[:, :first], similarity[:, last:]], 1)
            ranks = _ranks(similarity[:, first:last], others)
            found["mAP"][rows] = _areas(ranks).mean(1)
            found["R-precision"][rows] = (ranks <= last - first).double().mean(1)
            for k in KS:
                found[f"recall@{k}"][rows] = (ranks[:, 0] <= k).double()
            done += len(rows)
            if task is not None and task.progress is not None:
                task.progress(done, len(queries), f"query {done} of {len(queries)}")
    return {name: values.cpu() for name, values in found.items()}


def _names() -> list[str]:
    return ["mAP", "R-precision", *(f"recall@{k}" for k in KS)]


# -- distorted copies ------------------------------------------------------------------------------------------------


DISTORTIONS: tuple[Augmentation, ...] = (
    ResizedCrop(p=0.8, area=(0.2, 1.0), ratio=(0.5, 2.0)),
    HorizontalFlip(p=0.5),
    Rotate(p=0.2),
    ColorJitter(p=0.8, brightness=0.6, contrast=0.6, saturation=0.6, hue=0.1),
    Grayscale(p=0.1),
    GaussianBlur(p=0.3),
)
"""What happens to a copy, one after the other; then comes a piece of another image, and a JPEG file."""

_OVERLAY = Erase(p=0.3, side=(0.2, 0.5))
_JPEG, _QUALITY = 0.5, (30.0, 90.0)


def distorted(pixels: Tensor, others: Tensor, index: Tensor, seed: int) -> Tensor:
    """Copies as people make them: cropped, mirrored, rotated, recolored, blurred, pasted over, and compressed.

    In the manner of the edits of DISC21 (Douze et al. 2021), whose strengths and probabilities are not those here.

    Args:
        pixels: uint8, `b 3 s s`.
        others: uint8, `b 3 s s`: for each image another one, of which a piece is pasted over it.
        index: int64, `b`: a number of each image's own, from which its distortion follows.
        seed: another one gives other distortions.

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
    """The pairs of all queries and references in one ranking, as far as the true pairs are concerned.

    Attributes:
        score: of the true pairs, descending: float32, `p`.
        query: to which query each belongs: int64, `p`.
        ahead: how many false pairs of each query score at least as high: int64, `p q`.
    """

    score: Tensor
    query: Tensor
    ahead: Tensor


def pool(queries: Tensor, references: Tensor, pairs: Tensor, offset: Tensor | None = None) -> Pooled:
    """Rank all pairs of queries and references by one score, blockwise.

    Args:
        queries: `q d`.
        references: `n d`.
        pairs: int64, `p 2`: which query is a copy of which reference.
        offset: `q`, subtracted from a query's cosine similarities; None for zero.
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
        ahead[start : start + size] = len(r) - torch.searchsorted(_sorted(block), wanted)
    return Pooled(score.cpu(), of[order].cpu(), ahead.T.cpu())


def micro_average_precision(pooled: Pooled, weights: Tensor | None = None) -> Tensor:
    """Area under the one curve of precision by recall of all pairs, in [0, 1]: what one threshold for all can do.

    All true pairs count (Douze et al. 2021, DISC21; Pizzi et al. 2022, SSCD).

    Args:
        pooled: the ranking.
        weights: float64, `... q`, of the queries, for resampling; 1 each if not given.

    Returns:
        float64, of the shape of the weights less their last axis.
    """
    if weights is None:
        weights = torch.ones(pooled.ahead.shape[1], dtype=torch.float64)
    own = weights[..., pooled.query]
    true, false = own.cumsum(-1), weights @ pooled.ahead.T.double()
    return (own * true / (true + false).clamp(min=1e-12)).sum(-1) / own.sum(-1)


def copy_detection(
    task: ImageTask, test_y: Tensor, seed: int, *, copies: int = 1000, distractors: int = 1000, neighbors: int = 3
) -> Measure:
    """Micro average precision of finding the originals of distorted test images among all images; without labels.

    Queries are distorted copies of some test images, and of others that are not among the references, which are all
    training images and the other test images. One threshold must tell which queries are copies, and of what.

    Details: the same with scores from which each query's mean similarity to its nearest training images is subtracted
    (Pizzi et al. 2022, SSCD: score normalization); how often the nearest reference is the original; how many copies are
    found at the lowest threshold at which 90 % of the pairs are true, and this threshold, 1 where none is. The interval
    is over queries.

    Args:
        task: the problem.
        test_y: not looked at.
        seed: of the choice, the distortions and the interval.
        copies: queries that have an original, at most half of the test images.
        distractors: queries that have none, at most half of the test images.
        neighbors: to which the similarity is subtracted in the normalized scores.
    """
    known, asked = comparable(task)
    m = len(asked)
    if m < 2:
        raise UserError("Copy detection needs at least two test images.")
    order = Draws(seed, 0, torch.arange(m)).bits("queries", 1)[:, 0].argsort()
    originals, strangers = order[: min(copies, m // 2)], order[m - min(distractors, m // 2) :]
    chosen = torch.cat([originals, strangers])
    queries = _queries(task, chosen, seed)
    if isinstance(task.encoder, Pixels):
        queries = Standard.of(torch.cat([task.frozen.train_x, task.frozen.val_x]))(queries)

    kept = torch.ones(m, dtype=torch.bool)
    kept[strangers] = False
    place = kept.cumsum(0) - 1
    references = torch.cat([asked[kept.to(asked.device)], known])
    pairs = torch.stack([torch.arange(len(originals)), place[originals]], 1)
    pooled = pool(queries, references, pairs)
    near = min(neighbors, len(known))
    normalized = pool(queries, references, pairs, offset=_crowd(known, queries, near))

    resampled = np.random.default_rng(seed).multinomial(len(chosen), np.full(len(chosen), 1 / len(chosen)), _RESAMPLES)
    areas = micro_average_precision(pooled, torch.from_numpy(resampled).double())
    low, high = np.nanpercentile(areas.numpy(), [50 * (1 - metrics.LEVEL), 50 * (1 + metrics.LEVEL)])
    found = torch.arange(1, len(pooled.score) + 1)
    precise = (found / (found + pooled.ahead.sum(1)) >= 0.9).nonzero()[:, 0]
    last = int(precise[-1]) if len(precise) else -1
    first = pooled.ahead[torch.arange(len(found)), pooled.query] == 0
    return Measure(
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


def _crowd(known: Tensor, queries: Tensor, k: int) -> Tensor:
    """Mean cosine similarity of each query to its k nearest training images: `q`."""
    return neighbors(known, queries, k)[0].mean(1)


def _queries(task: ImageTask, rows: Tensor, seed: int) -> Tensor:
    """Features of distorted copies of these test images, on the task's device: `q d`."""
    found: list[Tensor] = []
    done, before = 0, None
    for pixels in read_again(task.asked.subset(rows.numpy()), task.size):
        # What is pasted over an image is of the one before it.
        others = torch.cat([pixels[-1:] if before is None else before, pixels[:-1]])
        before = pixels[-1:]
        copies = distorted(pixels, others, rows[done : done + len(pixels)], seed)
        found.append(encode(task.encoder, copies, mean=task.mean, std=task.std, device=task.device))
        done += len(pixels)
        if task.progress is not None:
            task.progress(done, len(rows), f"copy {done} of {len(rows)}")
    return torch.cat(found)
