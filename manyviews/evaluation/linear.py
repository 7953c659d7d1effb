"""Linear classifiers on frozen features: a sweep trained at once by SGD, and logistic regression by L-BFGS.

Both standardize the features by the training set, and choose their settings on the validation set. Test labels are not
among their arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

LRS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
WEIGHT_DECAYS = (0.0, 1e-2)
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)

_EPOCHS = 20
_STEPS = 1000
_BATCH = 256
_ROWS = 65_536  # of the logistic regression's products at a time
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Linear:
    """A linear classifier, and how it was chosen.

    Attributes:
        setting: of the classifier, for example `{"lr": 0.01, "weight_decay": 0.0}`.
        validation: accuracy in [0, 1] of every setting tried, in the order of the sweep. The first best is chosen.
        logits: float32, `m c`, of the test items, by the chosen classifier.
        classify: the same of any further features, after `linear_probe`.
    """

    setting: dict[str, float]
    validation: list[tuple[dict[str, float], float]]
    logits: Tensor
    classify: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Standard:
    """Standardization by a training set.

    Attributes:
        mean: float32, `d`.
        std: float32, `d`; 1 where the training set does not vary.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Standard:
        """The standardization that gives the rows of `x` (float32, `n d`) mean 0 and standard deviation 1."""
        std, mean = torch.std_mean(x, dim=0, correction=0)
        # What varies by rounding alone is constant: to divide by that would make noise of it.
        return cls(mean, torch.where(std > 1e-6 * (mean.abs() + std.max()), std, 1.0))

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    val_x: Tensor,
    val_y: Tensor,
    test_x: Tensor,
    *,
    classes: int,
    lrs: Sequence[float] = LRS,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    seed: int = 0,
) -> Linear:
    """A linear layer trained by SGD, its learning rate and weight decay chosen on the validation set.

    One head for each pair of the two is trained in the same pass: they share every minibatch, and all their logits are
    one matrix product. 20 epochs, and at least 1,000 steps, of batches of 256; momentum 0.9; cosine to zero; heads
    start at zero. The same seed gives the same result.

    Args:
        train_x: float32, `n d`, on any device.
        train_y: int64, `n`, in [0, classes).
        val_x: `v d`.
        val_y: `v`.
        test_x: `m d`.
        classes: how many.
        lrs: learning rates to try, for standardized features.
        weight_decays: L2 penalties to try, added to the gradients of the weights, not of the biases.
        seed: of the order of the minibatches.
    """
    every = [slice(None)]
    return linear_probes(
        *(train_x, train_y, val_x, val_y, test_x),
        looks=every,
        classes=classes,
        lrs=lrs,
        weight_decays=weight_decays,
        seed=seed,
    )[0]


def linear_probes(
    train_x: Tensor,
    train_y: Tensor,
    val_x: Tensor,
    val_y: Tensor,
    test_x: Tensor,
    *,
    looks: Sequence[slice],
    classes: int,
    lrs: Sequence[float] = LRS,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    seed: int = 0,
) -> list[Linear]:
    """`linear_probe` on several choices of features in one pass over the images: they share every minibatch.

    What a choice comes to does not depend on the others.

    Args:
        train_x: several features side by side, float32, `n d`, on any device.
        train_y: int64, `n`, in [0, classes).
        val_x: `v d`.
        val_y: `v`.
        test_x: `m d`.
        looks: for each choice, its columns. They may overlap.
        classes: how many.
        lrs: see `linear_probe`.
        weight_decays: see `linear_probe`.
        seed: of the order of the minibatches.

    Returns:
        for each choice, the classifier that the validation set chose.
    """
    settings = [(lr, decay) for lr in lrs for decay in weight_decays]
    n, device = len(train_x), train_x.device
    lr, decay = torch.tensor(settings, device=device).repeat_interleave(classes, dim=0).T
    heads = [_Heads.fresh(Standard.of(train_x[:, look]), len(settings), classes) for look in looks]

    per_epoch = math.ceil(n / _BATCH)
    steps = max(_EPOCHS * per_epoch, _STEPS)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same order on every device
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(n, generator=generator).to(device)
        rows = order[step % per_epoch * _BATCH :][:_BATCH]
        x, target = train_x[rows], F.one_hot(train_y[rows], classes)
        now = lr * (0.5 * (1 + math.cos(math.pi * step / steps)))
        for look, some in zip(looks, heads, strict=True):
            some.descend(x[:, look], target, now, decay)

    named = [{"lr": a, "weight_decay": b} for a, b in settings]
    found = []
    for look, some in zip(looks, heads, strict=True):
        accuracies = some.accuracies(val_x[:, look], val_y)
        best = accuracies.index(max(accuracies))
        validation = list(zip(named, accuracies, strict=True))
        classify = partial(some.logits, head=best)
        found.append(Linear(named[best], validation, classify(test_x[:, look]), classify))
    return found


