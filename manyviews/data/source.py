"""A numbered collection of images, wherever they are stored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from manyviews.data.decode import BadImage, Frame, Picture, Raw, as_rgb, decode
from manyviews.data.files import Unreachable
from manyviews.data.reading import RGB, Reading
from manyviews.data.slow import READS
from manyviews.errors import UserError
from manyviews.types import Batch

T = TypeVar("T")

Labels = tuple[np.ndarray, list[str]]
"""The items' classes and the classes' names. Classes are int64, one number for each item, or bool, `n classes`, if an
item may have several or none."""


Captions = list[tuple[str, ...]]
"""The captions of each item; an item may have several, or none."""


def unlabeled() -> None:
    """The labels of data without labels."""


def uncaptioned() -> None:
    """The captions of data without captions."""


@dataclass(frozen=True, eq=False)
class Source:
    """A numbered collection of images, read one at a time.

    Work on all the data waits until someone needs it. The functions must pickle, so that worker processes can have
    their own copy.

    Attributes:
        name: its name in reports.
        size: the number of images.
        read: image `i`, undecoded; raises `BadImage`.
        identify: the images' stable names: see `ids`.
        annotate: their labels: see `labels`, `targets` and `classes`.
        locate: the place of image `i`, for people; None for its id.
        canvases: ready-made canvases, if the source has them: from int64 indices to their `Batch`.
        side: side of the ready-made canvases, pixels.
        blocks: the number of items up to the end of each run that is best read together, int64, ascending; None if any
            order is as good.
        window: how many blocks may be read in turns without reading one twice.
        describe: the images' captions: see `captions`.
        reading: how its files become pixels.
        notes: sentences for people: what was left out or assumed when it was opened, with the cure.
        splits: splits of its data, of which it is one ("train", "val", "test"); empty if there are none, or if one was
            asked for.
        why_unlabeled: why there are no labels although there seem to be some, with the cure.
        by_folder: whether its labels are the names of folders.
        doubt: why these folders are probably no classes, in words that follow "because"; empty if they may well be.
        keep: where the pixels of item `i` are kept in memory by whoever reads it again and again.
    """

    name: str
    size: int
    read: Callable[[int], Raw]
    identify: Callable[[], list[str]]
    annotate: Callable[[], Labels | None] = unlabeled
    locate: Callable[[int], str] | None = None
    canvases: Callable[[np.ndarray], Batch] | None = None
    side: int | None = None
    blocks: np.ndarray | None = None
    window: int = 1
    describe: Callable[[], Captions | None] = uncaptioned
    reading: Reading = RGB
    notes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    why_unlabeled: str = ""
    by_folder: bool = False
    doubt: str = ""
    keep: Callable[[int], Any] | None = None

    def __len__(self) -> int:
        return self.size

    @cached_property
    def ids(self) -> list[str]:
        """One stable name for each item: its path in the collection or, if it has none, a hash of its content.

        Hashing reads all the content, once. Exact copies then share an id. A large Parquet set without paths has file
        and row instead.
        """
        return self.identify()

    @cached_property
    def _annotation(self) -> Labels | None:
        return self.annotate()

    @property
    def several(self) -> bool:
        """Whether an item may have several labels. Then there are `targets` and no `labels`."""
        return self._annotation is not None and self._annotation[0].ndim == 2

    @property
    def labels(self) -> np.ndarray | None:
        """int64, one for each item, in [0, number of classes); None unless every item has exactly one label."""
        return None if self._annotation is None or self.several else self._annotation[0]

    @property
    def targets(self) -> np.ndarray | None:
        """Whether an item belongs to a class: bool, `n classes`; None without labels."""
        if self._annotation is None:
            return None
        found, names = self._annotation
        return found if self.several else found[:, None] == np.arange(len(names))

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, by label; None without labels."""
        return self._annotation[1] if self._annotation else None

    @cached_property
    def captions(self) -> Captions | None:
        """The captions of each item, none of them empty; None without captions."""
        found = self.describe()
        if found is None:
            return None
        clean = [tuple(text for caption in item if (text := caption.replace("\0", " ").strip())) for item in found]
        return clean if any(clean) else None

    @property
    def naming(self) -> str:
        """A hash of the ids."""
        return blake2b("\n".join(self.ids).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    @property
    def labeling(self) -> str | None:
        """A hash of the labels and the classes' names; None without labels."""
        marks = self.targets if self.several else self.labels
        if marks is None:
            return None
        names = "\n".join(self.classes or []).encode("utf-8", "surrogateescape")
        return blake2b(marks.tobytes() + names, digest_size=16).hexdigest()

    def sample(self, n: int = 16) -> str:
        """A hash of the undecoded content of `n` spread-out items, as other images may have the same names."""
        some = np.linspace(0, self.size - 1, min(n, self.size)).astype(int).tolist()
        return blake2b(" ".join(_content_id(self.read, i) for i in some).encode(), digest_size=16).hexdigest()

    def load(self, i: int) -> Picture:
        """Image `i` as a network sees it: upright, at its own size, in the channels of `reading`.

        Raises:
            BadImage: the image cannot be used; the reason says why.
            Unreachable: a disk or a server fails.
        """
        with READS.one(self.where, i):
            return decode(self.read(i), reading=self.stored())[0]

    def show(self, i: int, at_least: int | None = None) -> Image.Image:
        """Image `i` for people: RGB, of the first three channels if it has more. See `decode` for `at_least`.

        Raises:
            BadImage, Unreachable: as `load`.
        """
        return as_rgb(decode(self.read(i), at_least, self.stored())[0])

    def stored(self, reading: Reading | None = None) -> Reading:
        """How `decode` reads what `read` gives: as `reading` (the source's if None), unless canvases are ready-made."""
        reading = self.reading if reading is None else reading
        return reading if self.canvases is None else Reading(reading.count, max_pixels=reading.max_pixels)

    def where(self, i: int) -> str:
        """The place of item `i`, for people."""
        return self.locate(i) if self.locate else self.ids[i]

    def subset(self, indices: Sequence[int] | np.ndarray) -> Source:
        """The items at `indices`, in that order, with the same ids and classes."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Source(
            self.name,
            len(chosen),
            partial(_chosen_item, self.read, chosen),
            partial(_chosen_ids, self, chosen),
            partial(_chosen_labels, self, chosen),
            partial(_chosen_item, self.where, chosen),
            None if self.canvases is None else partial(_chosen_canvases, self.canvases, chosen),
            self.side,
            _chosen_blocks(self.blocks, chosen),
            self.window,
            partial(_chosen_captions, self, chosen),
            self.reading,
            self.notes,
            why_unlabeled=self.why_unlabeled,
            by_folder=self.by_folder,
            doubt=self.doubt,
            keep=None if self.keep is None else partial(_chosen_item, self.keep, chosen),
        )

    def with_classes(self, classes: Sequence[str]) -> Source:
        """The same items with labels numbered as in `classes`, so that a test set agrees with its training set.

        Raises:
            UserError: the data has no labels, or one of its classes is not in `classes` or is in it several times.
        """
        return replace(self, annotate=partial(given, _renumbered(self, list(classes))))


NAME_LABELS = (
    "say where its labels are: a CSV file of path,label for a folder, a column or member for Parquet or tar files"
)
"""Advice about a source without labels."""

NAME_CAPTIONS = (
    "give a CSV file of path,caption as --captions, or as captions.csv in the folder of images; Parquet files need a "
    "column of captions, and tar files .txt members"
)
"""Advice about a source without captions."""


def no_labels(source: Source) -> str:
    """A sentence for people who need the labels that a source lacks: why there are none, and what to do."""
    if source.why_unlabeled:
        return f"{source.name} has no labels: {source.why_unlabeled}"
    return f"{source.name} has no labels: put its images into one folder for each class, or {NAME_LABELS}."


_LABELS = (str, bytes, int, float, np.generic)


def content_ids(read: Callable[[int], Raw], size: int) -> list[str]:
    """A hash of each item's content, its undecoded bytes or pixels; a bad item's number."""
    return [_content_id(read, i) for i in range(size)]


def _content_id(read: Callable[[int], Raw], i: int) -> str:
    try:
        raw = read(i)
        place = b""
        if isinstance(raw, Frame):
            place = f"#{raw.number}".encode()
            raw = raw.raw
        raw = raw.read_bytes() if isinstance(raw, Path) else raw
    except Unreachable:
        raise
    except (BadImage, OSError):
        return f"bad-{i}"
    if not isinstance(raw, bytes):
        pixels = np.asarray(raw)
        raw = str(pixels.shape).encode() + pixels.tobytes()
    return blake2b(raw + place, digest_size=16).hexdigest()


def as_labels(values: Any, classes: Sequence[str] | None = None) -> Labels | None:
    """Labels given as integers or strings, to numbers and names of classes; None if they are no labels.

    Integers number `classes` if given. Otherwise the distinct values become the classes, numbers by size and strings by
    the alphabet. A negative integer, STL-10's and Hugging Face's mark of an unlabeled item, means no labels. So does
    anything else than one number or string for each item: attributes, boxes and masks are no classes.
    """
    try:
        values = np.asarray(values)
    except ValueError:  # several lengths
        return None
    if values.ndim == 0 or values.size != len(values) or not all(isinstance(v, _LABELS) for v in values.ravel()[:1000]):
        return None
    values = values.ravel()
    if np.issubdtype(values.dtype, np.integer):
        if (values < 0).any():
            return None
        if classes is not None and values.max(initial=0) < len(classes):
            return values.astype(np.int64), [str(c) for c in classes]
    else:
        texts = [v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else str(v) for v in values.tolist()]
        values = np.array(texts, dtype=str)
    distinct, numbers = np.unique(values, return_inverse=True)
    return numbers.astype(np.int64), [str(v) for v in distinct.tolist()]


def as_captions(values: Sequence[Any]) -> Captions | None:
    """Captions given as one text or several for each item; None if anything else is among them.

    An item without a caption has None, an empty text or an empty list.
    """
    found: Captions = []
    for value in values:
        item = (value,) if isinstance(value, str) else () if value is None else value
        if not isinstance(item, list | tuple | np.ndarray) or not all(isinstance(text, str) for text in item):
            return None
        found.append(tuple(item))
    return found


def as_targets(items: Sequence[Collection[str]]) -> Labels:
    """Labels of items with any number of classes, which are sorted by the alphabet."""
    names = sorted(set().union(*items))
    number = {name: k for k, name in enumerate(names)}
    targets = np.zeros((len(items), len(names)), dtype=bool)
    for i, item in enumerate(items):
        targets[i, [number[name] for name in item]] = True
    return targets, names


def given(value: T) -> T:
    """Itself. `partial(given, value)` is a function that pickles."""
    return value


def _chosen_item(function: Callable[[int], Any], chosen: np.ndarray, i: int) -> Any:
    return function(int(chosen[i]))


def _chosen_canvases(canvases: Callable[[np.ndarray], Batch], chosen: np.ndarray, items: np.ndarray) -> Batch:
    return replace(canvases(chosen[items]), index=torch.from_numpy(np.asarray(items, dtype=np.int64)))


def _chosen_blocks(blocks: np.ndarray | None, chosen: np.ndarray) -> np.ndarray | None:
    """The rest of each block; None if another order tears the blocks apart."""
    if blocks is None or not len(chosen):
        return None if blocks is None else blocks[:0]
    block = np.searchsorted(blocks, chosen, side="right")
    ends = np.append(np.flatnonzero(np.diff(block)) + 1, len(chosen))
    return ends if len(ends) <= 4 * len(np.unique(block)) else None


def _chosen_ids(source: Source, chosen: np.ndarray) -> list[str]:
    ids = source.ids
    return [ids[i] for i in chosen]


def _chosen_labels(source: Source, chosen: np.ndarray) -> Labels | None:
    if source._annotation is None:
        return None
    found, names = source._annotation
    return found[chosen], names


def _chosen_captions(source: Source, chosen: np.ndarray) -> Captions | None:
    captions = source.captions
    return None if captions is None else [captions[i] for i in chosen]


def _renumbered(source: Source, classes: list[str]) -> Labels:
    labels, name = source._annotation, source.name
    if labels is None:
        raise UserError(no_labels(source))
    found, names = labels
    if names == classes:
        return labels
    used = np.unique(found) if found.ndim == 1 else np.flatnonzero(found.any(0))
    twice = [names[k] for k in used if classes.count(names[k]) > 1]
    if twice:
        raise UserError(
            f"Several classes are called '{twice[0]}', and it is not clear which one {name} means: rename them."
        )
    strange = [names[k] for k in used if names[k] not in classes]
    if strange:
        raise UserError(f"{name} has the class '{strange[0]}', which is not among {', '.join(classes)}.")
    table = np.array([classes.index(c) if c in classes else -1 for c in names], dtype=np.int64)
    if found.ndim == 1:
        return table[found], classes
    targets = np.zeros((len(found), len(classes)), dtype=bool)
    targets[:, table[used]] = found[:, used]
    return targets, classes
