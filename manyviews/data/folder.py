"""A folder of images, nested as you like, with or without labels and captions."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from manyviews.data.decode import EXTENSIONS
from manyviews.data.source import Captions, Labels, Source, as_labels, as_targets, given, uncaptioned
from manyviews.errors import UserError

CAPTIONS = "captions.csv"
"""The file of captions in a folder of images."""


def open_folder(root: Path, files: list[str], labels: Path | None = None, captions: Path | None = None) -> Source:
    """The images among `files`, which are paths under `root` as `scan` gives them.

    See `open_source` for `labels` and `captions`. The folder's own captions are read when somebody asks for them.

    Raises:
        UserError: no images, or labels or captions that do not fit them.
    """
    images = [f for f in files if is_image(f)]
    if not files:
        raise UserError(f"The folder {root} is empty; give a folder that holds images, at any depth.")
    if not images:
        raise UserError(
            f"The folder {root} has no images among its files (the first of {len(files)} is {files[0]}); "
            f"images end in {', '.join(sorted(EXTENSIONS))}."
        )
    name = root.resolve().name
    known, annotate = images, partial(_by_folder, images)
    if labels is not None:
        named = _read_labels(labels, root, set(known))
        images = sorted(named)
        annotate = partial(_by_name, [named[f] for f in images])
    describe: Callable[[], Captions | None] = uncaptioned
    if captions is not None:
        describe = partial(given, _captions(captions, root, known, images))
    elif CAPTIONS in files:
        describe = partial(_captions, root / CAPTIONS, root, known, images)
    return Source(name, len(images), partial(_path, str(root), images), images.copy, annotate, describe=describe)


PAGE = ".manyviews-page"
"""A file that marks the folder of a page, whose pictures are not training images."""

# Files that mark folders of runs, sweeps, subspaces and pages. Their plots may lie among the images.
_OURS = ({"recipe.json", "run.json"}, {"sweep.json", "sweep.png"}, {"subspaces.json"}, {PAGE})


def is_image(path: str) -> bool:
    """Whether a path ends as an image does."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def scan(root: Path) -> list[str]:
    """All files under `root` as sorted relative POSIX paths, except hidden ones and those in our own folders.

    Our own folders are those of runs, sweeps, subspaces and pages. Each folder is visited once, linked folders after
    all real ones. So loops end, no image counts twice, and a folder that is also linked keeps its own name.
    """
    files, folders, links = list[str](), [""], list[str]()
    visited = set()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        status = os.stat(root / folder)
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(root / folder) as found:
            entries = sorted(found, key=lambda e: e.name)
        if folder and any(ours <= {e.name for e in entries} for ours in _OURS):
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif entry.is_file():
                    files.append(path)
            except OSError as e:
                if e.errno != errno.ELOOP:  # a link to itself
                    raise
    return sorted(files)


def _path(root: str, files: list[str], i: int) -> Path:
    return Path(root, files[i])


def _by_folder(files: list[str]) -> Labels | None:
    """First-level folders. An image outside of any means that the folders are not classes."""
    if not all("/" in f for f in files):
        return None
    return as_labels([f.partition("/")[0] for f in files])


def _by_name(labels: list[tuple[str, ...]]) -> Labels | None:
    if all(len(names) == 1 for names in labels):
        return as_labels([name for (name,) in labels])
    return as_targets(labels)


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
        raise UserError(
            f"{len(missing)} of the {len(paths)} paths in the {column}s file {path} are not images under {root}, the "
            f"first is {missing[0]}; paths are relative to that folder."
        )
    return found
