"""Images in archives, read by ranges of bytes: tars and zips once their members are known.

Of files behind a URL only the needed megabytes are read, each about once in an epoch: see `Loader`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from manyviews import machine
from manyviews.checkpoint import write_text
from manyviews.data.blocks import Blocks, window
from manyviews.data.decode import BadImage, fault
from manyviews.data.files import THREADS, File, names_below
from manyviews.data.folder import ending_of, is_image
from manyviews.data.formats import FORMATS, HEAD, UNREAD, by_ending, missing, sniff
from manyviews.data.layout import (
    ALL,
    doubt,
    few,
    find_splits,
    of_masks,
    stray_note,
    strays,
    top_folders,
    without_wrapper,
)
from manyviews.data.left import BY_CONTENT, HIDDEN, MASKS, SYSTEM, Left, is_system
from manyviews.data.source import Labels, Source, as_labels
from manyviews.errors import UserError
from manyviews.progress import progress

Index = dict[str, Any]
"""The images of an archive, in order.

Lists `names`, `keys` (names in ids), `starts` and `stops` (bytes), `values` (labels or None), for zips `packs` (see
`manyviews.data.zip`); and `left`, the counts of what was left out.
"""

REST = "(the rest)"
"""The image that stands for the rest of an archive that is cut short."""

_BLOCK = 2**22  # bytes read together: their transfer takes about as long as a request's answer
_MOST = 256  # images read together
_VERSION = 3


def indexed(files: Sequence[File], scan: Callable[[File], Index], kind: str) -> list[Index]:
    """The index of each archive, perhaps one that was made before; `kind` says what else it depends on.

    Indices stay in the user's cache folder until their file changes.
    """
    found = []
    quiet = os.environ.get("RANK", "0") != "0"  # as torchrun says
    with progress("index", quiet) as update, ThreadPoolExecutor(min(THREADS, len(files))) as pool:
        for index in pool.map(partial(_index, scan=scan, kind=kind), files):
            found.append(index)
            update(len(found), len(files))
    return found


def _index(file: File, scan: Callable[[File], Index], kind: str) -> Index:
    """The index of an archive. Of several processes one reads it, and the others wait."""
    lacking = [one.name for one in FORMATS if missing(one)]
    facts = f"{_VERSION} {file} {file.size} {file.stamp} {kind} {lacking}"
    cache = machine.cache_folder("tars")
    path = cache / f"{blake2b(facts.encode('utf-8', 'surrogateescape'), digest_size=16).hexdigest()}.json"
    with ExitStack() as stack:
        # A folder that cannot be written or locked only costs time at the next start.
        with suppress(OSError, NotImplementedError):
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")))
        with suppress(OSError, ValueError):
            index: Index = json.loads(path.read_text(encoding="utf-8"))
            return index
        found = scan(file)
        if file.stamp:  # without it a change of the file would go unnoticed
            with suppress(OSError):
                write_text(path, json.dumps(found))
        return found


class Wanted:
    """Decides which members of an archive are images, and counts those that are not."""

    def __init__(self) -> None:
        self.left = Left()
        self._system: dict[str, bool] = {}

    def is_image(self, name: str) -> bool | None:
        """Whether a member is an image by its ending; None if only its content tells."""
        folder, _, last = name.rpartition("/")
        if self._of_system(folder):
            if is_image(last):
                self.left.add(SYSTEM.replace("system folder{s}", "image{s} in system folders"), name)
            return False
        if last.startswith(".") or "/." in f"/{folder}":
            if is_image(last):
                self.left.add(HIDDEN, name)
            return False
        if is_image(last):
            kind = by_ending(last)
            if kind is None or missing(kind) is None:
                return True
            self.left.unread(ending_of(last), name, kind)
            return False
        ending = ending_of(last)
        if ending in UNREAD:
            self.left.unread(ending, name, None)
            return False
        return None

    def is_image_inside(self, name: str, head: bytes) -> bool:
        """Whether a member that begins with these bytes is an image."""
        kind = sniff(head[:HEAD])
        if kind is None:
            return False
        if missing(kind) is not None:
            self.left.unread("", name, kind)
            return False
        self.left.add(BY_CONTENT, name)
        return True

    def _of_system(self, folder: str) -> bool:
        known = self._system.get(folder)
        if known is None:
            known = self._system[folder] = any(map(is_system, folder.split("/")))
        return known


class Archives:
    """The images of several archives.

    Attributes:
        files: the archives, in order.
        names: the images' members, archive by archive in their order there.
        keys: their names in ids.
        values: their labels, integers or text, or None.
        blocks: the number of images up to the end of each block, which is some megabytes of one archive.
        window: how many blocks may be read in turns.
    """

    def __init__(
        self,
        files: Sequence[File],
        indices: Sequence[Index],
        what: str,
        unpack: Callable[[bytes, list[int]], bytes] | None = None,
    ) -> None:
        self.files, self.what, self._unpack = list(files), what, unpack
        self.names = [name for index in indices for name in index["names"]]
        self.keys = [key for index in indices for key in index["keys"]]
        self.values = [_number(value) for index in indices for value in index["values"]]
        self._packs = [pack for index in indices for pack in index.get("packs", ())]
        self._starts = np.array([start for index in indices for start in index["starts"]], dtype=np.int64)
        self._stops = np.array([stop for index in indices for stop in index["stops"]], dtype=np.int64)
        self.ends = np.cumsum([len(index["names"]) for index in indices])
        runs = [_runs(index["starts"], index["stops"]) for index in indices]
        first = [0, *self.ends[:-1].tolist()]
        self.blocks = np.array([at + end for at, ends in zip(first, runs, strict=True) for end in ends], dtype=np.int64)
        begins = np.concatenate([[0], self.blocks[:-1]]).astype(np.int64)
        self.window = window(self._stops[self.blocks - 1] - self._starts[begins])
        sizes = np.repeat([file.size for file in files], [len(index["names"]) for index in indices])
        self._cut = (self._stops > sizes).tolist()
        self._held = Blocks()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> bytes:
        """The encoded image `i`, with all of its block in one request."""
        block = int(np.searchsorted(self.blocks, i, side="right"))
        content = self._held.get(block, self._fetch)
        first = self._starts[self._begin(block)]
        image = bytes(content[self._starts[i] - first : self._stops[i] - first])
        if len(image) < self._stops[i] - self._starts[i]:
            raise BadImage(f"{self.what} is cut short or damaged here")
        return image if self._unpack is None else self._unpack(image, self._packs[i])

    def _begin(self, block: int) -> int:
        return int(self.blocks[block - 1]) if block else 0

    def _fetch(self, block: int) -> memoryview:
        begin, end = self._begin(block), int(self.blocks[block])
        file = self.files[self.file_of(begin)]
        start, stop = int(self._starts[begin]), min(int(self._stops[end - 1]), file.size)
        file.unchanged()
        try:
            return memoryview(file.read(start, stop) if stop > start else b"")
        except OSError as error:
            raise fault(error, Path(file.path) if file.local else None, self.what) from None

    def locate(self, i: int) -> str:
        """Archive and member, for people."""
        return f"{self.files[self.file_of(i)].name}: {self.names[i]}"

    def file_of(self, i: int) -> int:
        """The number of the archive that image `i` is in."""
        return int(np.searchsorted(self.ends, i, side="right"))

    def ids(self, keys: Sequence[str]) -> list[str]:
        """Names below those of the archives, with the archives' folders where these differ."""
        shards = [os.path.splitext(name)[0] for name in names_below(self.files)]
        return [f"{shards[self.file_of(i)]}/{key}" for i, key in enumerate(keys)]

    def labels(self) -> Labels | None:
        """The labels that lie in the archives beside the images."""
        # The image that stands for the rest of a cut archive gets any label: it is bad, and never decoded.
        known = next((value for value in self.values if value is not None), None)
        values = [known if cut else value for value, cut in zip(self.values, self._cut, strict=True)]
        return None if any(value is None for value in values) else as_labels(values)

    @property
    def lacking(self) -> int:
        """How many images have no label beside them."""
        return sum(value is None and not cut for value, cut in zip(self.values, self._cut, strict=True))

    def labels_of_folders(self, short: dict[str, str]) -> Labels | None:
        """First-level folders."""
        classes = [short.get(name.rpartition("/")[0], "").partition("/")[0] for name in self.names]
        known = next((value for value in classes if value), "")
        classes = [known if cut else value for value, cut in zip(classes, self._cut, strict=True)]
        return as_labels(classes) if all(classes) else None


