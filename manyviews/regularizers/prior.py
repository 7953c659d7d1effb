"""A prior for the use of prototypes: the mean prediction of a batch follows a power law, by default the uniform one.

    L = sum over views of  KL( mean over images of softmax(scores / temperature) || prior ),   prior_j ~ j^-exponent

The uniform prior maximizes the entropy of the mean prediction (MSN, Assran et al. 2022). A power law suits sets whose
classes are of unequal size (PMSN, The Hidden Uniform Cluster Prior in Self-Supervised Learning, Assran et al. 2023).
The mean is over the images of all ranks, for each view by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from manyviews.errors import UserError, require
from manyviews.methods import Method, Terms
from manyviews.methods.method import sum_of
from manyviews.objectives import prior_divergence
from manyviews.regularizers.regularized import Heard
from manyviews.settings import Regularizer
from manyviews.views import Views


@dataclass(frozen=True)
class Prior(Regularizer):
    """Use the prototypes as a power law says: all alike, or the first ones more.

    Attributes:
        weight: weight of the term for each view.
        exponent: exponent of the power law; 0 is uniform, 0.25 is PMSN's.
    """

    weight: float = 1.0
    exponent: float = 0.0

    def __post_init__(self) -> None:
        require(self.weight >= 0, self, "weight", "0 or more")
        require(self.exponent >= 0, self, "exponent", "0 or more")

    def check(self, method: Method) -> None:
        if method.scored is None:
            raise UserError(f"{type(method).__name__} has no prototypes to use evenly: leave out Prior.")

    def terms(self, method: Method, views: Views, heard: Heard, parts: int) -> Terms:
        assert method.scored is not None
        probs = [(s / method.scored[1]).softmax(1) for s in heard.scores if s.requires_grad]
        return {"use": self.weight * sum_of(prior_divergence(p, self.exponent) for p in probs)} if probs else {}
