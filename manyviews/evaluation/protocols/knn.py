"""k-nearest neighbors: weighted votes with fixed settings, and majority votes with k chosen on validation images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from manyviews.evaluation import metrics
from manyviews.evaluation.contract import FeatureProtocol, Prediction, Task
from manyviews.evaluation.knn import KS, TEMPERATURE, neighbors, usable, vote

K = 20
"""Neighbors of the headline k-NN."""

MAJORITY_KS = (10, 20)
"""Neighbors of the k-NN by majority; validation images choose."""


@dataclass(frozen=True)
class KNN(FeatureProtocol):
    """k-nearest neighbors by cosine similarity among all training images: k = 20, weighted with temperature 0.1."""

    name = "knn"
    title = "k-NN"

    def products(self, rows: int, tests: int, dims: int, classes: int) -> float:
        return float(rows * tests * dims)

    def run(self, task: Task, seed: int) -> Prediction:
        x, y = task.trainval_x, task.trainval_y
        k = usable((K,), len(x))[0]
        ks = sorted({*usable(KS, len(x)), k})
        similarity, index = neighbors(x, task.test_x, max(ks))
        labels = y[index]

        def predict(k: int, temperature: float | None, top: int = 1) -> Tensor:
            return vote(similarity[:, :k], labels[:, :k], task.classes, temperature, top)

        others = {
            f"k={k} {kind}": predict(k, t)[:, 0]
            for kind, t in (("weighted", TEMPERATURE), ("majority", None))
            for k in ks
        }
        return Prediction(predict(k, TEMPERATURE, 5), {"k": k, "temperature": TEMPERATURE}, [], others)


@dataclass(frozen=True)
class KNNMajority(FeatureProtocol):
    """k-nearest neighbors by cosine similarity, one vote each; k = 10 or 20, chosen on validation images (MULAN, A)."""

    name = "knn_majority"
    title = "k-NN by majority"

    def products(self, rows: int, tests: int, dims: int, classes: int) -> float:
        return 2.0 * rows * tests * dims

    def run(self, task: Task, seed: int) -> Prediction:
        ks = usable(MAJORITY_KS, len(task.train_x))

        def voted(x: Tensor, y: Tensor, test_x: Tensor) -> dict[int, Tensor]:
            similarity, index = neighbors(x, test_x, max(ks))
            return {k: vote(similarity[:, :k], y[index[:, :k]], task.classes, None, 5) for k in ks}

        validated = voted(task.train_x, task.train_y, task.val_x)
        accuracy = {k: metrics.top(ranked, task.val_y) for k, ranked in validated.items()}
        best = max(ks, key=lambda k: accuracy[k])
        # As in the paper, all training images vote, and those that chose k are among them.
        found = voted(task.trainval_x, task.trainval_y, task.test_x)
        others = {f"k={k}": ranked[:, 0] for k, ranked in found.items()}
        return Prediction(found[best], {"k": best}, [({"k": k}, a) for k, a in accuracy.items()], others)
