"""A copy of a module as it was at some time of the run: the Gram teacher of DINOv3."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar, cast

import torch
from torch import nn

from manyviews.backbones import Features
from manyviews.targets.moving import Moving
from manyviews.types import Progress

M = TypeVar("M", bound=nn.Module)


class Snapshot(Moving, Generic[M]):
    """A module as it was at the latest of some epochs. Its forward pass gives no gradient, and is that of evaluation.

    Args:
        module: the module that is copied.
        epochs: passes over the data after which it is copied; before the first of them, the copy is `module` as given.

    Attributes:
        module: the copy.
    """

    module: M

    def __init__(self, module: M, epochs: tuple[float, ...]) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.epochs = epochs
        self._copied = (module,)  # a tuple keeps it out of the copy's own modules
        self.train(self.training)

    @torch.no_grad()
    def features(self, *args: Any, **kwargs: Any) -> Features:
        """The copy's `Encoder.features`, if it is an encoder."""
        found: Features = cast(Any, self.module).features(*args, **kwargs)
        return found

    def train(self, mode: bool = True) -> Snapshot[M]:
        super().train(mode)
        self.module.eval()
        return self

    @torch.no_grad()
    def move(self, at: Progress) -> None:
        if at.step + 1 in (round(epoch * at.steps_per_epoch) for epoch in self.epochs):
            theirs = self._copied[0].state_dict()
            for name, ours in self.module.state_dict().items():
                ours.copy_(theirs[name])
