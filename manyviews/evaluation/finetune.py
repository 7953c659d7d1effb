"""Protocols that look at the images again: a linear layer on random crops, and fine-tuning.

De Plaen et al. 2026, "MULAN", appendices A and B. Where the paper is silent: linear layers start at zero; validation
images choose, and the chosen network answers as it is, without having learned from them.
"""

from __future__ import annotations

import copy
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyviews.data.loader import Loader
from manyviews.data.source import Source
from manyviews.errors import UserError
from manyviews.evaluation.features import SMALL, encode, frozen, test_images
from manyviews.evaluation.linear import Standard
from manyviews.evaluation.task import Answer, ImageTask
from manyviews.progress import Update
from manyviews.schedules import Cosine
from manyviews.types import At
from manyviews.views import Global, Views

LRS = (0.005, 0.01, 0.02, 0.05, 0.1)
EPOCHS = (30, 50)
BATCH = 1024

_MOMENTUM = 0.9
_PART = 256  # images that go through a network at once: the paper's batches of 1024 are shared by four GPUs
_MEMORY = 4 * 2**30  # bytes of validation images that are held; more are read again for every setting


def linear_augmented(
    task: ImageTask, seed: int, *, epochs: int = 100, lr: float = 0.005, batch: int = 512, momentum: float = _MOMENTUM
) -> Answer:
    """A linear layer on standardized features of random crops and flips, by SGD; nothing is chosen (MULAN, A).

    Crops of 8 to 100 % of the image, mirrored half of the time, go through the frozen encoder anew in every epoch. The
    standardization is that of the clean images. As nothing is chosen, validation images are training images too.

    Args:
        task: the problem.
        seed: of the order and the crops.
        epochs: passes over the images; the encoder sees each image that often.
        lr: learning rate, to zero by a cosine, per step.
        batch: images per step at most: an epoch is cut into equal batches.
        momentum: of SGD. The paper does not name it.
    """
    known = task.frozen
    standard = Standard.of(torch.cat([known.train_x, known.val_x]))
    head = _head(known.train_x.shape[1], known.classes, task.device)

    def logits(x: Tensor) -> Tensor:
        with frozen(task.encoder), _precision(task.device):
            found = task.encoder(x).float()
        return head(standard(found))  # outside of inference mode, whose tensors nothing can learn from

    crops = _Crops(task, task.known, torch.cat([known.train_y, known.val_y]), batch, seed)
    for done, steps in crops.descend(logits, head.parameters(), lr=lr, epochs=epochs, momentum=momentum):
        _tell(task.progress, done, steps, f"epoch {1 + (done - 1) // crops.steps_per_epoch} of {epochs}")
    with torch.no_grad():
        answer = head(standard(known.test_x))
    return Answer(_ranked(answer), {"lr": lr, "epochs": epochs}, [], {})


def semi_1(
    task: ImageTask, seed: int, *, lrs: tuple[float, ...] = LRS, epochs: tuple[int, ...] = EPOCHS, batch: int = BATCH
) -> Answer:
    """Fine-tuning of the whole encoder on 1 % of the training labels, as many of each class (MULAN, B).

    See `finetune` and `balanced`. The settings are chosen with all validation labels, which are more than 1 %.
    """
    return finetune(task, seed, share=0.01, lrs=lrs, epochs=epochs, batch=batch)


def semi_10(
    task: ImageTask, seed: int, *, lrs: tuple[float, ...] = LRS, epochs: tuple[int, ...] = EPOCHS, batch: int = BATCH
) -> Answer:
    """Fine-tuning of the whole encoder on 10 % of the training labels, as many of each class (MULAN, B).

    See `finetune` and `balanced`.
    """
    return finetune(task, seed, share=0.1, lrs=lrs, epochs=epochs, batch=batch)


