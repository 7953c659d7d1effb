"""What several protocols do with the images of a task: take fewer of them, encode them again, compare by angles."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from manyviews.errors import UserError
from manyviews.evaluation.baselines import Pixels
from manyviews.evaluation.contract import ImageTask, Task
from manyviews.evaluation.features import extract
from manyviews.evaluation.linear import Standardizer

IMAGES = 50_000
"""Largest number of training images, and of validation images: features of all layers are in memory at once."""

_BATCH = 64  # images at a time: the maps of all layers are in memory at once

SomeTask = TypeVar("SomeTask", bound=ImageTask)


def fewer(task: SomeTask, images: int) -> SomeTask:
    """The task with at most `images` training images, and validation images, from all over the set."""
    known = task.frozen
    rows, held = (torch.arange(min(n, images)) * n // min(n, images) for n in (len(known.train_y), len(known.val_y)))
    a, b = rows.to(task.device), held.to(task.device)
    less = replace(
        known, train_x=known.train_x[a], train_y=known.train_y[a], val_x=known.val_x[b], val_y=known.val_y[b]
    )
    trainval = task.trainval.subset(torch.cat([rows, len(known.train_y) + held]).numpy())
    return replace(task, frozen=less, trainval=trainval)


def reencoded(module: nn.Module, task: ImageTask) -> Task:
    """The problem with the features of another module, `b 3 size size` to `b d`, on the task's device.

    Raises:
        UserError: an image can no longer be read.
    """
    found, done, total = [], 0, len(task.trainval) + len(task.test)
    for source in (task.trainval, task.test):

        def tell(images: int, of: int, before: int = done) -> None:
            task.tell(before + images, total, "reading images")

        seen = extract(
            module,
            source,
            test_size=task.size,
            mean=task.mean,
            std=task.std,
            device=task.device,
            batch_size=_BATCH,
            progress=tell,
        )
        for where, reason in seen.bad:
            raise UserError(f"{where} could be read a moment ago, and no longer can ({reason}): try again.")
        found.append(seen.x.to(task.device))
        done += len(source)
    train_x, val_x = found[0].split([len(task.frozen.train_y), len(task.frozen.val_y)])
    return replace(task.frozen, train_x=train_x, val_x=val_x, test_x=found[1])


def comparable(task: ImageTask) -> tuple[Tensor, Tensor]:
    """Features of the training and validation images, and of the test images, that can be compared by their angles.

    Features as they are; raw pixels, whose angles mean nothing, standardized by the former.
    """
    known, test_x = task.frozen.trainval_x, task.frozen.test_x
    if isinstance(task.encoder, Pixels):
        standard = Standardizer.of(known)
        known, test_x = standard(known), standard(test_x)
    return known, test_x
