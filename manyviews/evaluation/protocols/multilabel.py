"""Images with several labels (VOC 2007, COCO): a linear classifier for each class, judged by its ranking of the images.

The linear classification of VOC 2007 in the transfer suites of SimCLR (Chen et al. 2020) and BYOL (Grill et al. 2020),
with logistic regressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from manyviews.errors import UserError
from manyviews.evaluation.contract import POSITIVE, LabeledTask, Metric, MetricProtocol, Task
from manyviews.evaluation.linear import PENALTIES, Linear, sweep
from manyviews.evaluation.metrics import Ranking


@dataclass(frozen=True)
class Multilabel(MetricProtocol):
    """A logistic regression for each class of images with several labels: mean average precision.

    The classifiers learn from standardized features; validation mAP chooses their L2 penalty. The mean average
    precision (mAP) is over the classes that test images have; its interval is a bootstrap over the images. Details are
    VOC 2007's mAP of 11 points, which papers of that time quote, the number of classes without a test image, and the
    average precision of each other class. VOC leaves an image out of the ranking of a class if it shows only difficult
    objects of it; labels cannot say so, and are taken as they are.

    Args:
        penalties: L2 penalties to try.

    Raises:
        UserError: no image of a part has any label.
    """

    name = "multilabel"
    title = "several labels"

    penalties: Annotated[tuple[float, ...], POSITIVE] = PENALTIES

    def run(self, task: LabeledTask, seed: int) -> Metric:
        known, test_y = task.frozen, task.test_y
        for part, targets in (("training", known.train_y), ("validation", known.val_y), ("test", test_y)):
            if not targets.any():
                raise UserError(f"None of the {len(targets)} {part} images has a label: give more images.")
        found = one_vs_rest(known, penalties=self.penalties)
        ranking = Ranking.of(found.logits, test_y)
        precisions = ranking.average_precision()
        details = {
            "mAP of 11 points": float(np.nanmean(ranking.eleven_points())),
            "classes without test images": float(np.isnan(precisions).sum()),
            **{f"AP {name}": float(ap) for name, ap in zip(known.names, precisions, strict=True) if not np.isnan(ap)},
        }
        return Metric("mAP", float(np.nanmean(precisions)), ranking.bootstrap(seed), details, found.setting)


def one_vs_rest(task: Task, *, penalties: Sequence[float] = PENALTIES, iterations: int = 200) -> Linear:
    """A logistic regression for each class, one L2 penalty for all, chosen by mAP on the validation set. Deterministic.

    Minimizes, for each class, mean binary cross-entropy + penalty / 2 * ||w||^2 over standardized features; the bias is
    free. In scikit-learn's terms C = 1 / (penalty * n). L-BFGS solves all classes at once, from the strongest penalty
    to the weakest, each starting where the one before ended.

    Args:
        task: features and labels, bool, `n c` and `v c`; at least one of the validation labels is true.
        penalties: penalties to try.
        iterations: limit of L-BFGS for each penalty.

    Returns:
        The classifiers. `validation` holds mean average precisions.
    """

    def precision(logits: Tensor) -> float:
        return float(np.nanmean(Ranking.of(logits, task.val_y).average_precision()))

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")

    targets = task.train_y.to(task.train_x.dtype)
    return sweep(task, targets, targets.shape[1], loss, precision, penalties, iterations)
