"""How images reach an encoder: files read as it learned to see them, and the device that it runs on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from manyviews import distributed, machine
from manyviews.data import Reading, Source, measured, read_as
from manyviews.errors import UserError, say

if TYPE_CHECKING:
    from manyviews.weights.load import Pretrained


def seen_by(weights: Pretrained, *sources: Source, quiet: bool = False) -> list[Source]:
    """Sources whose files are read as the encoder learned to see them, all of them alike.

    Weights that do not say so get as many channels as they take. Black and white of files that have none of their own
    are measured on the first source, and told unless `quiet`.

    Raises:
        UserError: canvases of other channels than the encoder takes.
    """
    wanted = weights.reading or Reading(len(weights.mean))
    reading = wanted
    for source in sources:
        if source.canvases is None:
            reading, notes = measured(source, wanted, cure="manyviews prepare --range {}")
            tell(source, [] if quiet else notes)
            break
    for source in sources:
        if source.canvases is None:
            continue
        if source.reading.count != wanted.count:
            raise UserError(
                f"The canvases of {source.name} have {source.reading.words}, and the encoder takes {wanted.words}: "
                f"prepare the images with --channels {wanted.count}."
            )
        if weights.reading is not None and source.reading.words != wanted.words:
            held = source.reading.words
            tell(source, [f"{source.name}: its canvases hold {held}, and the encoder learned from {wanted.words}."])
    return [source if source.canvases is not None else read_as(source, reading) for source in sources]


def tell(source: Source, notes: Iterable[str]) -> None:
    """Print what there is to say about images, in the first process only."""
    if os.environ.get("RANK", "0") == "0":  # as torchrun says
        for note in notes:
            say(note)


def preprocessing(weights: Pretrained) -> dict[str, Any]:
    """The arguments `test_size`, `mean`, `std` and `device` of everything that shows images to an encoder."""
    device = machine.device()
    lacks = machine.limits(device)
    if lacks is not None and distributed.rank() == 0:
        say_once(lacks)
    return {
        "test_size": weights.test_size,
        "mean": weights.mean,
        "std": weights.std,
        "device": device,
    }


@cache
def say_once(text: str) -> None:
    """Print a sentence the first time that it comes up in this process."""
    say(text)
