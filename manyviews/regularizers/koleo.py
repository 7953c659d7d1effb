"""KoLeo: keep the nearest neighbors in a batch apart. DINOv2, Oquab et al. 2024.

    L = -1/n sum_i log min_{j != i} |z_i - z_j|

It estimates the differential entropy of embeddings, each of length 1 (Kozachenko and Leonenko 1987), of each view by
itself: two views of an image must not repel each other. DINOv2 takes the class tokens of the global views, before the
head, on each process by itself; any method has projections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from manyviews.errors import UserError, require
from manyviews.methods import Method, Terms
from manyviews.methods.method import sum_of
from manyviews.objectives import koleo
from manyviews.regularizers.regularized import Heard
from manyviews.settings import Regularizer
from manyviews.views import Views


@dataclass(frozen=True)
class KoLeo(Regularizer):
    """Spread each view's embeddings over the sphere.

    Attributes:
        weight: weight of the term for each view; 0.1 in DINOv2.
        on: what is spread: "projections", or the encoder's pooled "features" before the projector, as in DINOv2: a
            vision transformer's class tokens.
        first: only so many views of a step, the first that the trained network sees; all if None. DINOv2 has the two
            global ones.
    """

    weight: float = 0.1
    on: Literal["projections", "features"] = "projections"
    first: int | None = None

    def __post_init__(self) -> None:
        require(self.weight >= 0, self, "weight", "0 or more")
        require(self.first is None or self.first >= 1, self, "first", "1 or more")

    def check(self, method: Method) -> None:
        if method.online is None:
            raise UserError(f"{type(method).__name__} has no projections to spread: leave out KoLeo.")

    def terms(self, method: Method, views: Views, heard: Heard, parts: int) -> Terms:
        embeddings = heard.online if self.on == "projections" else heard.features
        left = None if self.first is None else max(0, self.first - heard.before)
        trained = [z for z in embeddings[:left] if z.requires_grad]
        return {"koleo": self.weight * sum_of(koleo(z) for z in trained)} if trained else {}
