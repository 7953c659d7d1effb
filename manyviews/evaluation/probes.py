"""Classifiers on frozen features beside linear and nearest-neighbor ones: a small network, and a handful of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import UserError
from manyviews.evaluation import metrics
from manyviews.evaluation.finetune import balanced
from manyviews.evaluation.linear import Standard, logistic_fit
from manyviews.evaluation.task import Answer, ImageTask, Measure, Task

MLP_LRS = (1e-3, 3e-3, 1e-2)
DRAWS = 10

_WEIGHT_DECAY = 1e-4
_STEPS = 500
_BATCH = 256
_ROWS = 4096  # features at a time that are classified


def mlp(
    task: Task,
    seed: int,
    *,
    layers: int = 2,
    lrs: tuple[float, ...] = MLP_LRS,
    widest: int = 1024,
    dropout: float = 0.2,
    epochs: int = 6,
) -> Answer:
    """A two-layer network on standardized features; learning rate and number of epochs chosen on validation images.

    What features know that no linear layer finds in them. Such a probe overfits, and its best epoch is an early one
    (Bordes et al. 2023): the validation images are looked at after every epoch, and the first best is kept.

    Hidden layers are twice as wide as the features up to a limit, for the sake of raw pixels, with ReLU and dropout.
    AdamW with a weight decay of 1e-4, cosine to zero, batches of 256, at least 500 steps. One network for each learning
    rate: they start equal, and share every minibatch and every dropout mask. The same seed gives the same result.

    Args:
        task: the problem.
        seed: of the weights, the order of the minibatches and the masks.
        layers: linear layers, 2 or more.
        lrs: learning rates to try, for standardized features.
        widest: units of a hidden layer, at most.
        dropout: share of the hidden units that is left out in training.
        epochs: passes over the training features.

    Raises:
        UserError: fewer than two layers, of which `linear` is the protocol.
    """
    if layers < 2:
        raise UserError(f"The setting mlp.layers must be 2 or more, not {layers}: see the protocol 'linear'.")
    (n, d), device = task.train_x.shape, task.train_x.device
    hidden = min(2 * d, widest)
    standard = Standard.of(task.train_x)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same weights and order on every device
    start = _fresh([d, *[hidden] * (layers - 1), task.classes], generator)
    nets = [[w.to(device, copy=True).requires_grad_() for w in start] for _ in lrs]
    groups = [{"params": net, "lr": lr} for net, lr in zip(nets, lrs, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY, fused=True)

    masks = torch.Generator(device).manual_seed(seed)
    per_epoch = math.ceil(n / _BATCH)
    epochs = max(epochs, math.ceil(_STEPS / per_epoch))
    best = [(-1.0, 0)] * len(nets)  # accuracy and epoch
    kept = [start] * len(nets)
    step = 0
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(n, generator=generator).to(device).split(_BATCH):
            x, y = standard(task.train_x[rows]), task.train_y[rows]
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / (epochs * per_epoch)))
            shape = (layers - 1, len(x), hidden)
            keep = (torch.rand(shape, generator=masks, device=device) >= dropout) / (1 - dropout)
            optimizer.zero_grad()
            torch.stack([F.cross_entropy(_logits(net, x, keep), y) for net in nets]).sum().backward()
            optimizer.step()
            step += 1
        for i, net in enumerate(nets):
            accuracy = _accuracy(_answer(net, standard, task.val_x), task.val_y)
            if accuracy > best[i][0]:
                best[i], kept[i] = (accuracy, epoch), [w.detach().clone() for w in net]

    tried = [({"lr": lr, "epochs": float(epoch)}, a) for lr, (a, epoch) in zip(lrs, best, strict=True)]
    chosen = max(range(len(nets)), key=lambda i: best[i][0])
    ranked = _answer(kept[chosen], standard, task.test_x).argsort(1, descending=True)[:, :5]
    return Answer(ranked, tried[chosen][0], tried, {})


def _fresh(dims: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Weights and biases as `nn.Linear` draws them."""
    found = []
    for before, after in pairwise(dims):
        bound = before**-0.5
        found += [torch.empty(s).uniform_(-bound, bound, generator=generator) for s in ((after, before), (after,))]
    return found


