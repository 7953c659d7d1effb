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
        tasks: view types with distinct names.
        build: makes one predictor.
        sharing: "own" gives each task its own; "shared" gives all the same one, which is naive multi-crop.
    """

    def __init__(
        self, tasks: Sequence[View], build: Callable[[], nn.Module], sharing: Literal["own", "shared"] = "own"
    ) -> None:
        super().__init__()
        shared = build() if sharing == "shared" else None
        self.of = nn.ModuleDict({t.name: shared if shared is not None else build() for t in tasks})

    def forward(self, task: View, z: Tensor) -> Tensor:
        return self.of[task.name](z)


def task_weights(tasks: Sequence[View], weights: Sequence[float] | float) -> dict[str, float]:
    """The weight of each task in the loss, by name: one number for all, or one for each.

    Raises:
        UserError: another number of weights than of tasks.
    """
    if isinstance(weights, (int, float)):
        return {t.name: float(weights) for t in tasks}
    if len(weights) != len(tasks):
        raise UserError(f"There are {len(tasks)} tasks and {len(weights)} weights: give one for each, or one number.")
    return {t.name: float(w) for t, w in zip(tasks, weights, strict=True)}


def others(targets: Sequence[Tensor], task: View, i: int) -> list[Tensor]:
    """The targets that view `i` of a task predicts: every global target but the one of the same view."""
    return [t for j, t in enumerate(targets) if task.name != "global" or i != j]


def pairs(task: View, targets: int) -> int:
    """How many (view, target) pairs a task has."""
    return task.count * (targets - (task.name == "global"))
