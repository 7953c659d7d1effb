"""Images found by cosine similarity: those of the same class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import UserError
from manyviews.evaluation import metrics
from manyviews.evaluation.contract import ImageTask, LabeledTask, Metric, MetricProtocol
from manyviews.evaluation.protocols._images import comparable
from manyviews.evaluation.rankings import KS, areas, ranks_of

_BLOCK = 2**24  # similarities at a time: 64 MiB


@dataclass(frozen=True)
class Retrieval(MetricProtocol):
    """Mean average precision: each test image searches the training images for its class, by cosine similarity.

    Validation images are training images too. R-precision is the share of relevant items among the first R, if R are
    relevant; recall@k is the share of queries with a relevant one among the first k. The interval is over queries.
    """

    name = "retrieval"
    title = "retrieval"

    def run(self, task: LabeledTask, seed: int) -> Metric:
        known, test_x = comparable(task)
        found = by_class(known, task.frozen.trainval_y, test_x, task.test_y.to(test_x.device), task)
        # To the nearest thousandth, because a bootstrap's cost grows with the number of values.
        interval = metrics.bootstrap((found["mAP"] * 1000).round() / 1000, seed)
        means = {name: values.mean().item() for name, values in found.items()}
        return Metric("mAP", means.pop("mAP"), interval, means, {})


def by_class(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, task: ImageTask | None = None
) -> dict[str, Tensor]:
    """How well each query finds its class: float64, `m`, by "mAP", "R-precision" and "recall@k" for k in `KS`.

    Args:
        train_x: the items, `n d`.
        train_y: their classes, int64, `n`, which include all of `test_y`.
        test_x: the queries, `m d`.
        test_y: their classes, int64, `m`.
        task: task whose progress to report.
    """
    # One class after the other: its items are contiguous, and its queries have the same number of relevant ones.
    order = train_y.argsort(stable=True)
    items = F.normalize(train_x.float(), dim=1)[order]
    ends = torch.bincount(train_y, minlength=int(test_y.max()) + 1).cumsum(0).tolist()
    queries = F.normalize(test_x.float(), dim=1)
    found = {k: torch.zeros(len(queries), dtype=torch.float64) for k in _names()}
    done = 0
    for c in test_y.unique().tolist():
        first, last = (ends[c - 1] if c else 0), ends[c]
        if first == last:
            raise UserError(f"Nothing can be retrieved for class {c}: it has no training image.")
        for rows in (test_y == c).nonzero()[:, 0].split(max(1, _BLOCK // len(items))):
            similarity = queries[rows] @ items.T
            others = torch.cat([similarity[:, :first], similarity[:, last:]], 1)
            ranks, rows = ranks_of(similarity[:, first:last], others).cpu(), rows.cpu()
            found["mAP"][rows] = areas(ranks).mean(1)
            found["R-precision"][rows] = (ranks <= last - first).double().mean(1)
            for k in KS:
                found[f"recall@{k}"][rows] = (ranks[:, 0] <= k).double()
            done += len(rows)
            if task is not None:
                task.tell(done, len(queries), f"query {done} of {len(queries)}")
    return found


def _names() -> list[str]:
    return ["mAP", "R-precision", *(f"recall@{k}" for k in KS)]
