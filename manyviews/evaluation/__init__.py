"""How good an encoder is, and how sure one can be of it."""

from manyviews.evaluation.features import Features, Pixels, encode, extract, extract_all, test_images, test_transform
from manyviews.evaluation.knn import KNN, knn, neighbors, vote
from manyviews.evaluation.linear import Linear, linear_probe, logistic_regression
from manyviews.evaluation.metrics import bootstrap, hits, per_class, top
from manyviews.evaluation.protocol import PROTOCOLS, evaluate
from manyviews.evaluation.report import Gain, Nearest, Report, Representation, Score
from manyviews.evaluation.spectrum import alignment, rankme, singular_values, spread, uniformity
from manyviews.evaluation.task import Answer, ImageTask, Measure, Task

__all__ = [
    "KNN",
    "PROTOCOLS",
    "Answer",
    "Features",
    "Gain",
    "ImageTask",
    "Linear",
    "Measure",
    "Nearest",
    "Pixels",
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
    "vote",
]
