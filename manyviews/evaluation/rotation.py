"""Whether frozen features know which way is up: a measure without labels.

Reed et al. 2021, "SelfAugment", find it to go along with linear probes on labels, and choose augmentations by it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manyviews.evaluation import metrics
from manyviews.evaluation.layers import IMAGES, fewer, look
from manyviews.evaluation.linear import LRS, WEIGHT_DECAYS, linear_probe
from manyviews.evaluation.task import ImageTask, Measure

_TURNS = 4


def rotation(
    task: ImageTask,
    test_y: Tensor,
    seed: int,
    *,
    images: int = IMAGES,
    lrs: tuple[float, ...] = LRS,
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS,
) -> Measure:
    """A linear probe tells by how much an image is turned: 0, 90, 180 or 270 degrees; chance is 25 %, labels unused.

    The probe of `linear` learns from all four turns of each training image, its settings chosen on those of the
    validation images. It says nothing about an encoder that was trained to be invariant to rotations, nor about images
    without an up and a down. The interval is over images, all four turns of one being drawn together.

    Args:
        task: the problem, whose labels are not looked at.
        test_y: not looked at.
        seed: of the order of the minibatches, and the interval.
        images: to learn from at most, and to choose with, from all over the set.
        lrs: learning rates to try.
        weight_decays: to try: see `linear_probe`.
    """
    known = look(_Turned(task.encoder), fewer(task, images))
    (train_x, train_y), (val_x, val_y), (test_x, turns) = map(_apart, (known.train_x, known.val_x, known.test_x))
    found = linear_probe(
        *(train_x, train_y, val_x, val_y, test_x), classes=_TURNS, lrs=lrs, weight_decays=weight_decays, seed=seed
    )
    right = (found.logits.argmax(1) == turns).view(-1, _TURNS).double().cpu()
    details = {f"{90 * turn} degrees": share for turn, share in enumerate(right.mean(0).tolist())}
    interval = metrics.bootstrap(right.mean(1), seed)
    return Measure("accuracy of rotations", right.mean().item(), interval, details, found.setting)


class _Turned(nn.Module):
    """Features of an image turned counterclockwise by 0, 90, 180, 270 degrees, side by side: `b 3 s s` to `b 4*d`."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.encoder(x.rot90(turn, (2, 3))) for turn in range(_TURNS)], 1)


def _apart(x: Tensor) -> tuple[Tensor, Tensor]:
    """Features `n 4*d` as `4*n d`, and by how many quarters each is turned: int64, `4*n`."""
    return x.view(len(x) * _TURNS, -1), torch.arange(_TURNS, device=x.device).repeat(len(x))
