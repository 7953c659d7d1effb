"""How long a run will take on this machine: measured before it starts."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import median

import torch

from manyviews import distributed, machine
from manyviews.backbones import protect
from manyviews.data import Source, load_canvases
from manyviews.data.canvas import sample
from manyviews.engine import monitor, optim
from manyviews.engine.build import build_method
from manyviews.engine.precision import resolve
from manyviews.engine.step import backpropagate
from manyviews.evaluation.features import frozen
from manyviews.methods import Method
from manyviews.regularizers import canvas_size
from manyviews.settings import Recipe
from manyviews.threads import threads_of
from manyviews.types import Batch, Progress
from manyviews.views import Views

PATIENCE = 4.0
"""Seconds of measuring, or one step of a part of a batch if that takes longer."""

SHORT = 20.0
"""Seconds of a whole run that need no better estimate, and of which nobody needs to be told."""

_FIRST = 2  # images in the first step, which also compiles and allocates
_FEW = 8  # the fewest images of which a step is measured, unless two take too long already


@dataclass(frozen=True)
class Pace:
    """What the parts of a run cost on this machine.

    Attributes:
        step: seconds of a step.
        monitoring: seconds of one measurement on held-out images.
        decoding: seconds before the first step.
        steps_per_epoch: steps of one pass over the images.
        measured: steps that were measured.
        images: images in each of them; where they are fewer than a batch, a step is extrapolated.
    """

    step: float
    monitoring: float
    decoding: float
    steps_per_epoch: int
    measured: int
    images: int

    def seconds(self, recipe: Recipe) -> float:
        """Seconds of the whole run."""
        rounds = 2 + (recipe.epochs / recipe.monitor.epochs if recipe.monitor.epochs else 0)
        return self.decoding + recipe.epochs * self.steps_per_epoch * self.step + rounds * self.monitoring

    def epochs(self, recipe: Recipe, seconds: float) -> float:
        """The epochs that fit into so many seconds."""
        each = self.steps_per_epoch * self.step
        each += self.monitoring / recipe.monitor.epochs if recipe.monitor.epochs else 0
        return max(0.0, seconds - self.decoding - 2 * self.monitoring) / each


def measure(recipe: Recipe, source: Source, device: torch.device) -> Pace | None:
    """Take a few steps of the recipe with a method of their own, on a few of the images.

    None for several processes, whose steps wait for each other, and for views that need more than pixels.
    """
    images = len(monitor.hold_out(source, recipe.data.holdout)[0])
    if recipe.data.batch_size > _FIRST:
        recipe = replace(recipe, regularizers=tuple(term.fewer(_FEW) for term in recipe.regularizers))
    with machine.seeded(recipe.seed, device):
        method = build_method(recipe, trained=True)
        needed = {column for view in method.views for column in view.needs} - {"pixels", "extent"}
        if needed or distributed.world_size() > 1:
            return None
        begun = time.monotonic()
        chosen = sample(source)
        few, _ = load_canvases(source.subset(chosen), canvas_size(method, recipe))
        decoding = (time.monotonic() - begun) * len(source) / len(chosen)
        if not len(few):
            return None
        per_epoch = max(1, images // recipe.data.batch_size)
        with threads_of(device) as threads:
            threads.begin()
            step, measured, size = _step(method, recipe, few, images, device, per_epoch)
            pixels = min(len(source), monitor.MOST)
            monitoring = _monitoring(method, recipe, device, pixels) if recipe.data.holdout else 0.0
    return Pace(step, monitoring, decoding, per_epoch, measured, size)


def _step(
    method: Method, recipe: Recipe, few: Batch, images: int, device: torch.device, per_epoch: int
) -> tuple[float, int, int]:
    """Seconds of a step, how many steps they were measured in, and how many images each of these had."""
    method.begin(max(images, len(few)))
    method = method.to(device).to(memory_format=torch.channels_last).train()
    protect(method)
    optimizer = optim.build(method, recipe.optimizer, device, recipe.adaptation)
    data, precision = recipe.data, resolve(recipe.step.precision, device)

    def take(size: int) -> float:
        """Seconds of a step with so many images."""
        start, at = time.monotonic(), Progress(0, max(1, round(recipe.epochs * per_epoch)), per_epoch)
        batch = few[torch.arange(size) % len(few)].to(device)
        optimizer.zero_grad(set_to_none=True)

        def views() -> Views:
            return Views(batch, method.views, recipe.seed, 0, data.mean, data.std, backward=recipe.step.backward)

        backpropagate(method, [views], at, precision=precision, device=device)
        method.before_update(at)
        optimizer.step()
        method.after_update(at)
        machine.wait(device)
        return time.monotonic() - start

    whole = data.batch_size
    size = min(_FIRST, whole)
    take(size)
    first = take(size)
    guess = first * whole / size
    # A large network takes long for a few images already, and a very large one is not asked for more of them.
    if first > 2 * PATIENCE and size < whole:
        return _whole(first, first, size, whole), 1, size
    size = min(whole, 2 * size if first > PATIENCE else max(_FEW, round(whole * PATIENCE / 4 / max(1e-9, guess))))
    begun, found = time.monotonic(), list[float]()
    while len(found) < 5 and (not found or time.monotonic() - begun < PATIENCE):
        found.append(take(size))
        if found[-1] * whole / size * recipe.epochs * per_epoch < SHORT:
            break
    # The first step of a size allocates.
    return _whole(first, median(found[1:] or found), size, whole), len(found), size


def _whole(first: float, seconds: float, size: int, whole: int) -> float:
    """Seconds of a step with the whole batch, from those with the first few images and with `size` of them.

    A step takes a time for each image, and one for each weight: the optimizer's, which is the same for any batch. One
    size alone does not tell them apart, and all counts as the images'.
    """
    if size == whole:
        return seconds
    more = size - min(_FIRST, whole)
    each = min(max((seconds - first) / more, seconds / size / 2), seconds / size) if more else seconds / size
    return seconds + (whole - size) * each


def _monitoring(method: Method, recipe: Recipe, device: torch.device, images: int) -> float:
    """Seconds of encoding so many images of the test size, and of little else."""
    encoder = method.kept_encoder
    x = torch.zeros(_FEW, encoder.channels, recipe.test_size, recipe.test_size, device=device)
    first = x[:_FIRST]
    with frozen(encoder):
        start = time.monotonic()
        encoder(first)
        machine.wait(device)
        if time.monotonic() - start > PATIENCE / 4:  # a large network
            x = first
        start = time.monotonic()
        encoder(x)
        machine.wait(device)
    return (time.monotonic() - start) * images / len(x)
