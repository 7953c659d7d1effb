"""A folder of images, nested as you like, with or without labels and captions."""

from __future__ import annotations

import csv
import errno
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from manyviews.data.decode import EXTENSIONS, BadImage, decode
from manyviews.data.files import Unreachable
from manyviews.data.formats import HEAD, UNREAD, by_ending, missing, sniff
from manyviews.data.layout import ALL, doubt, few, find_splits, of_masks, stray_note, strays, top_folders
from manyviews.data.left import (
    BROKEN_LINKS,
    BY_CONTENT,
    CUT_SHORT,
    EMPTY,
    HIDDEN,
    HIDDEN_FOLDERS,
    LOCKED,
    MASKS,
    NO_PICTURES,
    OURS,
    SYSTEM,
    TWICE,
    UNKNOWN,
    Left,
    is_system,
)
from manyviews.data.source import Captions, Labels, Source, as_captions, as_labels, as_targets, given, uncaptioned
from manyviews.errors import UserError, from_json

CAPTIONS = "captions.csv"
"""The file of captions in a folder of images."""

METADATA = ("metadata.csv", "metadata.jsonl")
"""Hugging Face's files of labels and captions in a folder of images, by the column `file_name`."""

LABEL_NAMES = ("label", "labels", "class", "target")
"""Usual names of columns of labels, here and in Parquet files."""

CAPTION_NAMES = ("caption", "captions", "text")
"""Usual names of columns of captions."""

LOOKED = 4096
"""So many files are looked into when a folder is opened. Reading the heads of a million takes too long."""

_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 4096  # bytes in which the end is looked for


_SPECIAL = frozenset([".parquet", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".csv", ".jsonl"])

# Endings of files that are no images, and need no look.
_OTHER = (
    frozenset({".txt", ".md", ".rst", ".tsv", ".json", ".ndjson", ".xml", ".yaml", ".yml", ".toml", ".ini"})
    | frozenset({".cfg", ".html", ".htm", ".css", ".js", ".py", ".ipynb", ".sh", ".c", ".h", ".cpp", ".m"})
    | frozenset({".log", ".db", ".sqlite", ".lnk", ".url", ".pt", ".pth", ".ckpt", ".safetensors", ".pkl"})
    | frozenset({".pickle", ".onnx", ".arrow", ".7z", ".rar", ".doc", ".docx", ".xls", ".xlsx", ".ppt"})
    | frozenset({".pptx", ".lock", ".lst", ".list", ".names", ".cls", ".caption", ".xmp", ".aae", ".mp3"})
    | frozenset({".wav", ".flac", ".m4a", ".ogg"})
)


@dataclass
class Found:
    """The files under a folder, as sorted relative POSIX paths.

    Attributes:
        images: those that end as images do and can be read here.
        others: the rest, except pictures that cannot be read here.
        special: those of the rest that may hold images or say something about them: archives and tables.
        unknown: those of the rest that are images if their content is.
        left: what was left out.
    """

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    left: Left = field(default_factory=Left)