def opened(
    files: Sequence[File],
    indices: Sequence[Index],
    make: Callable[[Sequence[Index]], Archives],
    split: str | None,
) -> tuple[Source, Archives, dict[str, str]]:
    """The images of a split of archives, with the labels that lie beside them, else those of their folders.

    Returns the source, its archives, and a shorter path for each folder of members: without the names of the split and
    of a folder around all others. The source's ids are those of the archives' keys.

    Raises:
        UserError: no such split.
    """
    ending = "." + files[0].name.rpartition(".")[2]
    name = files[0].name.removesuffix(ending) if len(files) == 1 else Path(str(files[0])).parent.name
    left, address = Left(), str(files[0]) if len(files) == 1 else str(Path(str(files[0])).parent)
    for index in indices:
        left.update(index["left"])
    notes = list[str]()
    folders = Counter(member.rpartition("/")[0] for index in indices for member in index["names"] if member != REST)
    if masks := of_masks(folders):
        left.add(MASKS, min(masks), sum(folders.pop(folder) for folder in masks))
        indices = [_chosen(index, folders) for index in indices]
    found = find_splits(folders)
    short, names = without_wrapper(folders), tuple[str, ...]()
    if split not in (None, ALL) and found is None:
        raise UserError(f"{address} has no splits, such as folders train and test: leave ':{split}' out.")
    if found is not None:
        chosen = found.choose(split, address)
        if split is None:
            counts = Counter[str]()
            for folder, count in folders.items():
                counts[found.of[folder]] += count
            notes.append(found.note(chosen, counts))
            names = found.names
        short = dict(found.short)
        if chosen != ALL:
            short = {folder: path for folder, path in short.items() if found.of[folder] == chosen}
            indices = [_chosen(index, short) for index in indices]
            name = f"{name}:{chosen}"
    archives = make(indices)
    annotate, why, doubts, by_folder = archives.labels, "", "", False
    if all(value is None for value in archives.values):
        if _own_folders(indices, short):
            why = "each archive has one folder of its own, and these are not taken for classes."
        else:
            annotate = partial(archives.labels_of_folders, short)
            if outside := strays(short, [member for member in archives.names if member != REST]):
                why = stray_note(outside)
                if few(outside, archives.names):
                    notes.append(why)
            else:
                by_folder, doubts = True, doubt(top_folders(short, folders))
    elif lacking := archives.lacking:
        why = f"{lacking:,} of {len(archives):,} images have no label beside them: add them, or leave these images out."
        notes.append(why)
    source = Source(name, len(archives), archives.read, archives.keys.copy, annotate, archives.locate)
    source = replace(source, blocks=archives.blocks, window=archives.window, why_unlabeled=why)
    source = replace(source, by_folder=by_folder, doubt=doubts)
    return replace(source, notes=(*left.notes(), *notes), splits=names), archives, short


