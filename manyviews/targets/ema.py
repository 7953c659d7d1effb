"""A slowly moving copy of a module: the target network of BYOL, the key encoder of MoCo, the teacher of DINO."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from manyviews import distributed
from manyviews.backbones import Encoder, Features
from manyviews.schedules import Schedule, value
from manyviews.targets.moving import Moving
from manyviews.types import Progress

M = TypeVar("M", bound=nn.Module)


class EMA(Moving, Generic[M]):
    """The exponential moving average of a module's parameters. Its forward pass gives no gradient.

    Only parameters are averaged. BatchNorm behaves as in the papers: in training it normalizes with its own batch and
    tracks its own running statistics, which then belong to the averaged weights. Dropout and stochastic depth are off
    in training too: a target is no noisier than it must be. Parts of an encoder that stay as they are (see
    `manyviews.adaptation`) stay so in the copy.

    Args:
        module: the module to follow, which `move` reads; the copy starts equal.
        momentum: how much of the copy stays at each update, in [0, 1].

    Attributes:
        module: the copy.
    """

    module: M

    def __init__(self, module: M, momentum: Schedule | float) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.momentum = momentum
        self._followed = (module,)  # a tuple keeps it out of the copy's own modules
        self.train(self.training)

    @property
    def followed(self) -> M:
        """The module that the copy follows."""
        return self._followed[0]

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def features(self, *args: Any, **kwargs: Any) -> Features:
        """The copy's `Encoder.features`, if it is an encoder."""
        found: Features = cast(Any, self.module).features(*args, **kwargs)
        return found

    def train(self, mode: bool = True) -> EMA[M]:
        super().train(mode)
        for m in self.module.modules():
            m.training = mode and isinstance(m, _BatchNorm)
        for ours, theirs in zip(self.module.modules(), self.followed.modules(), strict=False):
            if isinstance(ours, Encoder) and isinstance(theirs, Encoder):
                ours.stays, ours.held = theirs.stays, theirs.held
                ours.settle()
        return self

    def move(self, at: Progress) -> None:
        self.update(self.followed, at)

    @torch.no_grad()
    def update(self, online: nn.Module, at: Progress) -> None:
        """`copy <- momentum copy + (1 - momentum) online`, for every parameter."""
        ours: list[Tensor] = [distributed.own(p) for p in self.module.parameters()]
        theirs: list[Tensor] = [distributed.own(p) for p in online.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - value(self.momentum, at))
