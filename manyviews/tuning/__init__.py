"""From an encoder to a model that answers: heads, strategies, and the ladder that chooses among them."""

from manyviews.tuning.balance import WAYS, Balance, Score
from manyviews.tuning.calibration import calibration_error, temperature
from manyviews.tuning.ladder import climb
from manyviews.tuning.problem import Candidate, Problem
from manyviews.tuning.strategies import (
    MLP,
    STRATEGIES,
    Descent,
    DoRA,
    FineTune,
    Linear,
    LowRank,
    Strategy,
    Unfreeze,
    WarmStart,
)

__all__ = [
    "MLP",
    "STRATEGIES",
    "WAYS",
    "Balance",
    "Candidate",
    "Descent",
    "DoRA",
    "FineTune",
    "Linear",
    "LowRank",
    "Problem",
    "Score",
    "Strategy",
    "Unfreeze",
    "WarmStart",
    "calibration_error",
    "climb",
    "temperature",
]
