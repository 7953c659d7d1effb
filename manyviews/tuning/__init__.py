"""From an encoder to a model that answers: heads, strategies, and the ladder that chooses among them."""

from manyviews.tuning.balance import WAYS, Balance
from manyviews.tuning.calibration import calibration_error, temperature, thresholds
from manyviews.tuning.goal import Goal, Score
from manyviews.tuning.kept import Kept
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
from manyviews.tuning.targets import Numbers, Several

__all__ = [
    "MLP",
    "STRATEGIES",
    "WAYS",
    "Balance",
    "Candidate",
    "Descent",
    "DoRA",
    "FineTune",
    "Goal",
    "Kept",
    "Linear",
    "LowRank",
    "Numbers",
    "Problem",
    "Score",
    "Several",
    "Strategy",
    "Unfreeze",
    "WarmStart",
    "calibration_error",
    "climb",
    "temperature",
    "thresholds",
]
