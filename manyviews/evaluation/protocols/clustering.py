"""How well clusters of features, found without labels, agree with the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import UserError, unknown
from manyviews.evaluation.contract import Count, LabeledTask, Metric, MetricProtocol
from manyviews.evaluation.protocols._images import comparable

_EXACT = 2**30  # products in a step of k-means; with more, it goes by minibatches


@dataclass(frozen=True)
class Clustering(MetricProtocol):
    """k-means on l2-normalized test features, with as many clusters as classes: NMI, ARI, FMI, purity and accuracy.

    As usual for frozen encoders (Lowe et al. 2024), the images that are clustered are those that are judged; labels
    serve for the comparison alone. Each number is the mean over runs, next to its standard deviation over runs. There
    is no interval, because that deviation is none. See `agreement` for the numbers.

    Args:
        fit: "train" finds the centers among all training images, and assigns each test image to the nearest.
        runs: runs of k-means, each with seeds of its own.
        starts: starts in each run; the one with the smallest sum of squares counts.

    Raises:
        UserError: fewer images than classes, or an unknown `fit`.
    """

    name = "clustering"
    title = "k-means"

    fit: Literal["test", "train"] = "test"
    runs: Count = 3
    starts: Count = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit not in ("test", "train"):
            raise unknown("set to fit clusters to", self.fit, ("test", "train"))

    def run(self, task: LabeledTask, seed: int) -> Metric:
        known, test = (F.normalize(x.float(), dim=1).cpu() for x in comparable(task))
        items, test_y = known if self.fit == "train" else test, task.test_y.cpu()
        # Count the classes of images, not the names: sets keep the names of classes of which they have no image.
        k = len(torch.cat([task.frozen.trainval_y.cpu(), test_y]).unique())
        found = []
        for run in range(self.runs):
            found.append(agreement(test_y, kmeans(items, test, k, seed + run, self.starts)))
            task.tell(run + 1, self.runs, f"run {run + 1} of {self.runs}")
        details: dict[str, float] = {}
        for name in found[0]:
            values = [f[name] for f in found]
            details |= {name: float(np.mean(values)), f"{name}, deviation": float(np.std(values))}
        setting: dict[str, float] = {"clusters": k, "runs": self.runs, "starts": self.starts, "images": len(items)}
        return Metric("NMI", details.pop("NMI"), None, details, setting)


def kmeans(x: Tensor, test_x: Tensor, k: int, seed: int, starts: int = 10) -> Tensor:
    """The nearest of k centers of `x`, float32 `n d`, to each row of `test_x`, float32 `m d`: int64, `m`.

    scikit-learn's, from k-means++; where a step takes more than 2**30 products, by minibatches.

    Raises:
        UserError: fewer rows than centers.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if len(x) < k:
        raise UserError(f"{k} clusters need at least as many images, and there are {len(x)}: give more.")
    if x.numel() * k <= _EXACT:
        model = KMeans(k, n_init=starts, random_state=seed % 2**32)
    else:
        model = MiniBatchKMeans(k, n_init=starts, batch_size=max(4096, 4 * k), random_state=seed % 2**32)
    return torch.from_numpy(model.fit(x.numpy()).predict(test_x.numpy()).astype(np.int64))


def agreement(y: Tensor, clusters: Tensor) -> dict[str, float]:
    """How much classes and clusters (both int64, `n`, from 0) agree; all numbers are 1 when they are the same.

    Returns:
        "NMI": mutual information over the arithmetic mean of the entropies. "ARI": the share of pairs on which both
        agree, minus that of chance, over the largest possible difference (Hubert and Arabie 1985). "FMI": the geometric
        mean of precision and recall of joined pairs. "purity": the share of items that are of the commonest class of
        their cluster. "accuracy": the share that is of its cluster's class in the best one-to-one assignment.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, fowlkes_mallows_score, normalized_mutual_info_score

    k = int(torch.maximum(y.max(), clusters.max())) + 1
    table = torch.bincount(clusters * k + y, minlength=k * k).view(k, k).numpy()
    assigned = linear_sum_assignment(table, maximize=True)
    return {
        "NMI": float(normalized_mutual_info_score(y.numpy(), clusters.numpy())),
        "ARI": float(adjusted_rand_score(y.numpy(), clusters.numpy())),
        "FMI": float(fowlkes_mallows_score(y.numpy(), clusters.numpy())),
        "purity": float(table.max(1).sum() / len(y)),
        "accuracy": float(table[assigned].sum() / len(y)),
    }