def open_folder(
    root: Path, found: Found, labels: Path | None = None, captions: Path | None = None, split: str | None = None
) -> Source:
    """The images that `scan` found under `root`.

    See `open_source` for the other arguments. The folder's own captions are read when somebody asks for them.

    Raises:
        UserError: no images, no such split, or labels or captions that do not fit them.
    """
    _look_inside(root, found)
    if not found.images:
        raise _no_images(root, found)
    name = root.resolve().name
    known = images = found.images
    shorts, splits, identify, notes = None, tuple[str, ...](), images.copy, list[str]()
    if labels is None:
        folders = Counter(path.rpartition("/")[0] for path in images)
        if masks := of_masks(folders):
            found.left.add(MASKS, min(masks), sum(folders.pop(folder) for folder in masks))
            images = [path for path in images if path.rpartition("/")[0] in folders]
            identify = images.copy
        shorts = {folder: folder for folder in folders}
        in_splits = find_splits(folders)
        if split not in (None, ALL) and in_splits is None:
            raise UserError(f"{root} has no splits, such as folders train and test: leave ':{split}' out.")
        if in_splits is not None:
            chosen = in_splits.choose(split, str(root))
            counts = Counter[str]()
            for folder, count in folders.items():
                counts[in_splits.of[folder]] += count
            if split is None:
                notes.append(in_splits.note(chosen, counts))
                splits = in_splits.names
            shorts = in_splits.short
            if chosen != ALL:
                shorts = {folder: short for folder, short in shorts.items() if in_splits.of[folder] == chosen}
                images = [path for path in images if path.rpartition("/")[0] in shorts]
                identify = partial(_shorter, images, shorts)
                name = f"{name}:{chosen}"
    elif split not in (None, ALL):
        raise UserError(f"Leave ':{split}' out, or --labels: a labels file says itself which images to take.")
    why, doubts, by_folder = "", "", False
    if labels is not None:
        named = _read_labels(labels, root, set(known))
        images = sorted(named)
        annotate: Callable[[], Labels | None] = partial(_by_name, [named[f] for f in images])
        identify = images.copy
    else:
        assert shorts is not None
        annotate = partial(_by_folder, images, shorts)
        if outside := strays(shorts, images):
            why = stray_note(outside)
            if few(outside, images):
                notes.append(why)
        else:
            by_folder, doubts = True, doubt(top_folders(shorts, folders))
    describe: Callable[[], Captions | None] = uncaptioned
    tables = [path for path in found.special if path.endswith(METADATA) and path.rpartition("/")[2] in METADATA]
    if captions is not None:
        describe = partial(given, _captions(captions, root, known, images))
    elif CAPTIONS in found.special:
        describe = partial(_captions, root / CAPTIONS, root, known, images)
    if tables and labels is None:
        rows = _Metadata(root, tables, images, notes)
        if (values := rows.column(LABEL_NAMES)) is not None:
            lacking = sum(value is None for value in values)
            annotate, why, doubts, by_folder = partial(as_labels, values), "", "", False
            if lacking:
                why = (
                    f"{lacking:,} of {len(images):,} images have no label in {tables[0]}: add them, or remove the file."
                )
                annotate = _none
                notes.append(why)
        if captions is None and CAPTIONS not in found.special and (texts := rows.column(CAPTION_NAMES)) is not None:
            describe = partial(as_captions, texts)
    read = partial(_path, str(root), images)
    where = images.__getitem__ if splits or split else None
    source = Source(name, len(images), read, identify, annotate, where, describe=describe)
    source = replace(source, notes=(*found.left.notes(), *notes), splits=splits, why_unlabeled=why)
    return replace(source, by_folder=by_folder, doubt=doubts)


def _none() -> None:
    return None


def _no_images(root: Path, found: Found) -> UserError:
    said = " ".join(found.left.notes())
    if not found.others:
        if said:
            return UserError(f"The folder {root} has no images that can be read here. {said}")
        return UserError(f"The folder {root} is empty; give a folder that holds images, at any depth.")
    return UserError(
        f"The folder {root} has no images among its files (the first of {len(found.others)} is {found.others[0]}); "
        f"images end in {', '.join(sorted(EXTENSIONS))}, or are known by their content.{' ' + said if said else ''}"
    )


PAGE = ".manyviews-page"
"""A file that marks the folder of a page, whose pictures are not training images."""

# Files that mark folders of runs, sweeps, subspaces and pages. Their plots may lie among the images.
_OURS = ({"recipe.json", "run.json"}, {"sweep.json", "sweep.png"}, {"subspaces.json"}, {PAGE})
_MARKS = frozenset().union(*_OURS)

_IMAGE, _UNREAD, _OTHERS, _UNKNOWN, _SPECIALS = range(5)


def is_image(path: str) -> bool:
    """Whether a path ends as an image does."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def ending_of(name: str) -> str:
    """The ending of a file's name, in lower case; empty if there is none that could be one."""
    ending = os.path.splitext(name)[1].lower()
    return ending if len(ending) > 1 and not ending[1:].isdigit() and " " not in ending else ""


def _kind(ending: str) -> int:
    kind = by_ending(ending) if ending in EXTENSIONS else None
    if kind is not None:
        return _IMAGE if missing(kind) is None else _UNREAD
    if ending in _SPECIAL:
        return _SPECIALS
    return _UNREAD if ending in UNREAD else _OTHERS if ending in _OTHER else _UNKNOWN


def is_unknown(name: str) -> bool:
    """Whether a file may be an image although its name does not say so."""
    return _kind(ending_of(name)) == _UNKNOWN


