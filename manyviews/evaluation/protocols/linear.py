"""Linear classifiers on frozen features: by SGD, and by L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass

from manyviews.evaluation.contract import FeatureProtocol, Prediction, Task
from manyviews.evaluation.linear import PENALTIES, Linear, linear_probe, logistic_regression, probe_products

_ROUNDS = 60  # of L-BFGS for each penalty, as it often takes


@dataclass(frozen=True)
class LinearProbe(FeatureProtocol):
    """A linear layer on standardized features, by SGD; learning rate and weight decay chosen on validation images."""

    name = "linear"
    title = "linear probe"
    seeded = True

    def products(self, rows: int, tests: int, dims: int, classes: int) -> float:
        return probe_products(rows, dims, classes)

    def run(self, task: Task, seed: int) -> Prediction:
        return _prediction(linear_probe(task, seed=seed))


@dataclass(frozen=True)
class LogisticRegression(FeatureProtocol):
    """Logistic regression on standardized features, by L-BFGS; its L2 penalty chosen on validation images."""

    name = "logistic"
    title = "logistic regression"

    def products(self, rows: int, tests: int, dims: int, classes: int) -> float:
        return 3.0 * len(PENALTIES) * _ROUNDS * rows * dims * classes

    def run(self, task: Task, seed: int) -> Prediction:
        return _prediction(logistic_regression(task))


def _prediction(found: Linear) -> Prediction:
    return Prediction(found.ranked, found.setting, found.validation, {})
