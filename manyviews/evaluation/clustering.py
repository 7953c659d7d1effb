"""How well clusters of features, found without labels, are the classes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import UserError, unknown
from manyviews.evaluation.retrieval import comparable
from manyviews.evaluation.task import ImageTask, Measure

_EXACT = 2**30  # products in a step of k-means, beyond which it goes by minibatches


def clustering(
    task: ImageTask,
    test_y: Tensor,
    seed: int,
    *,
    fit: Literal["test", "train"] = "test",
    runs: int = 3,
    starts: int = 10,
) -> Measure:
    """k-means on l2-normalized test features, with as many clusters as classes: NMI, ARI, FMI, purity and accuracy.

    The clusters are of the very images that are judged, as usual for frozen encoders (Lowe et al. 2024): no label is
    used but to compare. Each number is the mean over runs, with its standard deviation over runs besides; there is no
    interval, for that deviation is none. See `agreement` for what they are.

    Args:
        task: the problem.
        test_y: classes of the test images, int64, `m`.
        seed: of the first run.
        fit: "train" finds the centers among all training images, and gives each test image to its nearest.
        runs: of k-means, each with seeds of its own.
        starts: in each run; the one of the least sum of squares counts.

    Raises:
        UserError: fewer images than classes, or an unknown `fit`.
    """
    if fit not in ("test", "train"):
        raise unknown("set to fit clusters to", fit, ("test", "train"))
    known, asked = (F.normalize(x.float(), dim=1).cpu() for x in comparable(task))
    items = known if fit == "train" else asked
    # Not as many as there are names: sets keep the names of classes of which they have no image.
    k = len(torch.cat([task.frozen.train_y.cpu(), task.frozen.val_y.cpu(), test_y.cpu()]).unique())
    found = []
    for run in range(runs):
        found.append(agreement(test_y.cpu(), kmeans(items, asked, k, seed + run, starts)))
        if task.progress is not None:
            task.progress(run + 1, runs, f"run {run + 1} of {runs}")
    details: dict[str, float] = {}
    for name in found[0]:
        values = [f[name] for f in found]
        details |= {name: float(np.mean(values)), f"{name}, deviation": float(np.std(values))}
    setting: dict[str, float] = {"clusters": k, "runs": runs, "starts": starts, "images": len(items)}
    return Measure("NMI", details.pop("NMI"), None, details, setting)


def kmeans(x: Tensor, asked: Tensor, k: int, seed: int, starts: int = 10) -> Tensor:
    """The nearest of k centers of `x`, float32 `n d`, to each row of `asked`, float32 `m d`: int64, `m`.

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
    return torch.from_numpy(model.fit(x.numpy()).predict(asked.numpy()).astype(np.int64))


def agreement(y: Tensor, clusters: Tensor) -> dict[str, float]:
    """How alike classes and clusters (both int64, `n`, from 0) are; all numbers are 1 when they are the same.

    Returns:
        "NMI", mutual information over the arithmetic mean of the entropies; "ARI", the share of pairs that both join or
        both part, less what chance would give, over the most that is possible (Hubert and Arabie 1985); "FMI", the
        geometric mean of precision and recall of joined pairs; "purity", how many items are of the commonest class of
        their cluster; "accuracy", how many are of the class that is their cluster's in the best one-to-one assignment.
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
