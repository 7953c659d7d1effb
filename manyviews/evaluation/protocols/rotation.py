"""Whether frozen features know which way is up: a metric without labels.

Reed et al. 2021, "SelfAugment", find that it agrees with linear probes on labels, and choose augmentations by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manyviews.evaluation import metrics
from manyviews.evaluation.contract import Count, LabeledTask, LearningRates, Metric, MetricProtocol, Task, WeightDecays
from manyviews.evaluation.linear import LRS, WEIGHT_DECAYS, linear_probe
from manyviews.evaluation.protocols._images import IMAGES, fewer, reencoded

_TURNS = 4


@dataclass(frozen=True)
class Rotation(MetricProtocol):
    """A linear probe tells by how much an image is turned: 0, 90, 180 or 270 degrees; chance is 25 %, labels unused.

    The probe of `linear` learns from all four turns of each training image, its settings chosen on those of the
    validation images. It says nothing about an encoder that was trained to be invariant to rotations, nor about images
    without an up and a down. The interval is over images, all four turns of one being drawn together.

    Args:
        images: largest number of training images, and of validation images, from all over the set.
        lrs: learning rates to try.
        weight_decays: weight decays to try: see `linear_probe`.
    """

    name = "rotation"
    title = "rotation prediction"
    seeded = True
    passes = 4

    images: Count = IMAGES
    lrs: LearningRates = LRS
    weight_decays: WeightDecays = WEIGHT_DECAYS

    def run(self, task: LabeledTask, seed: int) -> Metric:
        known = reencoded(_Turned(task.encoder), fewer(task, self.images))
        (train_x, train_y), (val_x, val_y), (test_x, turns) = map(_apart, (known.train_x, known.val_x, known.test_x))
        turned = Task(train_x, train_y, val_x, val_y, test_x, _TURNS)
        found = linear_probe(turned, lrs=self.lrs, weight_decays=self.weight_decays, seed=seed)
        right = (found.logits.argmax(1) == turns).view(-1, _TURNS).cpu().double()
        details = {f"{90 * turn} degrees": share for turn, share in enumerate(right.mean(0).tolist())}
        interval = metrics.bootstrap(right.mean(1), seed)
        return Metric("accuracy of rotations", right.mean().item(), interval, details, found.setting)


class _Turned(nn.Module):
    """Features of an image turned counterclockwise by 0, 90, 180 and 270 degrees: `b 3 s s` to `b 4*d`."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.encoder(x.rot90(turn, (2, 3))) for turn in range(_TURNS)], 1)


def _apart(x: Tensor) -> tuple[Tensor, Tensor]:
    """Features `n 4*d` as `4*n d`, and the quarter turns of each: int64, `4*n`."""
    return x.view(len(x) * _TURNS, -1), torch.arange(_TURNS, device=x.device).repeat(len(x))
