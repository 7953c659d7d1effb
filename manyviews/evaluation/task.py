"""What a protocol is asked, and what it answers. The labels of the test items are nowhere in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manyviews.data.source import Source
from manyviews.errors import UserError
from manyviews.progress import Update


def check_seed(seed: int) -> None:
    """Raises UserError: the seed is not one that every library takes."""
    if not 0 <= seed < 2**31:
        raise UserError(f"The seed must be at least 0 and less than 2**31, not {seed}.")


@dataclass(frozen=True)
class Task:
    """A classification problem, less the labels of its test items.

    Attributes:
        train_x, train_y: what classifiers learn from: float32, `n d`, and int64, `n`; or bool, `n classes`, in the
            protocol "multilabel" only.
        val_x, val_y: what their settings are chosen with: `v d` and `v`.
        test_x: what they are asked: `m d`.
        classes: how many there are.
        names: of the classes.
    """

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    classes: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageTask:
    """The same problem with its images, for protocols that look at them again.

    Attributes:
        encoder: normalized images, `b 3 size size`, to features, `b d`; on `device`. It stays as it is: who trains,
            trains a copy.
        frozen: its features of all images under `features.test_transform`, and the labels; on `device`.
        known: the images of `frozen.train_x`, and after them those of `frozen.val_x`.
        asked: the images of `frozen.test_x`.
        size: side of what the encoder sees, pixels.
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        device: to compute on.
        progress: called after every step with how many are done, and of how many.
    """

    encoder: nn.Module
    frozen: Task
    known: Source
    asked: Source
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device
    progress: Update | None = None


@dataclass(frozen=True)
class Answer:
    """What a protocol says about the test items.

    Attributes:
        ranked: int64, `m min(5, classes)`: the likeliest classes, best first.
        setting: with which.
        validation: accuracies on the validation set from which the setting was chosen.
        others: int64, `m`: predictions of settings that are reported besides.
    """

    ranked: Tensor
    setting: dict[str, float]
    validation: list[tuple[dict[str, float], float]]
    others: dict[str, Tensor]


@dataclass(frozen=True)
class Measure:
    """What a protocol measured that is not one answer for each test item.

    Attributes:
        name: of the headline number, for people: "NMI", "mAP", "mean accuracy".
        value: the headline number; higher is better.
        interval: its 95 % interval; None where there is no honest one.
        details: further numbers by name, in the order in which to show them: a curve, a table, a second measure.
        setting: with which setting: fixed in advance, or chosen on validation images; with the first seed.
        by_seed: headline numbers with each seed, if several were tried; all above are means over them.
        notes: what a reader must know, in sentences.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    details: dict[str, float]
    setting: dict[str, float]
    by_seed: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