def scan(root: Path) -> Found:
    """All files under `root`, except hidden ones and those in folders of our own and of systems.

    Our own folders are those of runs, sweeps, subspaces and pages. Each folder is visited once, linked folders after
    all real ones. So loops end, no image counts twice, and a folder that is also linked keeps its own name.

    Raises:
        PermissionError: `root` itself may not be read.
    """
    found, left = Found(), Left()
    images, others, unknown = found.images, found.others, found.unknown
    folders, links = [""], list[str]()
    visited = set()
    kinds: dict[str, int] = {}
    while folders or links:
        linked = not folders
        folder = links.pop(0) if linked else folders.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in visited:
                if linked:
                    left.add(TWICE, folder)
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as listing:
                entries = list(listing)
        except PermissionError:
            if not folder:
                raise
            left.add(LOCKED, folder)
            continue
        if folder and _is_ours(entries):
            left.add(OURS, folder)
            continue
        before = f"{folder}/" if folder else ""
        below = []
        for entry in entries:
            name = entry.name
            try:
                if entry.is_dir():
                    below.append(entry)
                    continue
                if not entry.is_file():
                    if entry.is_symlink() and name[0] != ".":
                        left.add(BROKEN_LINKS, before + name)
                    continue
            except OSError as e:
                if e.errno != errno.ELOOP:  # a link to itself
                    raise
                left.add(BROKEN_LINKS, before + name)
                continue
            dot = name.rfind(".")
            if dot == 0 or name[0] == ".":
                # macOS writes a shadow file ._x.jpg for x.jpg on other systems' disks.
                if name.startswith("._") or is_image(name):
                    left.add(HIDDEN, before + name)
                continue
            ending = name[dot:] if dot > 0 else ""
            kind = kinds.get(ending)
            if kind is None:
                kind = kinds[ending] = _kind(ending_of(name))
            if kind == _IMAGE:
                images.append(before + name)
            elif kind == _UNREAD:
                lower = ending.lower()
                left.unread(lower, before + name, by_ending(lower))
            else:
                others.append(before + name)
                if kind == _UNKNOWN:
                    unknown.append(before + name)
                elif kind == _SPECIALS:
                    found.special.append(before + name)
        for entry in sorted(below, key=lambda e: e.name):
            path = before + entry.name
            if entry.name[0] == ".":
                left.add(HIDDEN_FOLDERS, path)
            elif is_system(entry.name):
                left.add(SYSTEM, path)
            else:
                (links if entry.is_symlink() else folders).append(path)
    images.sort()
    others.sort()
    found.special.sort()
    unknown.sort()
    found.left = left
    return found


def _is_ours(entries: list[os.DirEntry[str]]) -> bool:
    marks = {name for entry in entries if (name := entry.name) in _MARKS}
    return bool(marks) and any(ours <= marks for ours in _OURS)


