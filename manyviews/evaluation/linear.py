"""Linear classifiers on frozen features: a sweep trained at once by SGD, and logistic regression by L-BFGS.

Both standardize the features by the training set, and choose their settings on the validation set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.evaluation.contract import Task
from manyviews.evaluation.descent import cosine, descend, minibatches

LRS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
WEIGHT_DECAYS = (0.0, 1e-2)
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)

_EPOCHS = 20
_STEPS = 1000
_BATCH = 256
_ROWS = 65_536  # rows of the logistic regression's products at a time
_MOMENTUM = 0.9
_UPDATES = 100

Loss = Callable[[Tensor, Tensor], Tensor]
"""Summed loss of logits, `n classes`, and targets, `n` or `n classes`."""


@dataclass(frozen=True)
class Linear:
    """A linear classifier, and the choice that led to it.

    Attributes:
        setting: setting of the classifier, for example `{"lr": 0.01, "weight_decay": 0.0}`.
        validation: validation accuracy in [0, 1] of each setting tried, in the order of the sweep. The first best is
            chosen.
        logits: float32, `m c`, logits of the test items.
        classify: the classifier, for further features.
    """

    setting: dict[str, float]
    validation: list[tuple[dict[str, float], float]]
    logits: Tensor
    classify: Layer = field(compare=False)

    @property
    def ranked(self) -> Tensor:
        """The likeliest classes of the test items, best first: int64, `m min(5, c)`."""
        return ranked(self.logits)


def ranked(logits: Tensor) -> Tensor:
    """The likeliest classes by their logits, `m c`, best first: int64, `m min(5, c)`."""
    return logits.argsort(1, descending=True)[:, :5]


@dataclass(frozen=True)
class Standardizer:
    """Standardization by a training set.

    Attributes:
        mean: float32, `d`.
        std: float32, `d`; 1 where the training set does not vary.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Standardizer:
        """The standardization that gives the rows of `x` (float32, `n d`) mean 0 and standard deviation 1."""
        std, mean = torch.std_mean(x, dim=0, correction=0)
        # A variation within rounding is none: dividing by it would make noise.
        return cls(mean, torch.where(std > 1e-6 * (mean.abs() + std.max()), std, 1.0))

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def standardized(task: Task) -> Task:
    """The task with features of mean 0 and variance 1 over the training and validation images."""
    standard = Standardizer.of(task.trainval_x)
    return replace(task, train_x=standard(task.train_x), val_x=standard(task.val_x), test_x=standard(task.test_x))


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer on standardized features, `m d` to logits, `m c`.

    Attributes:
        standard: standardization of the features.
        weight: float32, `d c`.
        bias: float32, `c`.
    """

    standard: Standardizer
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.standard(x) @ self.weight + self.bias


def linear_probe(
    task: Task, *, lrs: Sequence[float] = LRS, weight_decays: Sequence[float] = WEIGHT_DECAYS, seed: int = 0
) -> Linear:
    """A linear layer trained by SGD, its learning rate and weight decay chosen on the validation set.

    One head for each pair of the two is trained in the same pass: they share every minibatch, and all their logits are
    one matrix product. 20 epochs, and at least 1,000 steps, of batches of 256; momentum 0.9; cosine to zero; heads
    start at zero. The same seed gives the same result.

    Args:
        task: features and labels, on any device.
        lrs: learning rates to try, for standardized features.
        weight_decays: L2 penalties to try, added to the gradients of the weights, not of the biases.
        seed: seed of the order of the minibatches.
    """
    return linear_probes(task, [slice(None)], lrs=lrs, weight_decays=weight_decays, seed=seed)[0]


def probe_products(rows: int, dims: int, classes: int) -> float:
    """About how many multiplications `linear_probe` takes: forward and backward, and the updates of the weights."""
    steps, heads = max(_EPOCHS * math.ceil(rows / _BATCH), _STEPS), len(LRS) * len(WEIGHT_DECAYS)
    # The three updates of a weight wait for the memory, and take as long as so many multiplications.
    return float(steps) * heads * classes * dims * (2 * min(rows, _BATCH) + _UPDATES)


def linear_probes(
    task: Task,
    columns: Sequence[slice],
    *,
    lrs: Sequence[float] = LRS,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    seed: int = 0,
) -> list[Linear]:
    """`linear_probe` on several choices of features in one pass over the images: they share every minibatch.

    The result of a choice does not depend on the others.

    Args:
        task: features that lie next to each other, `n d`, and labels, on any device.
        columns: columns of each choice. They may overlap.
        lrs: see `linear_probe`.
        weight_decays: see `linear_probe`.
        seed: seed of the order of the minibatches.

    Returns:
        for each choice, the classifier that the validation set chose.
    """
    settings = [(lr, decay) for lr in lrs for decay in weight_decays]
    n, device = len(task.train_x), task.train_x.device
    lr, decay = torch.tensor(settings, device=device).repeat_interleave(task.classes, dim=0).T
    heads = [_Heads.fresh(Standardizer.of(task.train_x[:, part]), len(settings), task.classes) for part in columns]

    def step(rows: Tensor, share: float) -> None:
        rows = rows.to(device)
        x, target = task.train_x[rows], F.one_hot(task.train_y[rows], task.classes)
        for part, some in zip(columns, heads, strict=True):
            some.descend(x[:, part], target, lr * share, decay)

    steps = max(_EPOCHS * math.ceil(n / _BATCH), _STEPS)
    batches = islice(minibatches(n, _BATCH, torch.Generator().manual_seed(seed)), steps)
    for _ in descend(batches, step, partial(cosine, steps=steps)):
        pass

    named = [{"lr": a, "weight_decay": b} for a, b in settings]
    found = []
    for part, some in zip(columns, heads, strict=True):
        accuracies = some.accuracies(task.val_x[:, part], task.val_y)
        best = accuracies.index(max(accuracies))
        validation = list(zip(named, accuracies, strict=True))
        classify = some.layer(best)
        found.append(Linear(named[best], validation, classify(task.test_x[:, part]), classify))
    return found


@dataclass(frozen=True)
class _Heads:
    """Linear layers on the same features, one for each setting, and their momenta.

    Attributes:
        standard: standardization of the features.
        weight: float32, `d heads*classes`: head h's logit of class c is column h * classes + c.
        bias: `heads*classes`.
        weight_velocity: `d heads*classes`.
        bias_velocity: `heads*classes`.
        classes: number of classes.
    """

    standard: Standardizer
    weight: Tensor
    bias: Tensor
    weight_velocity: Tensor
    bias_velocity: Tensor
    classes: int

    @classmethod
    def fresh(cls, standard: Standardizer, heads: int, classes: int) -> _Heads:
        width = heads * classes
        weight, bias = standard.mean.new_zeros(len(standard.mean), width), standard.mean.new_zeros(width)
        return cls(standard, weight, bias, weight.clone(), bias.clone(), classes)

    def descend(self, x: Tensor, target: Tensor, lr: Tensor, decay: Tensor) -> None:
        """One step on features `b d` with one-hot labels `b classes`; each column of the weight has its own rates."""
        x = self.standard(x)
        # The gradient of softmax and cross-entropy in closed form: probabilities minus the one-hot label.
        error = (x @ self.weight + self.bias).view(len(x), -1, self.classes).softmax(2)
        error.sub_(target[:, None]).div_(len(x))
        gradient = error.view(len(x), -1)
        self.weight_velocity.mul_(_MOMENTUM).add_(x.T @ gradient).addcmul_(self.weight, decay)
        self.bias_velocity.mul_(_MOMENTUM).add_(gradient.sum(0))
        self.weight.addcmul_(self.weight_velocity, lr, value=-1)
        self.bias.addcmul_(self.bias_velocity, lr, value=-1)

    def accuracies(self, x: Tensor, y: Tensor) -> list[float]:
        """Accuracy of each head; one that diverged predicts nothing."""
        right = torch.zeros(len(self.bias) // self.classes, dtype=torch.int64, device=x.device)
        for some, labels in zip(x.split(4096), y.split(4096), strict=True):
            logits = (self.standard(some) @ self.weight + self.bias).view(len(some), -1, self.classes)
            finite = logits.isfinite().all(2)
            right += ((logits.argmax(2) == labels[:, None]) & finite).sum(0)
        return [count / max(1, len(x)) for count in right.tolist()]

    def layer(self, head: int) -> Layer:
        """One head."""
        columns = slice(head * self.classes, (head + 1) * self.classes)
        return Layer(self.standard, self.weight[:, columns], self.bias[columns])


def logistic_regression(task: Task, *, penalties: Sequence[float] = PENALTIES, iterations: int = 200) -> Linear:
    """Multinomial logistic regression, its L2 penalty chosen on the validation set. Deterministic.

    Minimizes mean cross-entropy + penalty / 2 * ||W||^2 over standardized features; the bias is free. In scikit-learn's
    terms C = 1 / (penalty * n). L-BFGS with a strong Wolfe line search goes from the strongest penalty to the weakest,
    each starting where the one before ended.

    Args:
        task: features and labels, on any device.
        penalties: penalties to try.
        iterations: limit of L-BFGS for each penalty.
    """

    def accuracy(logits: Tensor) -> float:
        return (logits.argmax(1) == task.val_y).cpu().double().mean().item()

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="sum")

    return sweep(task, task.train_y, task.classes, loss, accuracy, penalties, iterations)


def sweep(
    task: Task,
    targets: Tensor,
    classes: int,
    loss: Loss,
    judge: Callable[[Tensor], float],
    penalties: Sequence[float],
    iterations: int,
) -> Linear:
    """A linear classifier by L-BFGS on standardized features; the first best penalty on the validation set is chosen.

    Args:
        task: features.
        targets: targets of the training features, `n` or `n classes`.
        classes: number of columns of the logits.
        loss: see `Loss`.
        judge: score of validation logits, `v classes`.
        penalties: L2 penalties to try, from the strongest to the weakest.
        iterations: limit of L-BFGS for each penalty.
    """
    standard = Standardizer.of(task.train_x)
    x, val_x, test_x = standard(task.train_x), standard(task.val_x), standard(task.test_x)
    weight = x.new_zeros(x.shape[1], classes, requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    tried: list[tuple[dict[str, float], float]] = []
    best, layer = -math.inf, Layer(standard, weight.detach().clone(), bias.detach().clone())
    for penalty in sorted(penalties, reverse=True):
        _minimize(x, targets, weight, bias, penalty, iterations, loss)
        with torch.no_grad():
            score = judge(val_x @ weight + bias)
            tried.append(({"l2": penalty}, score))
            if score > best:
                best, layer = score, Layer(standard, weight.detach().clone(), bias.detach().clone())
    return Linear(max(tried, key=lambda t: t[1])[0], tried, test_x @ layer.weight + layer.bias, layer)


def logistic_fit(
    x: Tensor, y: Tensor, test_x: Tensor, *, classes: int, penalty: float, iterations: int = 200
) -> Tensor:
    """Logits (float32, `m classes`) of a logistic regression whose penalty is fixed; nothing is standardized.

    Minimizes the same as `logistic_regression`.

    Args:
        x: training features, float32, `n d`.
        y: their labels, int64, `n`.
        test_x: features to predict for, `m d`.
        classes: number of classes.
        penalty: L2 penalty.
        iterations: limit of L-BFGS.
    """
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    _minimize(x, y, weight, bias, penalty, iterations, partial(F.cross_entropy, reduction="sum"))
    with torch.no_grad():
        return test_x @ weight + bias


def _minimize(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float, iterations: int, loss: Loss) -> None:
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        total = penalty / 2 * weight.square().sum()
        total.backward()
        total = total.detach()
        # In blocks: a million images by a thousand classes are several gigabytes of logits.
        for some, targets in zip(x.split(_ROWS), y.split(_ROWS), strict=True):
            part = loss(some @ weight + bias, targets) / len(x)
            part.backward()
            total = total + part.detach()
        return total

    optimizer.step(objective)