def _chosen(index: Index, folders: Collection[str]) -> Index:
    """The images in these folders."""
    rows = [i for i, name in enumerate(index["names"]) if name == REST or name.rpartition("/")[0] in folders]
    lists = {key: [value[i] for i in rows] for key, value in index.items() if key != "left"}
    return lists | {"left": index["left"]}


def _own_folders(indices: Sequence[Index], short: dict[str, str]) -> bool:
    """Whether each of several archives has one first-level folder, and no other has the same."""
    if len(indices) < 2:
        return False
    tops = [{short.get(n.rpartition("/")[0], "").partition("/")[0] for n in i["names"] if n != REST} for i in indices]
    each = [top for one in tops for top in one]
    return all(len(one) <= 1 for one in tops) and len(set(each)) == len(each) > 1


def _runs(starts: list[int], stops: list[int]) -> list[int]:
    """The number of images up to the end of each block of an archive."""
    ends, first = [], 0
    for i in range(1, len(starts)):
        if stops[i] - starts[first] > _BLOCK or i - first == _MOST:
            ends.append(i)
            first = i
    return [*ends, len(starts)] if starts else []


def _number(value: int | str | None) -> int | str | None:
    """The integer that a text spells, else the value itself."""
    try:
        return value if value is None else int(value)
    except ValueError:
        return value
