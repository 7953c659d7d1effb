"""The one training loop of all protocols that learn by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import TypeVar

import torch
from torch import Tensor

from manyviews import machine

Batch = TypeVar("Batch")
Step = Callable[[Batch, float], None]
"""Learns from a batch at a learning rate."""


def descend(batches: Iterable[Batch], step: Step[Batch], rate: Callable[[int], float]) -> Iterator[int]:
    """Take a step for each batch.

    Args:
        batches: batches of all epochs, in order.
        step: see `Step`.
        rate: learning rate of a step, counted from 0.

    Yields:
        after each step, the number of steps done.
    """
    for done, batch in enumerate(batches):
        with machine.flushed():
            step(batch, rate(done))
        yield done + 1


def stepping(optimizer: torch.optim.Optimizer, backward: Callable[[Batch], object]) -> Step[Batch]:
    """A step of an optimizer, whose groups may have an `lr_scale`, a factor on the learning rate.

    Args:
        optimizer: updates the weights.
        backward: adds a batch's gradients.
    """

    def step(batch: Batch, lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        optimizer.zero_grad(set_to_none=True)
        backward(batch)
        optimizer.step()

    return step


def cosine(step: int, steps: int) -> float:
    """Share of the learning rate at a step: from 1 to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def minibatches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of minibatches without end, int64, `size` or fewer at the end of an epoch; each epoch has its own order.

    Args:
        n: number of rows.
        size: rows of a minibatch.
        generator: draws the orders, on the CPU so that every device sees the same.
    """
    for _ in count():
        yield from torch.randperm(n, generator=generator).split(size)
