"""How long the parts of a paper's row would take on this machine, from a few steps on a few images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from manyviews.data import Source, open_source
from manyviews.engine.monitor import MOST
from manyviews.engine.pace import Pace, measure
from manyviews.evaluation.dense.presets import preset_of
from manyviews.evaluation.protocols import get, requested
from manyviews.evaluation.protocols.finetune import FineTune
from manyviews.papers import DataSet, Detect, Evaluate, Step, Subspaces, Transfer
from manyviews.settings import Recipe

SWEPT = "linear_augmented"
"""The protocol that sweeps are judged by, as the papers judge."""

_SAMPLE = 16  # made-up images that stand for a set that is not there
_BACKWARD = 3.0  # a step costs about three forward passes
_DETECTOR = 1.5  # pyramid, proposals and heads, as a share of the network's own cost
_BATCH = 16  # images of a detector's step
_ANALYZED = 10_000  # images that `subspaces` looks at, at most, with those of its sweeps


@dataclass(frozen=True)
class Count:
    """How many images a set has, to learn from and to test on, and how large they are."""

    images: int
    tests: int
    width: int
    height: int


def counted(about: DataSet, source: Source | None, test: Source | None) -> Count:
    """The images of a set that was given, else those that the set is known to have."""
    if source is None:
        return Count(about.images, about.tests, about.width, about.height)
    return Count(len(source), about.tests if test is None else len(test), about.width, about.height)


def stand_in(about: DataSet) -> Source:
    """A few made-up images of the size of a set's."""
    pixels = np.random.default_rng(0).integers(0, 256, (_SAMPLE, about.height, about.width, 3), dtype=np.uint8)
    return open_source((pixels, np.arange(_SAMPLE) % 2))


def pace(recipe: Recipe, source: Source, count: Count, device: torch.device) -> Pace | None:
    """The pace of a recipe, measured on a source, for as many images as the set has; None if nothing can be told."""
    found = measure(recipe, source, device)
    if found is None:
        return None
    # The first images are decoded before the first step, all others beside the steps.
    held = min(count.images * recipe.data.holdout, MOST)
    seen = min(len(source), MOST)
    return replace(
        found,
        steps_per_epoch=max(1, int(count.images - held) // recipe.data.batch_size),
        monitoring=found.monitoring * min(count.images, MOST) / seen if recipe.data.holdout else 0.0,
        decoding=found.decoding * min(count.images, MOST) / len(source),
    )


def encoding(recipe: Recipe, found: Pace, count: Count) -> float:
    """Seconds of encoding one image at the test size; a share of a step if the run monitors nothing."""
    if found.monitoring:
        return found.monitoring / min(count.images, MOST)
    return found.step / recipe.data.batch_size / _BACKWARD


def swept(each: float, count: Count) -> float:
    """Seconds of judging one training of a sweep, from those of encoding one image."""
    return each * (count.images + count.tests + get(SWEPT)().forwards(count.images))


def seconds(step: Step, settings: dict[str, Any], count: Count, each: float, test_size: int) -> float | None:
    """Seconds of what follows a training.

    Args:
        step: what follows.
        settings: settings of its protocols.
        count: the images of its set.
        each: seconds of encoding one image.
        test_size: side in pixels at which that was measured.
    """
    images = count.images + count.tests
    if isinstance(step, (Evaluate, Transfer)):
        passes = 0.0
        for protocol in requested(step.protocols, settings):
            found = protocol.forwards(count.images)
            if isinstance(protocol, FineTune) and protocol.train_size is not None:
                found *= (protocol.train_size / test_size) ** 2
            passes += found
        return each * (images + passes)
    if isinstance(step, Detect):
        size = int(step.options.get("size", 800))
        pixels = size * size * count.width / count.height / test_size**2
        schedule = preset_of(step.options.get("preset"))  # type: ignore[arg-type]
        if schedule is None:
            learned = float(int(step.options.get("epochs", 12)) * count.images)
        else:  # training images are smaller than those to test on
            learned = schedule.steps_for(count.images, _BATCH) * _BATCH
            learned *= sum((side / size) ** 2 for side in schedule.sizes) / len(schedule.sizes)
        return each * pixels * _DETECTOR * (_BACKWARD * learned + count.tests)
    if isinstance(step, Subspaces):
        return each * 2 * min(count.images, _ANALYZED)
    return None
