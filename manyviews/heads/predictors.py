"""One predictor per view type (MULAN section 3.2), one that all of them share, or one that is told what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from manyviews.errors import UserError, unknown
from manyviews.views import View, Views, distinct, relation_dim

Sharing = Literal["own", "shared", "conditioned"]


class Predictors(nn.Module):
    """A predictor for each task, and the pairs of a prediction and the target that it is for.

    Args:
        tasks: view types with distinct names.
        dim: dimensions of the projections.
        build: makes one predictor, from the dimensions of its input.
        sharing: "own" gives each task its own; "shared" gives all the same one, which is naive multi-crop;
            "conditioned" gives each its own, which besides the projection is told where the view lies as seen from the
            target and what was done to it (`Views.relation`): MULAN's named next step, for a cutout's coordinates or a
            crop's scale in its section 6, for a rotation's angle at the end of its appendix F.
        weights: weight of each task in the loss, or one number for all.

    Raises:
        UserError: another way of sharing, tasks without targets, or another number of weights.

    Attributes:
        tasks: the tasks whose views predict something. A lone global view is only a target.
        targets: the names of the view types that are predicted.
    """

    def __init__(
        self,
        tasks: Sequence[View],
        dim: int,
        build: Callable[[int], nn.Module],
        sharing: Sharing,
        weights: Sequence[float] | float = 1.0,
    ) -> None:
        super().__init__()
        comparable(tasks)
        self.weights = task_weights(tasks, weights)
        if sharing not in get_args(Sharing):
            raise unknown("way to share predictors", sharing, get_args(Sharing))
        self.tasks = tuple(t for t in tasks if t.target != t.name or t.count > 1)
        self.targets = tuple(dict.fromkeys(t.target for t in self.tasks))
        self.conditioned = sharing == "conditioned"
        shared = build(dim) if sharing == "shared" else None
        extra = {t.name: relation_dim(t) if self.conditioned else 0 for t in self.tasks}
        self.of = nn.ModuleDict({k: shared if shared is not None else build(dim + e) for k, e in extra.items()})

    def term(
        self,
        views: Views,
        targets: Mapping[str, Sequence[Tensor]],
        distance: Callable[[Tensor, Tensor], Tensor],
    ) -> Callable[[View, int, Tensor], Tensor]:
        """The loss of one view, for `Views.terms`: the mean distance of its pairs, by the task's weight and count.

        Args:
            views: the batch's views.
            targets: see `pairs`.
            distance: distance of predictions and targets, `b dim` each.
        """

        def term(task: View, i: int, z: Tensor) -> Tensor:
            pairs = self.pairs(views, task, i, z, targets)
            mean = torch.stack([distance(p, target) for p, target in pairs]).mean()
            return self.weights[task.name] * mean / task.count

        return term

    def pairs(
        self, views: Views, task: View, i: int, z: Tensor, targets: Mapping[str, Sequence[Tensor]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A prediction from view `i` of a task, and the target it is for: every target but that of the view itself.

        Args:
            views: the batch's views.
            task: one of `tasks`.
            i: which of its views.
            z: the view's projections, `b dim`.
            targets: projections of every view of the types in `self.targets`, `b dim` each.
        """
        predictor = self.of[task.name]
        p = None if self.conditioned else predictor(z)
        for j, target in others(targets[task.target], task, i):
            if self.conditioned:
                p = predictor(torch.cat([z, views.relation(task.name, i, task.target, j).to(z.dtype)], 1))
            assert p is not None
            yield p, views.blend(task.name, i, target)


def others(targets: Sequence[Tensor], task: View, i: int) -> Iterator[tuple[int, Tensor]]:
    """The targets, numbered, that view `i` of a task is compared with: all but that of the view itself."""
    return ((j, t) for j, t in enumerate(targets) if task.name != task.target or i != j)


def comparable(tasks: Sequence[View]) -> tuple[View, ...]:
    """The view types themselves, when each finds targets among them.

    Raises:
        UserError: two types of the same name, a type without targets, or nothing to compare.
    """
    names = [t.name for t in distinct(tasks)]
    missing = next((t.target for t in tasks if t.target not in names), None)
    if missing or not tasks:
        raise UserError(
            f"The views need a {missing or 'global'} type to compare with, not only {', '.join(names) or 'none'}."
        )
    if len(tasks) == 1 and tasks[0].count < 2:
        raise UserError(f"A single {names[0]} view has nothing to be compared with: set its count to 2.")
    return tuple(tasks)


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
