"""Probes that learn on clean images and classify others: for corrupted images and for shifted sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from manyviews.errors import unknown
from manyviews.evaluation.baselines import Pixels
from manyviews.evaluation.contract import ImageTask, Task
from manyviews.evaluation.knn import TEMPERATURE, neighbors, usable
from manyviews.evaluation.linear import Standardizer, linear_probe
from manyviews.evaluation.protocols.knn import K

Probe = Literal["linear", "knn"]
"""A linear layer by SGD, or k nearest neighbors; see `classifier`."""


@dataclass(frozen=True)
class Classifier:
    """A probe that learned on clean images.

    Attributes:
        classify: maps features, `n d`, on the task's device, to a score for each class, `n classes`; the highest wins.
        setting: setting of the probe, fixed in advance or chosen on clean validation images.
    """

    classify: Callable[[Tensor], Tensor]
    setting: dict[str, float]


def classifier(task: Task, probe: Probe, seed: int) -> Classifier:
    """A probe on clean features, for any number of further features.

    Args:
        task: training features and labels, and validation ones to choose with.
        probe: "linear" is the protocol `linear`: standardized features, learning rate and weight decay chosen on
            validation images. "knn" is the protocol `knn`: 20 neighbors among all training images, temperature 0.1.
        seed: seed of the linear layer's training.

    Raises:
        UserError: an unknown probe.
    """
    if probe == "linear":
        found = linear_probe(task, seed=seed)
        return Classifier(found.classify, found.setting)
    if probe != "knn":
        raise unknown("probe", probe, ("linear", "knn"))
    x, y = task.trainval_x, task.trainval_y
    k = usable((K,), len(x))[0]

    def votes(test_x: Tensor) -> Tensor:
        similarity, index = neighbors(x, test_x, k)
        weights = ((similarity - similarity[:, :1]) / TEMPERATURE).exp()
        return weights.new_zeros(len(test_x), task.classes).scatter_add_(1, y[index], weights)

    return Classifier(votes, {"k": k, "temperature": TEMPERATURE})


def learn(task: ImageTask, probe: Probe, seed: int) -> Classifier:
    """A classifier of the features of the task's encoder; raw pixels are standardized, as in every protocol."""
    known = task.frozen
    if not isinstance(task.encoder, Pixels):
        return classifier(known, probe, seed)
    standard = Standardizer.of(known.trainval_x)
    found = classifier(replace(known, train_x=standard(known.train_x), val_x=standard(known.val_x)), probe, seed)
    return replace(found, classify=lambda x: found.classify(standard(x)))


def in_parts(classify: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Scores of many features, a few thousand at a time."""
    return torch.cat([classify(some) for some in x.split(4096)])
