"""Linear classifiers on frozen features: a sweep trained at once by SGD, and logistic regression by L-BFGS.

Both standardize the features by the training set, and choose their one or two settings on the validation set. Test
labels are not among their arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LRS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
WEIGHT_DECAYS = (0.0, 1e-2)
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)

_EPOCHS = 20
_STEPS = 1000
_BATCH = 256
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Linear:
    """A linear classifier, and how it was chosen.

    Attributes:
        setting: of the classifier, for example `{"lr": 0.01, "weight_decay": 0.0}`.
        validation: accuracy in [0, 1] of every setting tried, in the order of the sweep. The first best is chosen.
        logits: float32, `m c`, of the test items, by the chosen classifier.
    """

    setting: dict[str, float]
    validation: list[tuple[dict[str, float], float]]
    logits: Tensor


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
    settings = [(lr, decay) for lr in lrs for decay in weight_decays]
    n, d, heads, device = len(train_x), train_x.shape[1], len(settings), train_x.device
    lr, decay = torch.tensor(settings, device=device).repeat_interleave(classes, dim=0).T
    standard = Standard.of(train_x)
    # Head h's logit of class c is column h * classes + c.
    weight, bias = torch.zeros(d, heads * classes, device=device), torch.zeros(heads * classes, device=device)
    weight_velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)

    per_epoch = math.ceil(n / _BATCH)
    steps = max(_EPOCHS * per_epoch, _STEPS)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same order on every device
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(n, generator=generator).to(device)
        rows = order[step % per_epoch * _BATCH :][:_BATCH]
        x = standard(train_x[rows])
        # The gradient of softmax and cross-entropy in closed form: probabilities less the one-hot label.
        error = (x @ weight + bias).view(-1, heads, classes).softmax(2)
        error.sub_(F.one_hot(train_y[rows], classes)[:, None]).div_(len(x))
        gradient = error.view(len(x), -1)
        weight_velocity.mul_(_MOMENTUM).add_(x.T @ gradient).addcmul_(weight, decay)
        bias_velocity.mul_(_MOMENTUM).add_(gradient.sum(0))
        now = lr * (0.5 * (1 + math.cos(math.pi * step / steps)))
        weight.addcmul_(weight_velocity, now, value=-1)
        bias.addcmul_(bias_velocity, now, value=-1)

    accuracies = _accuracies(standard, val_x, val_y, weight, bias, classes)
    best = accuracies.index(max(accuracies))
    columns = slice(best * classes, (best + 1) * classes)
    named = [{"lr": a, "weight_decay": b} for a, b in settings]
    logits = standard(test_x) @ weight[:, columns] + bias[columns]
    return Linear(named[best], list(zip(named, accuracies, strict=True)), logits)


def _accuracies(standard: Standard, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, classes: int) -> list[float]:
    """Of each head; one that diverged predicts nothing."""
    right = torch.zeros(len(bias) // classes, dtype=torch.int64, device=x.device)
    for some, labels in zip(x.split(4096), y.split(4096), strict=True):
        logits = (standard(some) @ weight + bias).view(len(some), -1, classes)
        finite = logits.isfinite().all(2)
        right += ((logits.argmax(2) == labels[:, None]) & finite).sum(0)
    return (right.double() / max(1, len(x))).tolist()


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


def _minimize(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float, iterations: int) -> None:
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
