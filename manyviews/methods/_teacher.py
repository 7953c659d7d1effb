"""The file of a frozen teacher: its encoder, the head that answers with it, and the images that it expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from manyviews.checkpoint import facts_of, load_tensors
from manyviews.errors import UserError
from manyviews.heads.classify import classifier
from manyviews.settings import Component
from manyviews.targets import Teacher

ANSWER = "answer."
"""Prefix of the head's weights in the file."""

_ENCODER = "encoder.safetensors"  # of a run


def file_of(teacher: str) -> Path:
    """The file, or that of a run's encoder in its folder."""
    path = Path(teacher).expanduser()
    return path / _ENCODER if path.is_dir() else path


def described(teacher: str) -> tuple[Component, Component | None, int]:
    """A teacher's backbone, its head with the names of the classes if it has one, and the side of its images.

    Raises:
        UserError: a file of another library.
    """
    path = file_of(teacher)
    facts = facts_of(path)
    if not isinstance(facts.get("encoder"), dict):
        raise UserError(f"{path} does not say what it holds: `manyviews distill` takes weights of any library.")
    spec: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["encoder"].items()}
    network, answers = Component(spec.pop("name"), {**spec, "pretrained": False}), None
    if "head" in facts:
        names = tuple(facts["classes"])
        head = {**facts["head"], "classes": len(names), "names": names, "warmth": facts.get("temperature", 1.0)}
        answers = Component(head.pop("kind"), head)
    return network, answers, facts["test_size"]


def head_of(answers: Component, dims: int) -> nn.Module:
    """The head that a component describes, with fresh weights."""
    return classifier({"kind": answers.name, **answers.settings}, dims, answers.settings["classes"])


def read(path: Path, teacher: Teacher) -> None:
    """Load a teacher's weights, and how its images are normalized."""
    tensors, facts = load_tensors(path)
    teacher.encoder.load_weights({k: v for k, v in tensors.items() if not k.startswith(ANSWER)})
    if teacher.head is not None:
        teacher.head.load_state_dict({k.removeprefix(ANSWER): v for k, v in tensors.items() if k.startswith(ANSWER)})
    for buffer, told in ((teacher.mean, facts["mean"]), (teacher.std, facts["std"])):
        buffer.copy_(torch.tensor(told))
    teacher.loaded = True