def _look_inside(root: Path, found: Found) -> None:
    """Add images without an image's ending, by what they hold, and count empty ones: of all files if they are few.

    Of more than `LOOKED` files a sample of each ending decides about all of that ending.
    """
    by: dict[str, list[str]] = {}
    for path in found.unknown:
        by.setdefault(ending_of(path), []).append(path)
    most = max(1, LOOKED // max(1, len(by)))
    taken = []
    for paths in by.values():
        whole = len(found.unknown) <= LOOKED or len(paths) <= most
        sample = paths if whole else [paths[i] for i in np.linspace(0, len(paths) - 1, most).astype(int)]
        good = []
        for path in sample:
            try:
                with open(root / path, "rb") as file:
                    kind = sniff(file.read(HEAD))
            except OSError:
                continue
            if kind is not None and missing(kind) is None:
                good.append(path)
            elif kind is not None and whole:
                found.left.unread("", path, kind)
        if whole:
            taken += good
        elif 2 * len(good) > len(sample):
            taken += paths  # those that are no images are named when they are read
        elif good:
            found.left.add(UNKNOWN, paths[0], len(paths))
    if taken:
        found.left.add(BY_CONTENT, min(taken), len(taken))
        found.images = sorted([*found.images, *taken])
        found.others = sorted(set(found.others) - set(taken))
    if len(found.images) <= LOOKED:
        for path in found.images:
            try:
                with open(root / path, "rb") as file:
                    head = file.read(HEAD)
                    file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                    tail = file.read(_TAIL)
            except OSError:
                continue  # said when it is read
            kind = sniff(head)
            if not head:
                found.left.add(EMPTY, path)
            elif kind is None:
                found.left.add(NO_PICTURES, path)
            elif _ENDS.get(kind.name, b"") not in tail and not _whole(root / path):
                found.left.add(CUT_SHORT, path)


def _whole(file: Path) -> bool:
    """Whether a picture without its usual end is there nevertheless: phones put a film or other data behind it."""
    try:
        decode(file, at_least=1)
    except BadImage:
        return False
    except Unreachable:
        pass  # said when it is read
    return True


def _path(root: str, files: list[str], i: int) -> Path:
    return Path(root, files[i])


def _shorter(files: list[str], short: dict[str, str]) -> list[str]:
    """Paths without the part that names their split, as if its folder were all."""
    found = []
    for path in files:
        folder, _, name = path.rpartition("/")
        found.append(f"{short[folder]}/{name}" if short[folder] else name)
    return found


def _by_folder(files: list[str], short: dict[str, str]) -> Labels | None:
    """First-level folders. An image outside of any means that the folders are not classes."""
    if not all(short.values()):
        return None
    classes = {folder: name.partition("/")[0] for folder, name in short.items()}
    return as_labels([classes[f.rpartition("/")[0]] for f in files])


def _by_name(labels: list[tuple[str, ...]]) -> Labels | None:
    if all(len(names) == 1 for names in labels):
        return as_labels([name for (name,) in labels])
    return as_targets(labels)


class _Metadata:
    """The rows of Hugging Face's metadata files, for images in their order."""

    def __init__(self, root: Path, tables: Sequence[str], images: Sequence[str], notes: list[str]) -> None:
        rows: dict[str, dict[str, Any]] = {}
        for table in tables:
            folder = table.rpartition("/")[0]
            for row in _table(root / table):
                if not row.get("file_name"):
                    notes.append(f"{table} is not used: it has no column file_name in each row.")
                    break
                path = f"{folder}/{row['file_name']}" if folder else str(row["file_name"])
                rows[os.path.normpath(path.replace("\\", "/")).replace(os.sep, "/")] = row
        self._rows = [rows.get(image, {}) for image in images]
        # os.path has no error for names that are too long.
        gone = [path for path in rows if not os.path.isfile(root / path)] if len(rows) <= LOOKED else []
        if gone:
            notes.append(f"{len(gone):,} files that {tables[0]} names are not there (the first: {min(gone)}).")

    def column(self, names: Sequence[str]) -> list[Any] | None:
        """The values of the first of these columns that is there, None where it is empty; None if none is there."""
        name = next((name for name in names if any(name in row for row in self._rows)), None)
        if name is None:
            return None
        values = [row.get(name) for row in self._rows]
        values = [None if value is None or value == "" else value for value in values]
        return _numbers(values)


def _numbers(values: list[Any]) -> list[Any]:
    """Integers where all texts spell one."""
    texts = [value for value in values if isinstance(value, str)]
    if texts and all(text.removeprefix("-").isdecimal() for text in texts):
        return [int(value) if isinstance(value, str) else value for value in values]
    return values


def _table(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as opened:
            if path.suffix == ".csv":
                return [dict(row) for row in csv.DictReader(opened, skipinitialspace=True)]
            rows = [from_json(line) for line in opened if line.strip()]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); correct it, or move it away.") from None
    return [row for row in rows if isinstance(row, dict)]


def _captions(path: Path, root: Path, known: list[str], images: list[str]) -> Captions:
    """The captions of `images`, in their order. Paths must be among the `known` ones."""
    found: dict[str, tuple[str, ...]] = {}
    for _, image, caption in _read_csv(path, root, set(known), "caption"):
        if caption:
            found[image] = (*found.get(image, ()), caption)
    return [found.get(image, ()) for image in images]


def _read_labels(path: Path, root: Path, images: set[str]) -> dict[str, tuple[str, ...]]:
    """Labels by path under `root`: one for each image, or any number."""
    named: dict[str, tuple[str, ...]] = {}
    bare: int | None = None
    for line, image, label in _read_csv(path, root, images, "label"):
        known = named.setdefault(image, ())
        if not label:
            bare = bare or line
        elif label not in known:
            named[image] = (*known, label)
    # An image may have no label where others have several; elsewhere the label was forgotten.
    if bare and not any(len(labels) > 1 for labels in named.values()):
        raise UserError(f"Line {bare} of the labels file {path} lacks a label.")
    return named


def _read_csv(path: Path, root: Path, images: set[str], column: str) -> list[tuple[int, str, str]]:
    """The rows of a CSV file: (line, path of an image under `root`, value of the column)."""
    file = f"The {column}s file {path}"
    advice = (
        f"it needs a header with the columns path,{column} and a row for each image, or one for each {column} of each"
    )
    found = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictReader(opened, skipinitialspace=True)
            header = list(rows.fieldnames or [])
            if not {"path", column} <= set(header):
                raise UserError(f"{file} has the columns {','.join(header) or '(none)'}; {advice}.")
            for row in rows:
                if not row["path"]:
                    raise UserError(f"Line {rows.line_num} of the {column}s file {path} lacks a path.")
                image = os.path.normpath(row["path"].replace("\\", "/")).replace(os.sep, "/")
                found.append((rows.line_num, image, row[column] or ""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}); {advice}.") from None
    if not found:
        raise UserError(f"{file} has no rows; {advice}.")
    paths = {image for _, image, _ in found}
    missing = sorted(paths - images)
    if missing:
        cure = "it is there, but cannot be read here" if os.path.isfile(root / missing[0]) else ""
        raise UserError(
            f"{len(missing)} of the {len(paths)} paths in the {column}s file {path} are not images under {root}, the "
            f"first is {missing[0]}; {cure or 'paths are relative to that folder'}."
        )
    return found
