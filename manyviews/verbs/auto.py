"""Which recipe suits some images and this machine, how long it takes, and what fits into a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from manyviews import machine
from manyviews.data import Source, load_canvases
from manyviews.data.canvas import sample
from manyviews.engine.monitor import hold_out
from manyviews.engine.pace import SHORT, Pace, measure
from manyviews.progress import duration
from manyviews.settings import Recipe

AUTO = "auto"
"""The name of the recipe that is chosen by number and size of the images, their channels, the device and the time."""

BUDGET = 1800.0
"""Seconds that such a run gets on a processor if nobody says how long it may take."""

TINY = 48
"""Images of a short side up to this are small as CIFAR-10's are."""

MANY = 20_000
"""Images from which on a GPU trains the larger network."""

_LARGE = 512  # pixels; a larger short side makes no difference
_BATCH = 128
_BATCHES = 8  # steps of an epoch, at least
_ENOUGH = 200.0  # epochs from which on larger views are worth more than more epochs of small ones
_MOST = 2000.0  # epochs from which on even a few images teach nothing more
_LONG = 3600.0  # seconds of a run on a processor for which a shorter way is named
_FEW = 10.0  # epochs in which little is learned


def names(side: int, device: torch.device) -> list[str]:
    """The recipes that suit images of that short side and this device, the one that takes the longest first."""
    if device.type == "cpu":  # small images are enlarged: it costs no more than a network that starts at their size
        return ["photos_cpu_small"] if side <= TINY else ["photos_cpu_medium", "photos_cpu_small"]
    return ["photos_gpu_thumbnails"] if side <= TINY else ["photos_gpu_medium", "photos_gpu_small"]


def short_side(source: Source) -> int:
    """The median short side of a sample of the images, up to 512 pixels."""
    few, _ = load_canvases(source.subset(sample(source)), _LARGE)
    return int(few.extent.amin(1).median()) if len(few) else _LARGE


def batch_size(images: int) -> int:
    """A batch for so many images: a power of two that makes some steps of an epoch, if there are enough of them."""
    fits = min(_BATCH, max(8, images // _BATCHES), images)
    return 1 << max(0, fits.bit_length() - 1)


def choose(
    make: Callable[[str, dict[str, Any]], Recipe],
    source: Source,
    device: torch.device,
    budget: float | None,
    begun: float,
) -> tuple[Recipe, str]:
    """The recipe for these images, and a sentence that says why.

    Args:
        make: the recipe of a name with some settings.
        source: the images, read as the recipes read them.
        device: the device to train on.
        budget: seconds of the run; None for the recipe's epochs.
        begun: when the run began, on the monotonic clock.
    """
    images, side = len(hold_out(source, 0.05)[0]), short_side(source)
    found = [make(name, {"data.batch_size": batch_size(images)}) for name in names(side, device)]
    here = (
        machine.name(device) if device.type != "cpu" else f"no GPU and {_count(torch.get_num_threads(), 'CPU thread')}"
    )
    why = f"{_count(len(source), 'image')} of about {side} pixels and {here}"
    if budget is None:
        recipe = found[0] if len(source) >= MANY else found[-1]
        return recipe, f"Recipe {recipe.name}, for {why}."
    for recipe in found:
        pace = measure(recipe, source, device)
        if pace is None or recipe is found[-1] or _epochs(pace, recipe, budget, begun) >= _ENOUGH:
            break
    recipe, text = within(recipe, pace, budget, begun)
    return recipe, f"Recipe {recipe.name}, for {why}. {text}"


def within(recipe: Recipe, pace: Pace | None, budget: float, begun: float) -> tuple[Recipe, str]:
    """The recipe with as many epochs as fit into so many seconds since it began, and a sentence about them."""
    if pace is None:
        return replace(recipe, budget=budget), f"It ends after {duration(budget)}."
    epochs = _epochs(pace, recipe, budget, begun)
    speed = f"{recipe.data.batch_size / pace.step:.0f} images a second, measured over {_count(pace.measured, 'step')}"
    if epochs > _MOST:
        text = f"{_MOST:.0f} epochs take less than {duration(budget)}, at {speed}, and more would teach nothing new."
        return replace(recipe, epochs=_MOST), text
    text = f"{duration(budget)} are about {epochs:.3g} epochs, at {speed}."
    if epochs < _FEW and recipe.name.startswith("photos_cpu"):
        text += " That is little: give it more time as --budget."
    elif epochs < _FEW:
        text += " That is little: --recipe auto chooses what fits."
    return replace(recipe, epochs=round(max(epochs, 0.01), 2), budget=budget), text


def announced(parts: Sequence[Recipe], paces: Sequence[Pace | None], device: torch.device) -> str | None:
    """A sentence about how long the parts of a run will take; None if it is short, or nobody knows."""
    known = [(recipe, pace) for recipe, pace in zip(parts, paces, strict=True) if pace is not None]
    if len(known) < len(parts) or (total := sum(pace.seconds(recipe) for recipe, pace in known)) < SHORT:
        return None
    epochs = " and ".join(f"{recipe.epochs:g}" for recipe in parts)
    text = f"{epochs} epochs take about {duration(total)} on this machine: "
    text += "; then ".join(
        f"{recipe.data.batch_size / pace.step:.0f} images a second, measured over {_count(pace.measured, 'step')}"
        for recipe, pace in known
    )
    if device.type == "cpu" and total > _LONG and len(parts) == 1:
        text += ". --budget 30m ends this recipe in time, and --recipe auto chooses one that learns most in it"
    return f"{text}."


def _epochs(pace: Pace, recipe: Recipe, budget: float, begun: float) -> float:
    return pace.epochs(recipe, budget - (time.monotonic() - begun))


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