def _logits(net: Sequence[Tensor], x: Tensor, keep: Tensor | None = None) -> Tensor:
    """Of features `b d`, with what is kept of the hidden layers, `layers-1 b hidden`, or all."""
    *hidden, last = zip(net[::2], net[1::2], strict=True)
    for i, (weight, bias) in enumerate(hidden):
        x = F.linear(x, weight, bias).relu()
        x = x if keep is None else x * keep[i]
    return F.linear(x, *last)


@torch.no_grad()
def _answer(net: Sequence[Tensor], standard: Standard, x: Tensor) -> Tensor:
    return torch.cat([_logits(net, standard(some)) for some in x.split(_ROWS)])


def _accuracy(logits: Tensor, y: Tensor) -> float:
    """In [0, 1]; a network that diverged predicts nothing."""
    return ((logits.argmax(1) == y) & logits.isfinite().all(1)).double().mean().item()


def few_shot_5(task: ImageTask, test_y: Tensor, seed: int, *, draws: int = DRAWS) -> Measure:
    """Logistic regression on 5 labeled images of each class, its penalty fixed: the mean of 10 draws.

    See `few_shot`.
    """
    return few_shot(task, test_y, seed, shots=5, draws=draws)


def few_shot_10(task: ImageTask, test_y: Tensor, seed: int, *, draws: int = DRAWS) -> Measure:
    """Logistic regression on 10 labeled images of each class, its penalty fixed: the mean of 10 draws.

    See `few_shot`.
    """
    return few_shot(task, test_y, seed, shots=10, draws=draws)


def few_shot(task: ImageTask, test_y: Tensor, seed: int, *, shots: int, draws: int = DRAWS) -> Measure:
    """Logistic regression on a few labeled images of each class, its penalty fixed: the mean of several draws.

    Nothing is chosen, for validation labels would be more than the few: features are of unit length and the penalty is
    scikit-learn's default, C = 1, as in Tian et al. 2020, "Rethinking few-shot image classification". Before that they
    are standardized by all training and validation images, which takes no labels. Both are drawn from; a draw's images
    are those whose names have the smallest hashes (see `finetune.balanced`), all there are where a class has fewer.

    The interval is over the test images, all draws being asked about the same; the deviation over draws, which share
    images where classes are small, is in the details. Next to it is the accuracy of the nearest class mean of the same
    features (Snell et al. 2017).

    Args:
        task: the problem.
        test_y: int64, `m`, labels of the test images.
        seed: of the draws.
        shots: labeled images of each class.
        draws: how often.
    """
    known = task.frozen
    x, y = torch.cat([known.train_x, known.val_x]), torch.cat([known.train_y, known.val_y])
    standard, names = Standard.of(x), task.known.ids
    x, asked = F.normalize(standard(x)), F.normalize(standard(known.test_x))
    share = shots * len(y.unique()) / len(y)
    right, nearest = [], []
    for draw in range(draws):
        rows = balanced(names, y.cpu(), share, seed * draws + draw).to(x.device)
        few, labels = x[rows], y[rows]
        logits = logistic_fit(few, labels, asked, classes=known.classes, penalty=1 / len(few))
        right.append((logits.argmax(1).cpu() == test_y.cpu()).double())
        found = labels.unique()
        means = torch.stack([few[labels == c].mean(0) for c in found])
        nearest.append((found[torch.cdist(asked, means).argmin(1)].cpu() == test_y.cpu()).double().mean().item())
    hits = torch.stack(right)
    of_draws = hits.mean(1)
    details = {
        "standard deviation over draws": of_draws.std().item() if draws > 1 else 0.0,
        "lowest": of_draws.min().item(),
        "highest": of_draws.max().item(),
        "nearest class mean": sum(nearest) / draws,
    }
    setting = {"images": float(len(rows)), "draws": float(draws), "C": 1.0}
    return Measure("mean accuracy", hits.mean().item(), metrics.bootstrap(hits.mean(0), seed), details, setting)
