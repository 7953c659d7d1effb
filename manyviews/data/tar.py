"""Images in tar files, in webdataset's layout, read by ranges of bytes.

Members whose file names agree up to the first dot are one sample: an image, and perhaps its label and caption. Of files
behind a URL only the needed megabytes are read, each about once in an epoch: see `Loader`.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from manyviews.checkpoint import write_text
from manyviews.data.blocks import Blocks, window
from manyviews.data.decode import EXTENSIONS, BadImage, fault
from manyviews.data.files import THREADS, File, names_below
from manyviews.data.folder import is_image
from manyviews.data.source import Captions, Labels, Source, as_captions, as_labels
from manyviews.errors import UserError
from manyviews.progress import progress

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Endings of compressed tars, which cannot be read from the middle."""

_BLOCK = 2**22  # bytes read together: their transfer takes about as long as a request's answer
_MOST = 256  # samples read together
_LABELS = ("cls", "label")
_LABEL_BYTES = 2**20  # a longer member is no label or caption
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard
_VERSION = 2
_REST = "(the rest)"


def open_tars(files: Sequence[File], label: str | None = None, caption: str | None = None) -> Source:
    """The images in tar files, in order.

    A sample's image is the first with a single ending: `7.jpg`, not `7.mask.png`. Its label is its member `.cls`, an
    integer or text, or the field `label` of its `.json`; the argument `label` names another ending and field. Its
    caption is its member `.txt`, or the field `caption`; the argument `caption` names another ending and field. A tar
    that is cut short gives the samples before the cut, and one bad image for the rest.

    The headers of each tar are read once. The positions of its images stay in the user's cache folder until the file
    changes.

    Raises:
        UserError: a tar is compressed, or no tar, or there are no images or no such labels.
    """
    packed = next((file for file in files if file.name.lower().endswith(COMPRESSED)), None)
    if packed is not None:
        raise _compressed(packed)
    found = _indices(files, *((_LABELS, _LABELS) if label is None else ((label.lower(),), (label,))))
    if not any(index["names"] for index in found):
        raise UserError(f"{files[0]} holds no images; they end in {', '.join(sorted(EXTENSIONS))}.")
    tars = Tars(files, found, caption)
    if label is not None and all(value is None for value in tars.values):
        raise UserError(f"No sample of {files[0]} has the label '{label}', as a member or as a field of its .json.")
    name = files[0].name.removesuffix(".tar") if len(files) == 1 else Path(str(files[0])).parent.name
    source = Source(name, len(tars), tars.read, tars.ids, tars.labels, tars.locate)
    return replace(source, blocks=tars.blocks, window=tars.window, describe=tars.captions)


class Tars:
    """The images of several tars.

    Attributes:
        files: the tars, in order.
        caption: the ending or the field of the captions, if it is not the usual one.
        names: the images' members, tar by tar in their order there.
        values: their labels, integers or text, or None.
        blocks: the number of images up to the end of each block, which is some megabytes of one tar.
        window: how many blocks may be read in turns.
    """

    def __init__(
        self, files: Sequence[File], indices: Sequence[dict[str, list[Any]]], caption: str | None = None
    ) -> None:
        self.files, self.caption = list(files), caption
        self.names = [name for index in indices for name in index["names"]]
        self.values = [_number(value) for index in indices for value in index["values"]]
        self._starts = np.array([start for index in indices for start in index["starts"]], dtype=np.int64)
        self._stops = np.array([stop for index in indices for stop in index["stops"]], dtype=np.int64)
        self._ends = np.cumsum([len(index["names"]) for index in indices])
        runs = [_runs(index["starts"], index["stops"]) for index in indices]
        first = [0, *self._ends[:-1].tolist()]
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
            raise BadImage("the tar is cut short or damaged here")
        return image

    def _begin(self, block: int) -> int:
        return int(self.blocks[block - 1]) if block else 0

    def _fetch(self, block: int) -> memoryview:
        begin, end = self._begin(block), int(self.blocks[block])
        file = self.files[int(np.searchsorted(self._ends, begin, side="right"))]
        start, stop = int(self._starts[begin]), min(int(self._stops[end - 1]), file.size)
        try:
            return memoryview(file.read(start, stop) if stop > start else b"")
        except OSError as error:
            raise fault(error, Path(file.path) if file.local else None, "the tar") from None

    def locate(self, i: int) -> str:
        """Tar and member, for people."""
        return f"{self.files[int(np.searchsorted(self._ends, i, side='right'))].name}: {self.names[i]}"

    def ids(self) -> list[str]:
        """The samples' names below those of their tars, with the tars' folders where these differ."""
        shards = [name.removesuffix(".tar") for name in names_below(self.files)]
        ends = [0, *self._ends.tolist()]
        return [
            f"{shard}/{_parts(name)[0]}"
            for shard, start, end in zip(shards, ends, ends[1:], strict=False)
            for name in self.names[start:end]
        ]

    def labels(self) -> Labels | None:
        # The image that stands for the rest of a cut tar gets any label: it is bad, and never decoded.
        known = next((value for value in self.values if value is not None), None)
        values = [known if cut else value for value, cut in zip(self.values, self._cut, strict=True)]
        return None if any(value is None for value in values) else as_labels(values)

    def captions(self) -> Captions | None:
        """The samples' texts. Reads the headers of each tar once more, because few runs need captions."""
        kinds = (("txt",), ("caption",)) if self.caption is None else ((self.caption.lower(),), (self.caption,))
        values = [value for index in _indices(self.files, *kinds) for value in index["values"]]
        if all(value is None for value in values):
            if self.caption is None:
                return None
            raise UserError(
                f"No sample of {self.files[0]} has the caption '{self.caption}', as a member or a field of its .json."
            )
        return as_captions([None if value is None else str(value) for value in values])


