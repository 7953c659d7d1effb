"""Linear classifiers on frozen features: by SGD, and by L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass

from manyviews.evaluation.contract import FeatureProtocol, Prediction, Task
from manyviews.evaluation.linear import Linear, linear_probe, logistic_regression


@dataclass(frozen=True)
class LinearProbe(FeatureProtocol):
    """A linear layer on standardized features, by SGD; learning rate and weight decay chosen on validation images."""

    name = "linear"
    title = "linear probe"
    seeded = True

    def run(self, task: Task, seed: int) -> Prediction:
        return _prediction(linear_probe(task, seed=seed))


@dataclass(frozen=True)
class LogisticRegression(FeatureProtocol):
    """Logistic regression on standardized features, by L-BFGS; its L2 penalty chosen on validation images."""

    name = "logistic"
    title = "logistic regression"

    def run(self, task: Task, seed: int) -> Prediction:
        return _prediction(logistic_regression(task))


def _prediction(found: Linear) -> Prediction:
    return Prediction(found.ranked, found.setting, found.validation, {})
