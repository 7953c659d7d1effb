"""Images with several labels (VOC 2007, COCO): a linear classifier for each class, judged by how it ranks the images.

The linear classification of VOC 2007 in the transfer suites of SimCLR (Chen et al. 2020) and BYOL (Grill et al. 2020),
with logistic regressions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manyviews.data.source import NAME_LABELS, Source
from manyviews.errors import UserError
from manyviews.evaluation.linear import PENALTIES, Linear, Standard
from manyviews.evaluation.metrics import Ranking
from manyviews.evaluation.task import Measure


def multilabel(
    train_x: Tensor,
    train_t: Tensor,
    val_x: Tensor,
    val_t: Tensor,
    test_x: Tensor,
    test_t: Tensor,
    classes: Sequence[str],
    seed: int,
    *,
    penalties: tuple[float, ...] = PENALTIES,
) -> Measure:
    """A logistic regression for each class on standardized features; L2 penalty chosen on validation mAP.

    The mean average precision (mAP) is over the classes that test images have; its interval is a bootstrap over them.
    Details are VOC 2007's mAP of 11 points, which papers of that time quote, how many classes have no test image, and
    the average precision of each other class. VOC leaves images out of the ranking of a class of which they show
    difficult objects only; labels cannot say so, and such images are what their labels say.

    Args:
        train_x: float32, `n d`, on any device.
        train_t: bool, `n c`, which classes an image has.
        val_x: `v d`.
        val_t: `v c`.
        test_x: `m d`.
        test_t: `m c`.
        classes: the names of the c classes.
        seed: of the interval.
        penalties: see `one_vs_rest`.

    Raises:
        UserError: no image of a part has any label.
    """
    for part, targets in (("training", train_t), ("validation", val_t), ("test", test_t)):
        if not targets.any():
            raise UserError(f"None of the {len(targets)} {part} images has a label: give more images.")
    found = one_vs_rest(train_x, train_t, val_x, val_t, test_x, penalties=penalties)
    ranking = Ranking.of(found.logits, test_t)
    precisions = ranking.average_precision()
    details = {
        "mAP of 11 points": float(np.nanmean(ranking.eleven_points())),
        "classes without test images": float(np.isnan(precisions).sum()),
        **{f"AP {name}": float(ap) for name, ap in zip(classes, precisions, strict=True) if not np.isnan(ap)},
    }
    return Measure("mAP", float(np.nanmean(precisions)), ranking.bootstrap(seed), details, found.setting)


def one_vs_rest(
    train_x: Tensor,
    train_t: Tensor,
    val_x: Tensor,
    val_t: Tensor,
    test_x: Tensor,
    *,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = 200,
) -> Linear:
    """A logistic regression for each class, one L2 penalty for all, chosen by mAP on the validation set. Deterministic.

    Minimizes, for each class, mean binary cross-entropy + penalty / 2 * ||w||^2 over standardized features; the bias is
    free. In scikit-learn's terms C = 1 / (penalty * n). L-BFGS solves all classes at once, from the strongest penalty
    to the weakest, each starting where the one before ended.

    Args:
        train_x: float32, `n d`, on any device.
        train_t: bool, `n c`.
        val_x: `v d`.
        val_t: `v c`, of which at least one is true.
        test_x: `m d`.
        penalties: to try.
        iterations: of L-BFGS for each penalty, at most.

    Returns:
        The classifiers. `validation` holds mean average precisions.
    """
    standard = Standard.of(train_x)
    x, val_x, test_x, y = standard(train_x), standard(val_x), standard(test_x), train_t.to(train_x.dtype)
    weight = x.new_zeros(x.shape[1], y.shape[1], requires_grad=True)
    bias = x.new_zeros(y.shape[1], requires_grad=True)
    tried: list[tuple[dict[str, float], float]] = []
    best, logits = -1.0, test_x.new_zeros(len(test_x), y.shape[1])
    for penalty in sorted(penalties, reverse=True):
        _minimize(x, y, weight, bias, penalty, iterations)
        with torch.no_grad():
            precision = float(np.nanmean(Ranking.of(val_x @ weight + bias, val_t).average_precision()))
            tried.append(({"l2": penalty}, precision))
            if precision > best:
                best, logits = precision, test_x @ weight + bias
    return Linear(max(tried, key=lambda t: t[1])[0], tried, logits)


def _minimize(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float, iterations: int) -> None:
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        entropy = F.binary_cross_entropy_with_logits(x @ weight + bias, y, reduction="sum") / len(x)
        loss = entropy + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)


def check_targets(source: Source) -> list[str]:
    """The classes of a source whose images may have several labels.

    Raises:
        UserError: it has no labels, or fewer than two classes.
    """
    targets, classes = source.targets, source.classes
    if targets is None or classes is None:
        raise UserError(f"{source.name} has no labels, which an evaluation needs: {NAME_LABELS}.")
    if (used := int(targets.any(0).sum())) < 2:
        raise UserError(f"The images of {source.name} are of {used} class: an evaluation needs at least two classes.")
    return classes


def refusal(source: Source) -> UserError:
    """What to say when a protocol that wants one label for each image meets several."""
    targets = source.targets
    assert targets is not None and source.several
    count = targets.sum(1)
    first = int(np.argmax(count != 1))
    return UserError(
        f"Images of {source.name} have several labels or none, {source.where(first)} has {count[first]}: take the "
        "protocol 'multilabel', or give one label for each image."
    )