@dataclass(frozen=True)
class _Heads:
    """Linear layers on the same features, one for each setting, and their momenta.

    Attributes:
        standard: of the features.
        weight: float32, `d heads*classes`: head h's logit of class c is column h * classes + c.
        bias: `heads*classes`.
        weight_velocity: `d heads*classes`.
        bias_velocity: `heads*classes`.
        classes: how many.
    """

    standard: Standard
    weight: Tensor
    bias: Tensor
    weight_velocity: Tensor
    bias_velocity: Tensor
    classes: int

    @classmethod
    def fresh(cls, standard: Standard, heads: int, classes: int) -> _Heads:
        width = heads * classes
        weight, bias = standard.mean.new_zeros(len(standard.mean), width), standard.mean.new_zeros(width)
        return cls(standard, weight, bias, weight.clone(), bias.clone(), classes)

    def descend(self, x: Tensor, target: Tensor, lr: Tensor, decay: Tensor) -> None:
        """One step on features `b d` with one-hot labels `b classes`; the rates are of each column of the weight."""
        x = self.standard(x)
        # The gradient of softmax and cross-entropy in closed form: probabilities less the one-hot label.
        error = (x @ self.weight + self.bias).view(len(x), -1, self.classes).softmax(2)
        error.sub_(target[:, None]).div_(len(x))
        gradient = error.view(len(x), -1)
        self.weight_velocity.mul_(_MOMENTUM).add_(x.T @ gradient).addcmul_(self.weight, decay)
        self.bias_velocity.mul_(_MOMENTUM).add_(gradient.sum(0))
        self.weight.addcmul_(self.weight_velocity, lr, value=-1)
        self.bias.addcmul_(self.bias_velocity, lr, value=-1)

    def accuracies(self, x: Tensor, y: Tensor) -> list[float]:
        """Of each head; one that diverged predicts nothing."""
        right = torch.zeros(len(self.bias) // self.classes, dtype=torch.int64, device=x.device)
        for some, labels in zip(x.split(4096), y.split(4096), strict=True):
            logits = (self.standard(some) @ self.weight + self.bias).view(len(some), -1, self.classes)
            finite = logits.isfinite().all(2)
            right += ((logits.argmax(2) == labels[:, None]) & finite).sum(0)
        return (right.double() / max(1, len(x))).tolist()

    def logits(self, x: Tensor, head: int) -> Tensor:
        """Of one head, `m classes`."""
        columns = slice(head * self.classes, (head + 1) * self.classes)
        return self.standard(x) @ self.weight[:, columns] + self.bias[columns]


def logistic_regression(
    train_x: Tensor,
    train_y: Tensor,
    val_x: Tensor,
    val_y: Tensor,
    test_x: Tensor,
    *,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = 200,
) -> Linear:
    """Multinomial logistic regression, its L2 penalty chosen on the validation set. Deterministic.

    Minimizes mean cross-entropy + penalty / 2 * ||W||^2 over standardized features; the bias is free. In scikit-learn's
    terms C = 1 / (penalty * n). L-BFGS with a strong Wolfe line search goes from the strongest penalty to the weakest,
    each starting where the one before ended.

    Args:
        train_x: float32, `n d`, on any device.
        train_y: int64, `n`, in [0, classes).
        val_x: `v d`.
        val_y: `v`.
        test_x: `m d`.
        classes: how many.
        penalties: to try.
        iterations: of L-BFGS for each penalty, at most.
    """
    standard = Standard.of(train_x)
    x, val_x, test_x = standard(train_x), standard(val_x), standard(test_x)
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    tried: list[tuple[dict[str, float], float]] = []
    best, logits = -1.0, test_x.new_zeros(len(test_x), classes)
    for penalty in sorted(penalties, reverse=True):
        _minimize(x, train_y, weight, bias, penalty, iterations)
        with torch.no_grad():
            accuracy = ((val_x @ weight + bias).argmax(1) == val_y).double().mean().item()
            tried.append(({"l2": penalty}, accuracy))
            if accuracy > best:
                best, logits = accuracy, test_x @ weight + bias
    setting = max(tried, key=lambda t: t[1])[0]
    return Linear(setting, tried, logits)


def logistic_fit(x: Tensor, y: Tensor, asked: Tensor, *, classes: int, penalty: float, iterations: int = 200) -> Tensor:
    """Logits (float32, `m classes`) of a logistic regression whose penalty is fixed; nothing is standardized.

    Minimizes the same as `logistic_regression`, for features `n d` with labels `n`, and is asked about `m d`.
    """
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    _minimize(x, y, weight, bias, penalty, iterations)
    with torch.no_grad():
        return asked @ weight + bias


def _minimize(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float, iterations: int) -> None:
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = penalty / 2 * weight.square().sum()
        loss.backward()
        loss = loss.detach()
        # In blocks: a million images by a thousand classes are several gigabytes of logits.
        for some, labels in zip(x.split(_ROWS), y.split(_ROWS), strict=True):
            part = F.cross_entropy(some @ weight + bias, labels, reduction="sum") / len(x)
            part.backward()
            loss = loss + part.detach()
        return loss

    optimizer.step(objective)
