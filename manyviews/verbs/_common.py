"""Shared by several verbs: loading weights, extracting features, and folders that can be continued."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyviews import machine
from manyviews.checkpoint import check_new, write_text
from manyviews.data import Source
from manyviews.errors import UserError, say
from manyviews.progress import progress
from manyviews.weights import Pretrained, load

if TYPE_CHECKING:
    from manyviews.evaluation import Features


def loaded(weights: str | Path | Pretrained) -> Pretrained:
    """Load weights from a path; return weights that are already loaded as they are."""
    return weights if isinstance(weights, Pretrained) else load(weights)


def preprocessing(weights: Pretrained) -> dict[str, Any]:
    """The arguments `test_size`, `mean`, `std` and `device` of everything that shows images to an encoder."""
    return {
        "test_size": weights.test_size,
        "mean": weights.mean,
        "std": weights.std,
        "device": machine.device(),
    }


def features(weights: str | Path | Pretrained, source: Source, title: str = "embed") -> Features:
    """Extract the features of all images, with a progress bar; unreadable images are reported on standard error.

    Raises:
        UserError: no image can be read, or features are not finite.
    """
    from manyviews.evaluation.features import check_finite, extract

    found = loaded(weights)
    with progress(title) as update:
        seen = extract(found.encoder, source, progress=update, **preprocessing(found))
    for where, reason in seen.bad:
        say(f"Skipped {where}: {reason}")
    check_finite(seen.x)
    return seen


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
