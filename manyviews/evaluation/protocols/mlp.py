"""A small network on frozen features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import UserError
from manyviews.evaluation.contract import BELOW_ONE, Count, FeatureProtocol, LearningRates, Prediction, Task
from manyviews.evaluation.descent import cosine, descend, minibatches, stepping
from manyviews.evaluation.linear import Standardizer, ranked

LRS = (1e-3, 3e-3, 1e-2)

_WEIGHT_DECAY = 1e-4
_STEPS = 500
_BATCH = 256
_ROWS = 4096  # features that are classified at a time


@dataclass(frozen=True)
class MLP(FeatureProtocol):
    """A two-layer network on standardized features; learning rate and number of epochs chosen on validation images.

    It finds what no linear layer finds in the features. Such a probe overfits, and its best epoch is an early one
    (Bordes et al. 2023): it is asked about the validation images after every epoch, and the first best is kept.

    Hidden layers are twice as wide as the features, up to a limit for the sake of raw pixels, with ReLU and dropout.
    AdamW with a weight decay of 1e-4, cosine to zero, batches of 256, at least 500 steps. There is one network for each
    learning rate: they start equal, and share every minibatch and every dropout mask. The same seed gives the same
    result.

    Args:
        layers: linear layers, 2 or more.
        lrs: learning rates to try, for standardized features.
        widest: largest number of units of a hidden layer.
        dropout: share of the hidden units that is left out in training.
        epochs: passes over the training features.

    Raises:
        UserError: fewer than two layers; with one it is the protocol `linear`.
    """

    name = "mlp"
    title = "MLP probe"
    seeded = True

    layers: Count = 2
    lrs: LearningRates = LRS
    widest: Count = 1024
    dropout: Annotated[float, BELOW_ONE] = 0.2
    epochs: Count = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 2:
            raise UserError(f"The setting mlp.layers must be 2 or more, not {self.layers}: see the protocol 'linear'.")

    def products(self, rows: int, tests: int, dims: int, classes: int) -> float:
        per_epoch, hidden = math.ceil(rows / _BATCH), min(2 * dims, self.widest)
        steps = per_epoch * max(self.epochs, math.ceil(_STEPS / per_epoch))
        weights = dims * hidden + (self.layers - 2) * hidden * hidden + hidden * classes
        return 3.0 * steps * len(self.lrs) * weights * (min(rows, _BATCH) + 10)  # AdamW waits for the memory

    def run(self, task: Task, seed: int) -> Prediction:
        (n, d), device, lrs = task.train_x.shape, task.train_x.device, self.lrs
        hidden = min(2 * d, self.widest)
        standard = Standardizer.of(task.train_x)
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same weights and order on every device
        start = _fresh([d, *[hidden] * (self.layers - 1), task.classes], generator)
        nets = [[w.to(device, copy=True).requires_grad_() for w in start] for _ in lrs]
        groups = [{"params": net, "lr_scale": lr} for net, lr in zip(nets, lrs, strict=True)]
        optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY, fused=device.type in ("cpu", "cuda"))
        masks = torch.Generator(device).manual_seed(seed)

        def backward(rows: Tensor) -> None:
            rows = rows.to(device)
            x, y = standard(task.train_x[rows]), task.train_y[rows]
            shape = (self.layers - 1, len(x), hidden)
            keep = (torch.rand(shape, generator=masks, device=device) >= self.dropout) / (1 - self.dropout)
            torch.stack([F.cross_entropy(_logits(net, x, keep), y) for net in nets]).sum().backward()

        per_epoch = math.ceil(n / _BATCH)
        steps = per_epoch * max(self.epochs, math.ceil(_STEPS / per_epoch))
        best = [(-1.0, 0)] * len(nets)  # accuracy and epoch
        kept = [start] * len(nets)
        batches = islice(minibatches(n, _BATCH, generator), steps)
        for step in descend(batches, stepping(optimizer, backward), partial(cosine, steps=steps)):
            if step % per_epoch:
                continue
            for i, net in enumerate(nets):
                accuracy = _accuracy(_classified(net, standard, task.val_x), task.val_y)
                if accuracy > best[i][0]:
                    best[i], kept[i] = (accuracy, step // per_epoch), [w.detach().clone() for w in net]

        tried = [({"lr": lr, "epochs": float(epoch)}, a) for lr, (a, epoch) in zip(lrs, best, strict=True)]
        chosen = max(range(len(nets)), key=lambda i: best[i][0])
        logits = _classified(kept[chosen], standard, task.test_x)
        return Prediction(ranked(logits), tried[chosen][0], tried, {})


def _fresh(dims: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Weights and biases as `nn.Linear` draws them."""
    found = []
    for before, after in pairwise(dims):
        bound = before**-0.5
        found += [torch.empty(s).uniform_(-bound, bound, generator=generator) for s in ((after, before), (after,))]
    return found


def _logits(net: Sequence[Tensor], x: Tensor, keep: Tensor | None = None) -> Tensor:
    """Logits of features `b d`; `keep`, `layers-1 b hidden`, scales the hidden units."""
    *hidden, last = zip(net[::2], net[1::2], strict=True)
    for i, (weight, bias) in enumerate(hidden):
        x = F.linear(x, weight, bias).relu()
        x = x if keep is None else x * keep[i]
    return F.linear(x, *last)


@torch.no_grad()
def _classified(net: Sequence[Tensor], standard: Standardizer, x: Tensor) -> Tensor:
    return torch.cat([_logits(net, standard(some)) for some in x.split(_ROWS)])


def _accuracy(logits: Tensor, y: Tensor) -> float:
    """Accuracy in [0, 1]; a network that diverged predicts nothing."""
    return ((logits.argmax(1) == y) & logits.isfinite().all(1)).cpu().double().mean().item()
