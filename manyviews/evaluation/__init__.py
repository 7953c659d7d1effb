"""How good an encoder is, and how sure one can be of it."""

from manyviews.evaluation.baselines import Pixels, untrained
from manyviews.evaluation.contract import (
    FeatureProtocol,
    ImageProtocol,
    ImageTask,
    LabeledTask,
    Metric,
    MetricProtocol,
    Prediction,
    Projector,
    Protocol,
    Task,
)
from manyviews.evaluation.evaluate import evaluate
from manyviews.evaluation.features import Features, encode, extract, extract_all, test_images, test_transform
from manyviews.evaluation.knn import KNN, knn, neighbors, vote
from manyviews.evaluation.linear import Linear, linear_probe, logistic_regression
from manyviews.evaluation.metrics import bootstrap, hits, per_class, top
from manyviews.evaluation.report import Gain, Nearest, Report, Representation, Score
from manyviews.evaluation.unlabeled.spectrum import alignment, rankme, singular_values, spread, uniformity

__all__ = [
    "KNN",
    "FeatureProtocol",
    "Features",
    "Gain",
    "ImageProtocol",
    "ImageTask",
    "LabeledTask",
    "Linear",
    "Metric",
    "MetricProtocol",
    "Nearest",
    "Pixels",
    "Prediction",
    "Projector",
    "Protocol",
    "Report",
    "Representation",
    "Score",
    "Task",
    "alignment",
    "bootstrap",
    "encode",
    "evaluate",
    "extract",
    "extract_all",
    "hits",
    "knn",
    "linear_probe",
    "logistic_regression",
    "neighbors",
    "per_class",
    "rankme",
    "singular_values",
    "spread",
    "test_images",
    "test_transform",
    "top",
    "uniformity",
    "untrained",
    "vote",
]
