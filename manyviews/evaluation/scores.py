"""From predictions and metrics, over several seeds, to the numbers of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from manyviews.evaluation import metrics
from manyviews.evaluation.contract import Metric, Prediction, Task
from manyviews.evaluation.knn import neighbors
from manyviews.evaluation.report import Gain, Nearest, Representation, Score
from manyviews.evaluation.sets import Sets
from manyviews.evaluation.unlabeled.spectrum import rankme, singular_values, spread

_SPECTRUM = 10_000  # images of a spectrum, at most
_QUERIES, _NEAREST = 8, 8  # nearest neighbors that a report shows


def right(predictions: Sequence[Prediction], y: Tensor, k: int = 1) -> Tensor:
    """Share of the predictions that rank each item's label among the first k: float64, `m`."""
    return torch.stack([metrics.hits(p.ranked.cpu(), y, k) for p in predictions]).double().mean(0)


def score(predictions: Sequence[Prediction], y: Tensor, classes: int, seed: int) -> Score:
    """The score of one protocol with one or several seeds. The settings are those of the first."""
    first, hits = predictions[0], right(predictions, y)
    return Score(
        top1=hits.mean().item(),
        interval=metrics.bootstrap(hits, seed),
        top5=right(predictions, y, 5).mean().item() if classes > 5 else None,
        per_class=tuple(hits[y == c].mean().item() if (y == c).any() else None for c in range(classes)),
        setting=first.setting,
        validation={words(setting): accuracy for setting, accuracy in first.validation},
        others={name: metrics.top(guess.cpu()[:, None], y) for name, guess in first.others.items()},
        by_seed=tuple(metrics.top(p.ranked.cpu(), y) for p in predictions),
    )


def mean(found: Sequence[Metric]) -> Metric:
    """The metric of one protocol with one or several seeds."""
    first = found[0]
    if len(found) == 1:
        return first
    values = tuple(m.value for m in found)
    # The means of the ends: resampling the items for all seeds at once gives no wider interval.
    ends = [m.interval for m in found if m.interval is not None]
    low, high = (sum(e) / len(e) for e in zip(*ends, strict=True)) if ends else (None, None)
    return replace(
        first,
        value=sum(values) / len(values),
        interval=None if low is None or high is None else (low, high),
        details={k: sum(m.details[k] for m in found) / len(found) for k in first.details},
        by_seed=values,
    )


def words(setting: Mapping[str, float]) -> str:
    """A setting for people: "lr=0.01 weight_decay=0"."""
    return " ".join(f"{k}={v:g}" for k, v in setting.items())


def gain(ours: Tensor, theirs: Tensor, seed: int) -> Gain:
    """The difference of two accuracies on the same test items, with a paired bootstrap."""
    difference = ours.double() - theirs.double()
    return Gain(difference.mean().item(), metrics.bootstrap(difference, seed))


def represent(task: Task, scores: dict[str, Score], measured: dict[str, Metric]) -> Representation:
    """A representation's spectrum, on images from all over the set, and its scores."""
    rows = torch.linspace(0, len(task.train_x) - 1, min(_SPECTRUM, len(task.train_x))).long()
    x = task.train_x[rows.to(task.train_x.device)].cpu()
    return Representation(x.shape[1], rankme(x), spread(x), tuple(singular_values(x).tolist()), scores, measured)


def nearest(task: Task, sets: Sets) -> tuple[Nearest, ...]:
    """For a few test images, the training images nearest to them."""
    seen, held = sets.seen["trained"], sets.held["trained"]
    rows = torch.linspace(0, len(task.test_x) - 1, min(_QUERIES, len(task.test_x))).long()
    bank = task.trainval_x
    similarity, index = neighbors(bank, task.test_x[rows.to(bank.device)], min(_NEAREST, len(bank)))
    queries = held.index[sets.parts["test"]][rows].tolist()
    found = zip(queries, seen.index[sets.trainval][index.cpu()].tolist(), similarity.tolist(), strict=True)
    return tuple(Nearest(query, tuple(items), tuple(values)) for query, items, values in found)
