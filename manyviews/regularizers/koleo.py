"""KoLeo: keep the nearest neighbors in a batch apart. DINOv2, Oquab et al. 2024.

    L = -1/n sum_i log min_{j != i} |z_i - z_j|

It estimates the differential entropy of the projections, each of length 1 (Kozachenko and Leonenko 1987). DINOv2 has it
on the class tokens of each view, on each process by itself; here it is on the projections, which every
method has.
"""

from __future__ import annotations

from dataclasses import dataclass

from manyviews.errors import UserError, require
from manyviews.methods import Method, Terms
from manyviews.methods.method import sum_of
from manyviews.objectives import koleo
from manyviews.regularizers.regularized import Heard
from manyviews.settings import Regularizer
from manyviews.views import Views


@dataclass(frozen=True)
class KoLeo(Regularizer):
    """Spread each view's projections over the sphere.

    Attributes:
        weight: weight of the term for each view; 0.1 in DINOv2.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        require(self.weight >= 0, self, "weight", "0 or more")

    def check(self, method: Method) -> None:
        if method.online is None:
            raise UserError(f"{type(method).__name__} has no projections to spread: leave out KoLeo.")

    def terms(self, method: Method, views: Views, heard: Heard, parts: int) -> Terms:
        trained = [z for z in heard.online if z.requires_grad]
        return {"koleo": self.weight * sum_of(koleo(z) for z in trained)} if trained else {}
