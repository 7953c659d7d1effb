"""Labeled images as random crops: what every training on labels learns from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews import machine
from manyviews.data.loader import Loader
from manyviews.data.source import Source
from manyviews.evaluation.contract import ImageTask
from manyviews.evaluation.descent import descend, stepping
from manyviews.evaluation.features import read_again
from manyviews.schedules import WarmupCosine
from manyviews.types import Batch, Progress
from manyviews.views import Crop, Views, resolution

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps images, `b 3 h w`, and labels, int64 `b`, to new images and labels; new labels may be float32, `b classes`."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Summed loss of logits, `b classes`, and labels, `b` or `b classes`."""

_PART = 256  # images that go through a network at once: the paper's batches of 1024 are shared by four GPUs
_MEMORY = 4 * 2**30  # bytes of validation images that are held; more are read again for every setting


def unmixed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels as they are."""
    return x, y


CROSS_ENTROPY: Loss = partial(F.cross_entropy, reduction="sum")


class LabeledCrops:
    """Labeled images, decoded once if they fit into memory; crops are made on the device in every step.

    Args:
        task: size, mean and standard deviation of the images, and the device.
        source: the images.
        y: int64, `n`, their labels, on the device.
        kind: the crop.
        batch: largest number of images per step: an epoch is cut into equal batches.
        seed: seed of the order and of the crops.

    Attributes:
        steps_per_epoch: batches of one pass over the images.
        batch: images of a batch.
    """

    def __init__(self, task: ImageTask, source: Source, y: Tensor, kind: Crop, batch: int, seed: int) -> None:
        self._task, self._y, self._seed, self._kind = task, y, seed, kind
        n = len(source)
        # Equal batches: a last one of few images would spoil BatchNorm, and leaving it out would cost small sets much.
        self._loader = Loader(source, resolution([kind]), n // math.ceil(n / batch), seed=seed, device=task.device)
        self.steps_per_epoch, self.batch = self._loader.steps_per_epoch, self._loader.batch

    def parts(self, batch: Batch, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalized crops, `b c size size`, and labels, `b`, of up to 256 images at a time."""
        task, kind = self._task, self._kind
        for part in batch.to(task.device).chunk(math.ceil(len(batch) / _PART)):
            x = Views(part, (kind,), self._seed, epoch, task.mean, task.std)[kind.name, 0]
            yield x, self._y[part.index]

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`parts` of all images, once."""
        for batch in self._loader.batches(number):
            yield from self.parts(batch, number)

    def descend(
        self,
        logits: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        lr: float,
        epochs: int,
        warmup: float = 0.0,
        mix: Mix = unmixed,
        loss: Loss = CROSS_ENTROPY,
        drops: Sequence[float] = (),
        clip: float | None = None,
    ) -> Iterator[int]:
        """Minimize the mean loss of `logits`, a function of images; yields the steps done, after each.

        Args:
            logits: images to logits.
            optimizer: updates the weights.
            lr: learning rate, to zero by a cosine, per step; or to a tenth at each of the `drops`.
            epochs: passes over the images.
            warmup: epochs in which the learning rate grows linearly; a tenth of the run if that is shorter.
            mix: changes images and labels.
            loss: see `Loss`.
            drops: shares of the run after which the rate falls to a tenth; without warm-up.
            clip: largest norm of the whole gradient; None for any.
        """
        steps = epochs * self.steps_per_epoch
        schedule = WarmupCosine(lr, warmup)
        learning = [p for group in optimizer.param_groups for p in group["params"]]

        def rate(step: int) -> float:
            if drops:
                return lr * 0.1 ** sum(step >= share * steps for share in drops)
            return schedule(Progress(step, steps, self.steps_per_epoch))

        def backward(given: tuple[int, int, Batch]) -> None:
            step, epoch, batch = given
            with noise(f"{self._seed} {step}", self._task.device):
                for x, y in self.parts(batch, epoch):
                    x, y = mix(x, y)
                    (loss(logits(x), y) / len(batch)).backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(learning, clip)

        batches = ((epoch, batch) for epoch in range(epochs) for batch in self._loader.batches(epoch))
        numbered = ((step, epoch, batch) for step, (epoch, batch) in enumerate(batches))
        yield from descend(numbered, stepping(optimizer, backward), rate)


@contextmanager
def noise(key: str, device: torch.device) -> Iterator[None]:
    """Draws from the global generators depend on `key` alone; afterwards the generators are as they were."""
    with machine.seeded(int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big"), device):
        yield


def again(source: Source, size: int) -> Callable[[], Iterable[Tensor]]:
    """`read_again`, as often as it is called: from memory if it holds the images."""
    if len(source) * 3 * size**2 > _MEMORY:
        return lambda: read_again(source, size)
    held = list(read_again(source, size))
    return lambda: held
