"""Candidates in files, so that an adaptation that is interrupted goes on with the next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manyviews import checkpoint
from manyviews.heads.classify import Standardize, classifier
from manyviews.tuning.goal import Score
from manyviews.tuning.problem import Candidate, Problem
from manyviews.tuning.strategies import Strategy

_ENCODER, _HEAD, _LOGITS = "encoder.", "head.", "logits"


@dataclass(frozen=True)
class Kept:
    """Runs strategies, and keeps what they find in a folder. One that is there already is read and not run.

    Attributes:
        folder: the folder, which holds the candidates of one problem only.
    """

    folder: Path

    def __call__(self, strategy: Strategy, problem: Problem, before: Candidate | None) -> Candidate:
        path = self.folder / f"{strategy.name}.safetensors"
        if path.exists():
            return _read(path, problem)
        found = strategy.run(problem, before)
        _write(path, found, problem)
        return found

    def again(self, strategy: Strategy, problem: Problem, found: Candidate, start: Candidate) -> Candidate:
        """The same for what is learned again from all images: see `Strategy.again`."""
        path = self.folder / f"{strategy.name}, all images.safetensors"
        if path.exists():
            return _read(path, problem)
        made = strategy.again(problem, found, start)
        _write(path, made, problem)
        return made


def _write(path: Path, found: Candidate, problem: Problem) -> None:
    tensors = {f"{_HEAD}{k}": v for k, v in found.head.state_dict().items()} | {_LOGITS: found.logits}
    if found.encoder is not problem.encoder:
        tensors |= {f"{_ENCODER}{k}": v for k, v in found.encoder.state_dict().items()}
    facts: dict[str, Any] = {
        "strategy": found.strategy,
        "head": dict(found.head_spec),
        "score": list(found.score),
        "learned": found.learned,
        "setting": dict(found.setting),
        "history": list(found.history),
        "seconds": found.seconds,
    }
    checkpoint.save_tensors(path, tensors, facts)


def _read(path: Path, problem: Problem) -> Candidate:
    tensors, facts = checkpoint.load_tensors(path)

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    encoder, known = problem.encoder, problem.task.frozen
    if weights := part(_ENCODER):
        encoder = problem.copied(encoder)
        encoder.load_state_dict(weights)
        encoder.eval()
    d = known.train_x.shape[1]
    standard = Standardize(torch.zeros(d), torch.ones(d))
    head = nn.Sequential(standard, classifier(facts["head"], d, known.classes)).to(problem.task.device)
    head.load_state_dict(part(_HEAD))
    return Candidate(
        facts["strategy"],
        encoder,
        head.eval(),
        facts["head"],
        tensors[_LOGITS],
        Score(*facts["score"]),
        facts["learned"],
        facts["setting"],
        tuple(facts["history"]),
        facts["seconds"],
    )