def finetune(
    task: ImageTask,
    seed: int,
    *,
    lrs: tuple[float, ...] = LRS,
    epochs: tuple[int, ...] = EPOCHS,
    batch: int = BATCH,
    share: float = 1.0,
) -> Answer:
    """Fine-tuning of the whole encoder on all training labels; settings chosen on validation images (MULAN, B).

    A copy of the encoder and a linear layer on its features learn from random crops (8 to 100 % of the image) and
    flips by SGD with Nesterov momentum 0.9, without weight decay, dropout or drop path; cosine to zero per step. Each
    learning rate is tried with each number of epochs, all with the same crops in the same order; the first best on the
    clean validation images answers. (The paper names the best on the test images.)

    BatchNorm learns with the statistics of up to 256 images and answers with running ones. What requires no gradient in
    the encoder does not learn. On GPUs that have it in hardware the forward pass is in bfloat16, answers in float32.

    Args:
        task: the problem.
        seed: of the subset, the order and the crops.
        lrs: learning rates to try.
        epochs: passes over the images to try.
        batch: images per step at most: an epoch is cut into equal batches.
        share: of the training labels to learn from: see `balanced`.
    """
    rows = torch.arange(len(task.frozen.train_y))
    if share < 1:
        rows = balanced(task.known.ids[: len(rows)], task.frozen.train_y.cpu(), share, seed)
    crops = _Crops(task, task.known.subset(rows.numpy()), task.frozen.train_y[rows.to(task.device)], batch, seed)
    held_out = task.known.subset(range(len(task.frozen.train_y), len(task.known)))
    validation = _again(held_out, task.size)

    settings = [(lr, length) for length in epochs for lr in lrs]
    done, total = 0, crops.steps_per_epoch * sum(length for _, length in settings)
    tried: list[tuple[dict[str, float], float]] = []
    best = -1.0
    for lr, length in settings:
        model = _copy(task)
        weights = [p for p in model.parameters() if p.requires_grad]
        forward = partial(_forward, model, task.device)
        for step, _ in crops.descend(forward, weights, lr=lr, epochs=length, momentum=_MOMENTUM, nesterov=True):
            epoch = 1 + (step - 1) // crops.steps_per_epoch
            _tell(task.progress, done + step, total, f"lr {lr:g}, epoch {epoch} of {length}")
        done += length * crops.steps_per_epoch
        accuracy = _accuracy(_logits(model, validation(), task), task.frozen.val_y)
        tried.append(({"lr": lr, "epochs": length}, accuracy))
        if accuracy > best:
            best, setting, answerer = accuracy, tried[-1][0], model
    answer = _logits(answerer, _read(task.asked, task.size), task)
    return Answer(_ranked(answer), setting | {"images": len(rows)}, tried, {})


