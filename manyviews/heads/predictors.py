"""One predictor per view type (MULAN section 3.2), or one that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from manyviews.errors import UserError
from manyviews.views import View


class Predictors(nn.Module):
    """A predictor for each task.

    Args:
        tasks: view types with distinct names, one of them "global", whose views have targets.
        build: makes one predictor.
        sharing: "own" gives each task its own; "shared" gives all the same one, which is naive multi-crop.

    Raises:
        UserError: two tasks of the same name, or no global task.
    """

    def __init__(
        self, tasks: Sequence[View], build: Callable[[], nn.Module], sharing: Literal["own", "shared"] = "own"
    ) -> None:
        super().__init__()
        names = [t.name for t in tasks]
        if len(set(names)) < len(names):
            raise UserError(f"Tasks must have distinct view types, not {', '.join(names)}: use `count` for more views.")
        if "global" not in names:
            raise UserError(f"Tasks need a Global view type to predict, not only {', '.join(names) or 'none'}.")
        shared = build() if sharing == "shared" else None
        self.of = nn.ModuleDict({n: shared if shared is not None else build() for n in names})

    def forward(self, task: View, z: Tensor) -> Tensor:
        return self.of[task.name](z)


def others(targets: Sequence[Tensor], task: View, i: int) -> list[Tensor]:
    """The targets that view `i` of a task predicts: every global target but the one of the same view."""
    return [t for j, t in enumerate(targets) if task.name != "global" or i != j]


def pairs(task: View, targets: int) -> int:
    """How many (view, target) pairs a task has."""
    return task.count * (targets - (task.name == "global"))
