"""A teacher that is replaced by its student, which then begins anew. dBOT, Liu et al. 2022."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder, Features
from manyviews.targets.moving import Moving
from manyviews.types import Progress


class StagedTeacher(Moving):
    """A frozen encoder. At the end of every stage but the last, it takes the student's weights.

    The student's parts get fresh weights then, equal on all ranks, and are `restarted`. Stages are equally long.

    Args:
        teacher: the first teacher, of the student's architecture.
        student: the encoder that is followed at the end of a stage.
        fresh: for each part of the student, a function that makes the same part with fresh weights.
        stages: number of stages.

    Attributes:
        module: the teacher.
        stage: int64, the stage under way, from 0.
    """

    stage: Tensor
    seed: Tensor

    def __init__(
        self, teacher: Encoder, student: Encoder, fresh: Mapping[nn.Module, Callable[[], nn.Module]], stages: int
    ) -> None:
        super().__init__()
        self.module = teacher.requires_grad_(False)
        self.stages = stages
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.randint(2**31, ()))
        self._student, self._fresh = (student,), tuple(fresh.items())  # in tuples: they are no parts of this module
        self._under_way = 0  # `stage`, known to the host without asking the device
        self.register_load_state_dict_post_hook(_read_stage)  # type: ignore[no-untyped-call]
        self.train(self.training)

    @torch.no_grad()
    def features(self, *args: Any, **kwargs: Any) -> Features:
        """The teacher's `Encoder.features`."""
        return self.module.features(*args, **kwargs)

    def train(self, mode: bool = True) -> StagedTeacher:
        super().train(mode)
        self.module.eval()
        return self

    def move(self, at: Progress) -> None:
        self.restarted = ()
        if self._under_way < self.stages * (at.step + 1) // at.steps < self.stages:
            self._next()

    @torch.no_grad()
    def _next(self) -> None:
        self.module.load_state_dict(self._student[0].state_dict())
        self._under_way += 1
        self.stage.fill_(self._under_way)
        with torch.random.fork_rng([]):  # the ranks' own generators differ
            torch.default_generator.manual_seed(int(self.seed) + self._under_way)
            for part, make in self._fresh:
                part.load_state_dict(make().state_dict())
        self.restarted = [p for part, _ in self._fresh for p in part.parameters() if p.requires_grad]


def _read_stage(module: Any, _: object) -> None:
    module._under_way = int(module.stage)