def balanced(ids: Sequence[str], y: Tensor, share: float, seed: int) -> Tensor:
    """Rows (int64, ascending) of about `share` of the items: as many of each class, and at least one.

    `share * n / classes` of each class, rounded; fewer where a class has fewer. They are those whose names have the
    smallest hashes, so a subset does not depend on the items' order, and a larger share contains a smaller one.

    Args:
        ids: the items' stable names.
        y: int64, `n`, their classes.
        share: in (0, 1].
        seed: another one gives another subset.
    """
    names = (f"{seed}:{unicodedata.normalize('NFC', name)}".encode("utf-8", "surrogateescape") for name in ids)
    place = np.array([int.from_bytes(blake2b(name, digest_size=8).digest(), "big") for name in names], np.uint64)
    classes = y.numpy()
    order = np.lexsort((place, classes))
    _, first, count = np.unique(classes[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, count)  # within the class
    most = max(1, round(share * len(order) / len(first)))
    return torch.from_numpy(np.sort(order[rank < most]))


class _Crops:
    """Labeled images, decoded once if they fit into memory, of which crops are made on the device in every step."""

    def __init__(self, task: ImageTask, source: Source, y: Tensor, batch: int, seed: int) -> None:
        size, n = task.size, len(source)
        canvas = size if size <= SMALL else int(size * 256 / 224)  # as large as the test images are before their crop
        # Equal batches: a last one of few images would spoil BatchNorm, and leaving it out would cost small sets much.
        self._loader = Loader(source, canvas, n // math.ceil(n / batch), seed=seed)
        self._task, self._y, self._seed = task, y, seed
        self._kind = Global(1, size=size, area=(0.08, 1.0), color=None, flip=0.5)
        self.steps_per_epoch = self._loader.steps_per_epoch

    def descend(
        self,
        logits: Callable[[Tensor], Tensor],
        weights: Iterable[nn.Parameter],
        *,
        lr: float,
        epochs: int,
        momentum: float,
        nesterov: bool = False,
    ) -> Iterator[tuple[int, int]]:
        """Minimize the cross-entropy of `logits`, a function of images, by SGD.

        Yields:
            after every step, how many are done, and of how many.
        """
        task, steps = self._task, epochs * self.steps_per_epoch
        optimizer = torch.optim.SGD(weights, lr=lr, momentum=momentum, nesterov=nesterov)
        schedule, step = Cosine(lr, 0.0), 0
        for epoch in range(epochs):
            for canvases in self._loader.batches(epoch):
                for group in optimizer.param_groups:
                    group["lr"] = schedule(At(step, steps, self.steps_per_epoch))
                optimizer.zero_grad(set_to_none=True)
                for part in canvases.to(task.device).chunk(math.ceil(len(canvases) / _PART)):
                    x = Views(part, (self._kind,), self._seed, epoch, task.mean, task.std)["global", 0]
                    loss = F.cross_entropy(logits(x), self._y[part.index], reduction="sum") / len(canvases)
                    loss.backward()
                optimizer.step()
                step += 1
                yield step, steps


def _copy(task: ImageTask) -> nn.Sequential:
    """The encoder with a linear layer on its features, ready to learn without noise: only BatchNorm is in training."""
    encoder = copy.deepcopy(task.encoder).to(memory_format=torch.channels_last).eval()
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return nn.Sequential(encoder, _head(task.frozen.train_x.shape[1], task.frozen.classes, task.device))


def _head(d: int, classes: int, device: torch.device) -> nn.Linear:
    head = nn.utils.skip_init(nn.Linear, d, classes, device=device)  # the global random state stays as it is
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _forward(model: nn.Module, device: torch.device, x: Tensor) -> Tensor:
    with _precision(device):
        found = model(x)
    return found.float()


def _precision(device: torch.device) -> torch.autocast:
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def _read(source: Source, size: int) -> Iterator[Tensor]:
    """The images under the test-time transform (uint8 `b 3 size size`), in order. They were all readable before."""
    for pixels, _, bad in test_images(source, size):
        if bad:
            i, reason = next(iter(bad.items()))
            raise UserError(f"{source.where(i)} could be read a moment ago, and no longer can ({reason}): try again.")
        yield pixels


def _again(source: Source, size: int) -> Callable[[], Iterable[Tensor]]:
    """`_read`, as often as it is called: from memory if it holds the images."""
    if len(source) * 3 * size**2 > _MEMORY:
        return lambda: _read(source, size)
    held = list(_read(source, size))
    return lambda: held


def _logits(model: nn.Module, batches: Iterable[Tensor], task: ImageTask) -> Tensor:
    """In exact float32, `n classes`."""
    return torch.cat([encode(model, pixels, mean=task.mean, std=task.std, device=task.device) for pixels in batches])


def _accuracy(logits: Tensor, y: Tensor) -> float:
    """In [0, 1]; a network that diverged predicts nothing."""
    right = (logits.argmax(1) == y) & logits.isfinite().all(1)
    return right.double().mean().item()


def _ranked(logits: Tensor) -> Tensor:
    return logits.argsort(1, descending=True)[:, :5]


def _tell(progress: Update | None, done: int, total: int, note: str) -> None:
    if progress is not None:
        progress(done, total, note)
