"""A protocol outside the package: the nearest class mean, with settings of its own.

    export MANYVIEWS_PATH=examples
    manyviews evaluate runs/... --data labeled/ --protocol nearest_mean
    manyviews evaluate runs/... --data labeled/ --protocol nearest_mean --set nearest_mean.center=False

`python examples/new_protocol.py` judges an untrained network on the pictures that come with the package.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from manyviews.evaluation.contract import FeatureProtocol, Prediction, Task


@dataclass(frozen=True)
class NearestMean(FeatureProtocol):
    """The class whose mean feature is nearest by cosine similarity.

    Attributes:
        center: whether the mean of all features is subtracted first.
    """

    name = "nearest_mean"
    title = "nearest class mean"

    center: bool = True

    def run(self, task: Task, seed: int) -> Prediction:
        x, y = task.trainval_x, task.trainval_y
        origin = x.mean(0) if self.center else torch.zeros_like(x[0])
        means = torch.stack([normalize(x[y == c] - origin, dim=1).mean(0) for c in range(task.classes)])
        scores = normalize(task.test_x - origin, dim=1) @ normalize(means, dim=1).T
        return Prediction(scores.argsort(1, descending=True)[:, :5], {"center": float(self.center)}, [], {})


if __name__ == "__main__":
    import manyviews as mv

    encoder = mv.backbones.Encoder("resnet18", stem="half", layers=(1, 1, 1, 1), channels=(16, 32, 64, 128))
    report = mv.evaluation.evaluate(
        encoder,
        mv.data.open_source("demo"),
        protocols=["knn", "nearest_mean"],
        test_size=32,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    print(report)
