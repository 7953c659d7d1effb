"""A numbered collection of images, wherever they lie."""

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

from manyviews.data.decode import BadImage, Raw, decode
from manyviews.data.files import Unreachable
from manyviews.errors import UserError
from manyviews.types import Batch

T = TypeVar("T")

Labels = tuple[np.ndarray, list[str]]
"""Classes of the items, and the classes' names: int64, a number for each item, or, where an item may have several
classes or none, bool, `n classes`."""


Captions = list[tuple[str, ...]]
"""The captions of each item; an item may have several, or none."""


def unlabeled() -> None:
    """The labels of data without labels."""


def uncaptioned() -> None:
    """The captions of data without captions."""


@dataclass(frozen=True, eq=False)
class Source:
    """A numbered collection of images, read one at a time.

    What would touch all the data waits until it is asked for. The functions must pickle, so that worker processes
    can have their own copy.

    Attributes:
        name: what to call it in a report.
        size: how many images.
        read: image `i`, undecoded; raises `BadImage`.
        identify: the names that stay with the images wherever they lie: see `ids`.
        annotate: their labels: see `labels`, `targets` and `classes`.
        describe: their captions: see `captions`.
        locate: where image `i` is, for people; its id if not given.
        canvases: ready-made canvases of these items, if the source has them; int64 indices to their `Batch`.
        side: of the ready-made canvases, pixels.
        blocks: after how many items each run ends that is best read together, int64, ascending; None where reading in
            any order is as good.
        window: how many blocks may be read in turns without reading one twice.
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

    def __len__(self) -> int:
        return self.size

    @cached_property
    def ids(self) -> list[str]:
        """One stable name for each item: its path in the collection or, if it has none, a hash of its content.

        Hashing the content reads all of it, once. Exact copies then share an id. Of much Parquet without paths it is
        file and row.
        """
        return self.identify()

    @cached_property
    def _annotation(self) -> Labels | None:
        return self.annotate()

    @property
    def several(self) -> bool:
        """Whether an item may have several labels: there are `targets` then, and no `labels`."""
        return self._annotation is not None and self._annotation[0].ndim == 2

    @property
    def labels(self) -> np.ndarray | None:
        """int64, one for each item, in [0, number of classes); None when there is not one label for each item."""
        return None if self._annotation is None or self.several else self._annotation[0]

    @property
    def targets(self) -> np.ndarray | None:
        """Whether an item is of a class: bool, `n classes`; None when the data has no labels."""
        if self._annotation is None:
            return None
        found, names = self._annotation
        return found if self.several else found[:, None] == np.arange(len(names))

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, by label; None when the data has no labels."""
        return self._annotation[1] if self._annotation else None

    @cached_property
    def captions(self) -> Captions | None:
        """Every item's captions, none of them empty; None when the data has no captions."""
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
        """A hash of the labels and the classes' names; None when the data has no labels."""
        marks = self.targets if self.several else self.labels
        if marks is None:
            return None
        names = "\n".join(self.classes or []).encode("utf-8", "surrogateescape")
        return blake2b(marks.tobytes() + names, digest_size=16).hexdigest()

    def sample(self, n: int = 16) -> str:
        """A hash of the undecoded content of a few items from all over: other images may lie under the same names."""
        some = np.linspace(0, self.size - 1, min(n, self.size)).astype(int).tolist()
        return blake2b(" ".join(_content_id(self.read, i) for i in some).encode(), digest_size=16).hexdigest()

    def load(self, i: int) -> Image.Image:
        """Image `i`, RGB, upright, at its own size.

        Raises:
            BadImage: with the reason why it cannot be used.
            Unreachable: a disk or a server fails, which says nothing of the image.
        """
        return decode(self.read(i))[0]

    def where(self, i: int) -> str:
        """A name for item `i` that tells a person where to look."""
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
        )

    def with_classes(self, classes: Sequence[str]) -> Source:
        """The same items, their labels numbered as in `classes`, so that a test set speaks its training set's language.

        Raises:
            UserError: the data has no labels, or a class that is not among these, or is there several times.
        """
        return replace(self, annotate=partial(given, _renumbered(self._annotation, list(classes), self.name)))


NAME_LABELS = (
    "say where its labels are: for a folder in a CSV file of path,label, for Parquet or tar files in a column or member"
)
"""What to do about a source without labels, for people."""

NAME_CAPTIONS = (
    "give a CSV file of path,caption as --captions, or as captions.csv in the folder of images; Parquet files need a "
    "column of captions, and tar files .txt members"
)
"""What to do about a source without captions, for people."""

_LABELS = (str, bytes, int, float, np.generic)


def content_ids(read: Callable[[int], Raw], size: int) -> list[str]:
    """A hash of each item's content, undecoded bytes or pixels. A bad item gets its number."""
    return [_content_id(read, i) for i in range(size)]


def _content_id(read: Callable[[int], Raw], i: int) -> str:
    try:
        raw = read(i)
        raw = raw.read_bytes() if isinstance(raw, Path) else raw
    except Unreachable:
        raise
    except (BadImage, OSError):
        return f"bad-{i}"
    if not isinstance(raw, bytes):
        pixels = np.asarray(raw)
        raw = str(pixels.shape).encode() + pixels.tobytes()
    return blake2b(raw, digest_size=16).hexdigest()


def as_labels(values: Any, classes: Sequence[str] | None = None) -> Labels | None:
    """Labels as people give them, integers or strings, to numbers and names of classes.

    Integers number `classes` if given; else the distinct values become the classes, numbers by size and strings by the
    alphabet. A negative integer, with which STL-10 and Hugging Face mark what is unlabeled, means that there are none;
    so does anything but one number or one string for each item: attributes, boxes and masks are no classes.
    """
    try:
        values = np.asarray(values)
    except ValueError:  # of several lengths
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
        values = values.astype(str)
    distinct, numbers = np.unique(values, return_inverse=True)
    return numbers.astype(np.int64), [str(v) for v in distinct.tolist()]


def as_captions(values: Sequence[Any]) -> Captions | None:
    """Captions as people give them, one text or several for each item; None where anything else is among them.

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
    """The classes of items that have any number of them, the classes by the alphabet."""
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
    """What is left of each block; none where another order tears them apart."""
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


def _renumbered(labels: Labels | None, classes: list[str], name: str) -> Labels:
    if labels is None:
        raise UserError(f"{name} has no labels; put its images into one folder for each class, or {NAME_LABELS}.")
    found, names = labels
    if names == classes:
        return labels
    used = np.unique(found) if found.ndim == 1 else np.flatnonzero(found.any(0))
    twice = [names[k] for k in used if classes.count(names[k]) > 1]
    if twice:
        raise UserError(
            f"Several classes are called '{twice[0]}', and which of them {name} means is not clear: rename them."
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