def _indices(files: Sequence[File], endings: tuple[str, ...], fields: tuple[str, ...]) -> list[dict[str, list[Any]]]:
    """`_index` of each tar."""
    found = []
    quiet = os.environ.get("RANK", "0") != "0"  # as torchrun says
    with progress("index", quiet) as update, ThreadPoolExecutor(min(THREADS, len(files))) as pool:
        for index in pool.map(partial(_index, endings=endings, fields=fields), files):
            found.append(index)
            update(len(found), len(files))
    return found


def _runs(starts: list[int], stops: list[int]) -> list[int]:
    """The number of images up to the end of each block of a tar."""
    ends, first = [], 0
    for i in range(1, len(starts)):
        if stops[i] - starts[first] > _BLOCK or i - first == _MOST:
            ends.append(i)
            first = i
    return [*ends, len(starts)] if starts else []


def _parts(name: str) -> tuple[str, str]:
    """A member's sample, and its ending without the first dot."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return folder + slash + stem, ending.lower()


def _index(file: File, endings: tuple[str, ...], fields: tuple[str, ...]) -> dict[str, list[Any]]:
    """The result of `_scan`, perhaps an earlier one. Of several processes one reads a tar, and the others wait."""
    facts = f"{_VERSION} {file} {file.size} {file.stamp} {endings} {fields}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "manyviews" / "tars"
    path = cache / f"{blake2b(facts.encode('utf-8', 'surrogateescape'), digest_size=16).hexdigest()}.json"
    with ExitStack() as stack:
        # A folder that cannot be written or locked only costs time at the next start.
        with suppress(OSError, NotImplementedError):
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")))
        with suppress(OSError, ValueError):
            index: dict[str, list[Any]] = json.loads(path.read_text(encoding="utf-8"))
            return index
        found = _scan(file, endings, fields)
        if file.stamp:  # without it a change of the file would go unnoticed
            with suppress(OSError):
                write_text(path, json.dumps(found))
        return found


def _scan(file: File, endings: tuple[str, ...], fields: tuple[str, ...]) -> dict[str, list[Any]]:
    """The images of a tar, in order: `names`, `starts` and `stops` in bytes, and `values`.

    A sample's value is the text of its member with one of the `endings`, else one of the `fields` of its .json, an
    integer or text; None if it has neither. If the tar is cut short or damaged, one more image stands for the rest.
    """
    images: dict[str, tuple[int, int, str]] = {}
    values: dict[str, Any] = {}
    whole = False
    with file.open() as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    name = member.name.removeprefix("./")
                    sample, ending = _parts(name)
                    if not member.isreg() or not ending or not sample or sample.endswith("/"):
                        continue  # folders, links, names without an ending, hidden files
                    if is_image(name):
                        known = images.get(sample)
                        # In a tar a later file replaces an earlier one of the same name.
                        if known is None or known[2] == name or (_plain(name) and not _plain(known[2])):
                            images[sample] = (member.offset_data, member.offset_data + member.size, name)
                    elif ending in endings and (text := _text(tar, member)) is not None:
                        values[sample] = text
                    elif ending == "json" and (value := _field(tar, member, fields)) is not None:
                        values.setdefault(sample, value)
                whole = _ends_at(stream, tar.offset)
        except tarfile.TarError as error:
            if not images:
                raise _no_tar(file, error) from None
    found = sorted((*where, sample) for sample, where in images.items())
    if images and not whole and found[-1][1] <= file.size:
        found.append((file.size, file.size + 1, _REST, _REST))
    starts, stops, names, samples = (list(column) for column in zip(*found, strict=True)) if found else ([],) * 4
    return {"names": names, "starts": starts, "stops": stops, "values": [values.get(sample) for sample in samples]}


def _plain(name: str) -> bool:
    """Whether its whole ending is that of an image: `7.jpg`, not `7.mask.jpg`."""
    return "." + _parts(name)[1] in EXTENSIONS


def _ends_at(stream: BinaryIO, offset: int) -> bool:
    """Whether a tar's end mark, a block of zeros, is at `offset`."""
    stream.seek(offset)
    return stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    content = tar.extractfile(member) if member.size <= _LABEL_BYTES else None
    try:
        return None if content is None else content.read().decode().strip() or None
    except UnicodeDecodeError:
        return None


def _field(tar: tarfile.TarFile, member: tarfile.TarInfo, names: Iterable[str]) -> int | str | None:
    content = tar.extractfile(member) if member.size <= _LABEL_BYTES else None
    try:
        found = None if content is None else json.loads(content.read())
    except ValueError:
        return None
    values = [found[name] for name in names if name in found] if isinstance(found, dict) else []
    value: object = values[0] if values else None
    return value.strip() or None if isinstance(value, str) else value if type(value) is int else None


def _number(value: int | str | None) -> int | str | None:
    """The integer that a text spells, else the value itself."""
    try:
        return value if value is None else int(value)
    except ValueError:
        return value


def _no_tar(file: File, error: Exception) -> UserError:
    if file.read(0, 8).startswith(_MAGIC):
        return _compressed(file)
    return UserError(f"{file} is not a tar that can be read ({error}); it may be damaged or half downloaded.")


def _compressed(file: File) -> UserError:
    return UserError(f"{file} is compressed, and cannot be read from the middle: decompress it to a .tar.")
