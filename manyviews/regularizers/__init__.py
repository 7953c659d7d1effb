"""Regularizers: terms that are added to any method's loss. A recipe has a tuple of them."""

from manyviews.regularizers.koleo import KoLeo
from manyviews.regularizers.prior import Prior
from manyviews.regularizers.regularized import Heard, Regularized, canvas_size, inner, kinds_of
from manyviews.regularizers.rescue import Rescue
from manyviews.regularizers.variance import Variance

__all__ = ["Heard", "KoLeo", "Prior", "Regularized", "Rescue", "Variance", "canvas_size", "inner", "kinds_of"]
