"""Shared by several verbs: loading weights, extracting features, and folders that can be continued."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyviews import distributed, machine
from manyviews.checkpoint import check_new, write_text
from manyviews.data import Reading, Source, measured, open_source, read_as
from manyviews.errors import UserError, say
from manyviews.progress import progress
from manyviews.weights import Pretrained, load

if TYPE_CHECKING:
    from manyviews.evaluation import Features


def opened(data: Any, labels: Any = None, captions: Any = None, split: str | None = None) -> Source:
    """Images for a verb: see `open_source`. Says what was left out or assumed, once, in the first process only.

    The source then has no notes, so that another verb does not repeat them.
    """
    source = open_source(data, labels, captions, split)
    if not source.notes:
        return source
    tell(source, [f"{source.name.partition(':')[0]}: {note}" for note in source.notes])
    return replace(source, notes=())


def loaded(weights: str | Path | Pretrained) -> Pretrained:
    """Load weights from a path; return weights that are already loaded as they are."""
    return weights if isinstance(weights, Pretrained) else load(weights)


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
        _say_once(lacks)
    return {
        "test_size": weights.test_size,
        "mean": weights.mean,
        "std": weights.std,
        "device": device,
    }


@cache
def _say_once(text: str) -> None:
    say(text)


def features(weights: str | Path | Pretrained, source: Source, title: str) -> Features:
    """Extract the features of all images, with a progress bar; unreadable images are reported on standard error.

    Raises:
        UserError: no image can be read, or features are not finite.
    """
    found = shared_features(weights, source, title, shared=False)
    assert found is not None
    return found


def shared_features(
    weights: str | Path | Pretrained, source: Source, title: str, shared: bool = True
) -> Features | None:
    """`features`, of which each process of a group reads its share: all in the first process, None in the others."""
    from manyviews.evaluation.features import check_finite, extract_all

    found = loaded(weights)
    if found.note and distributed.rank() == 0:
        _say_once(found.note)
    (source,) = seen_by(found, source)
    with progress(title, quiet=shared and distributed.rank() > 0) as update:
        seen = extract_all({title: found.encoder}, source, progress=update, shared=shared, **preprocessing(found))
    if title not in seen:
        return None
    for where, reason in seen[title].bad:
        say(f"Skipped {where}: {reason}")
    check_finite(seen[title].x)
    return seen[title]


def new_file(out: str | Path) -> Path:
    """The path of a new file or folder. Raises UserError if it exists or cannot be made."""
    out = Path(out)
    check_new(out)
    return out


def claim(folder: Path, file: str, plan: str, other: str) -> None:
    """Make a folder and write a plan to it, or continue a folder that holds the same plan.

    Args:
        folder: new, empty, or begun with the same plan.
        file: name of the plan's file in the folder.
        plan: everything that decides the results, as text.
        other: what the folder holds when its plan differs, for the message.

    Raises:
        UserError: the folder holds another plan or other files, or cannot be made.
    """
    path = folder / file
    if path.exists():
        if path.read_text(encoding="utf-8") != plan:
            raise UserError(f"{folder} holds {other}: give another --out, or the same settings to continue it.")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: give another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The folder {folder} cannot be made ({e.strerror}): give another --out.") from None
    write_text(path, plan)
