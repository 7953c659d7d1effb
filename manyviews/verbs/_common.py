"""Shared by several verbs: loading weights, extracting features, and folders that can be continued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyviews import distributed
from manyviews.checkpoint import check_new, write_text
from manyviews.data import Source, open_source
from manyviews.errors import UserError, say
from manyviews.progress import progress
from manyviews.weights import Pretrained, load
from manyviews.weights.showing import preprocessing as preprocessing
from manyviews.weights.showing import say_once as say_once
from manyviews.weights.showing import seen_by as seen_by
from manyviews.weights.showing import tell as tell

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


def own_test(data: Any, source: Source) -> Source | None:
    """The test images of data in splits, else its validation images; None if there are none."""
    part = next((part for part in ("test", "val") if part in source.splits), None)
    return None if part is None or isinstance(data, Source) else opened(data, split=part)


def doubted(source: Source) -> None:
    """Warn that folders that were asked for as classes are probably none."""
    if source.doubt:
        note = f"{source.name}: its folders are used as classes, although {source.doubt}; --labels gives others."
        tell(source, [note])


def loaded(weights: str | Path | Pretrained) -> Pretrained:
    """Load weights from a path; return weights that are already loaded as they are."""
    return weights if isinstance(weights, Pretrained) else load(weights)


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
        say_once(found.note)
    (source,) = seen_by(found, source)
    with progress(title, quiet=shared and distributed.rank() > 0) as update:
        seen = extract_all({title: found.encoder}, source, progress=update, shared=shared, **preprocessing(found))
    if title not in seen:
        return None
    for where, reason in seen[title].bad:
        say(f"Skipped {where}: {reason}")
    check_finite(seen[title].x)
    return seen[title]


def plain(name: str) -> str:
    """A name that any format can hold: file names need not be valid Unicode."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def new_file(out: str | Path) -> Path:
    """The path of a new file or folder. Raises UserError if it exists or cannot be made."""
    out = Path(out)
    check_new(out)
    return out


def claim(folder: Path, file: str, plan: str, other: str, option: str = "--out") -> None:
    """Make a folder and write a plan to it, or continue a folder that holds the same plan.

    Args:
        folder: new, empty, or begun with the same plan.
        file: name of the plan's file in the folder.
        plan: everything that decides the results, as text.
        other: what the folder holds when its plan differs, for the message.
        option: the option that names the folder, for the message.

    Raises:
        UserError: the folder holds another plan or other files, or cannot be made.
    """
    path = folder / file
    if path.exists():
        if path.read_text(encoding="utf-8") != plan:
            raise UserError(f"{folder} holds {other}: give another {option}, or the same settings to continue it.")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: give another {option}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The folder {folder} cannot be made ({e.strerror}): give another {option}.") from None
    write_text(path, plan)
