"""The variance hinge: each dimension of the projections differs between images. VICReg, Bardes et al. 2022.

    L = sum over views of  mean over dimensions of  max(0, 1 - sqrt(var(z) + 1e-4))

The variance is over the batch of all ranks. VICReg has the mean over its two views; here each view counts by itself, as
a method may give its views one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

from manyviews.errors import UserError, require
from manyviews.methods import Method, Terms
from manyviews.methods.method import sum_of
from manyviews.objectives import variance
from manyviews.regularizers.regularized import Heard
from manyviews.settings import Regularizer
from manyviews.views import Views


@dataclass(frozen=True)
class Variance(Regularizer):
    """Keep the standard deviation of every dimension of the projections near 1 or above.

    Attributes:
        weight: weight of the term for each view; 12.5 for each of two views in VICReg, beside 25 for their distance.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        require(self.weight >= 0, self, "weight", "0 or more")

    def check(self, method: Method) -> None:
        if method.online is None:
            raise UserError(f"{type(method).__name__} has no projections whose variance could be kept: leave it out.")
        if method.scored is not None and any(m is method.scored[0] for m in method.online.modules()):
            raise UserError(f"{type(method).__name__}'s projections are scores of prototypes: take Prior instead.")

    def terms(self, method: Method, views: Views, heard: Heard, parts: int) -> Terms:
        trained = [z for z in heard.online if z.requires_grad]
        return {"hinge": self.weight * sum_of(variance(z) for z in trained)} if trained else {}
