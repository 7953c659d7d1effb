"""The one way in: anything that holds images becomes a `Source`."""

from __future__ import annotations

import difflib
import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from manyviews.data.files import File, Unreachable, file_system, find, is_pattern, local, names_below
from manyviews.data.folder import is_image, open_folder, scan
from manyviews.data.layout import ALL, SPLITS, find_splits_of_files, split_of
from manyviews.data.left import Left, listed
from manyviews.data.lists import is_list, open_list
from manyviews.data.loose import are_paths, open_paths
from manyviews.data.memory import is_array, open_arrays, open_dataset
from manyviews.data.prepared import MANIFEST, open_prepared
from manyviews.data.source import Source, as_captions, given
from manyviews.data.tar import COMPRESSED, open_tars
from manyviews.data.tiles import MANIFEST as TILES
from manyviews.data.tiles import PLAN
from manyviews.data.zip import open_zips
from manyviews.errors import UserError

__all__ = ["Source", "open_source"]

_SPLIT_NAMES = {name for names in SPLITS.values() for name in names}


def open_source(data: Any, labels: Any = None, captions: Any = None, split: str | None = None) -> Source:
    """Images from anything that holds them.

    `data` is one of
    - a folder of images, nested as you like. Its first-level folders are the labels. Or `labels` is a CSV file with the
      columns `path` (relative to the folder) and `label`, and the source holds the images that it lists. An image with
      several labels has a row for each; one without has a row with an empty label. Or `metadata.csv` or
      `metadata.jsonl` in the folder, as in Hugging Face's `imagefolder`, has the columns `file_name` and `label`;
    - a folder of canvases that `manyviews prepare` made;
    - a Parquet file, or a folder of them, with a column of encoded images in Hugging Face's layout or as plain bytes.
      `labels` may name the column of labels;
    - a tar file in webdataset's layout, or a folder of them: see `manyviews.data.tar.open_tars`, also for `labels`;
    - a zip file of images, or a folder of them. Its folders are the labels as those of a folder are;
    - a pattern of Parquet, tar or zip files, with braces, `shards-{000..099}.tar`, or wildcards;
    - a URL of such files, of their folder or of a pattern, with `s3://`, `gs://`, `https://` or another protocol of
      fsspec. The files are not copied; read parts stay in memory for a while. See `Loader` for the order;
    - a data set as in torchvision, `dataset[i] -> (PIL image or uint8 array, label)`, without a transform, or as in
      Hugging Face, whose items are dicts with `image` or `img` and perhaps `label`, or a dict of such by split;
    - a list of paths of images, with `labels`, one for each;
    - uint8 arrays or tensors, `n h w 3`, `n 3 h w` or `n h w`, with `labels`, or a tuple (images, labels);
    - a list that `manyviews curate` wrote, Parquet or CSV: the images of its source that it keeps;
    - "demo" or "demo:test", the training or test images that come with the package;
    - a source.

    `captions` gives the images' captions, any number for each. Every kind of data has a default:
    - a folder: a CSV file with the columns `path` and `caption`, one row for each caption; by default `captions.csv` in
      the folder itself, or the column "caption", "captions" or "text" of its `metadata.csv` or `metadata.jsonl`;
    - Parquet: a column of texts or lists of texts; by default "caption", "captions" or "text";
    - tar: an ending of members and a field of their .json; by default `.txt` and "caption";
    - arrays and data sets: a list of texts or of lists of texts; by default the data set's own texts, as in
      torchvision's `CocoCaptions`.

    `split` is "train", "val", "test" or "all", for data whose folders or files are named so: `photos/train/cat`,
    `photos/cat/train`, `train-00000-of-00002.parquet`. Without it the training images are taken, and a note says so.
    A path may end in it: `photos:test`, `photos.zip:all`.

    What was left out, and what was taken for something, is in the source's `notes`.

    Raises:
        UserError: there are no images to use, or labels or captions do not fit them.
    """
    if isinstance(data, Source):
        return data
    if captions is not None and not isinstance(data, str | os.PathLike):
        return _with_captions(open_source(data, labels, split=split), captions)
    if isinstance(data, str) and data.partition(":")[0] == "demo":
        from manyviews.data import demo

        if Path(data).exists():
            raise UserError(f"'{data}' names the images that come with manyviews, and a file: write ./{data} for it.")
        if labels is not None:
            raise UserError("The images that come with manyviews have labels of their own: leave --labels out.")
        if captions is not None:
            raise UserError("The images that come with manyviews have no captions: leave --captions out.")
        named = data.partition(":")[2] or split
        return demo.source("train" if named in (None, ALL) else str(named))
    if isinstance(data, str | os.PathLike):
        address = str(data)
        before, colon, last = address.rpartition(":")
        if split in (None, ALL) and colon and (last == ALL or last in _SPLIT_NAMES) and not Path(address).exists():
            return open_source(before, labels, captions, last)
        if isinstance(data, str) and "://" in data:
            return _open_url(data, labels, captions, split)
        return _open_path(Path(data).expanduser(), labels, captions, split)
    if isinstance(data, Mapping):
        return _open_mapping(data, labels, split)
    if split not in (None, ALL):
        raise UserError(f"Images in memory have no splits: leave '{split}' out.")
    if isinstance(data, tuple) and len(data) == 2 and labels is None and not are_paths(data):
        return open_arrays(*data)
    if is_array(data):
        return open_arrays(data, labels)
    if are_paths(data):
        return open_paths(data, labels)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return open_dataset(data)
    if hasattr(data, "__iter__"):
        raise UserError(
            f"A {type(data).__name__} gives its items in one order only and has no length. Views are drawn from all "
            "images again and again: load it without streaming, or save it to Parquet files and give their folder."
        )
    raise UserError(
        f"Images cannot be read from a {type(data).__name__}; give a folder, a Parquet, tar or zip file, uint8 arrays, "
        "or a data set with __len__ and __getitem__."
    )


def _open_mapping(data: Mapping[str, Any], labels: Any, split: str | None) -> Source:
    """The split of a dict of data sets, as Hugging Face's `DatasetDict`."""
    parts = {part: name for name in data if (part := split_of(str(name)))}
    if not parts:
        raise UserError(
            f"A {type(data).__name__} with the keys {listed(map(str, data))} does not say which images to take: give "
            "one of its values."
        )
    chosen = split_of(split) if split and split != ALL else next(part for part in SPLITS if part in parts)
    if chosen not in parts:
        raise UserError(f"There is no split '{chosen}' among {listed(map(str, data))}.")
    source = open_source(data[parts[chosen]], labels)
    if split is not None:
        return source
    note = f"Took the split '{parts[chosen]}' of {', '.join(map(str, data))}."
    return replace(source, notes=(note, *source.notes), splits=tuple(part for part in SPLITS if part in parts))


def _with_captions(source: Source, captions: Any) -> Source:
    found = as_captions(list(captions)) if isinstance(captions, list | tuple | np.ndarray) else None
    if found is None:
        raise UserError("Captions of images in memory are a list of texts, or a list of lists of texts.")
    if len(found) != len(source):
        raise UserError(f"There are {len(source)} images and {len(found)} captions; give one item for each image.")
    return replace(source, describe=partial(given, found))


def _open_path(path: Path, labels: Any, captions: Any, split: str | None) -> Source:
    try:
        if path.is_dir():
            if (path / MANIFEST).is_file():
                if labels is not None:
                    raise UserError(
                        f"The canvases in {path} keep the labels with which they were made: prepare the images again "
                        "with --labels."
                    )
                if captions is not None:
                    raise UserError(
                        f"The canvases in {path} keep the captions with which they were made: prepare the images again "
                        "with --captions."
                    )
                if split not in (None, ALL):
                    raise UserError(f"The canvases in {path} have no splits: leave ':{split}' out.")
                return open_prepared(path)
            canvases = (path / "plan.json").is_file() and any(path.glob("shard-*.safetensors"))
            if canvases or ((path / PLAN).is_file() and not (path / TILES).is_file()):
                raise UserError(f"{path} is not finished: run `manyviews prepare` with the same arguments again.")
            found = scan(path)
            shards = [f for f in found.special if is_shard(f)]
            if shards and not found.images:
                return _noted(_open_shards([local(path / f) for f in shards], labels, captions, split), found.left)
            for ending, names in _by_ending(shards).items():
                found.left.add(f"Left out {{n}} {ending} file{{s}} among the images ({{first}}).", names[0], len(names))
            table, texts = (None if file is None else _existing(file) for file in (labels, captions))
            return open_folder(path, found, table, texts, split)
        if is_pattern(str(path)) and not path.exists():
            return _open_shards(_shards(str(path)), labels, captions, split, whole=True)
        _existing(path)
        if is_list(path):
            if split not in (None, ALL):
                raise UserError(f"The list {path} has no splits: leave ':{split}' out.")
            return open_list(path, partial(open_source, labels=labels, captions=captions))
        if is_shard(path.name) or zipfile.is_zipfile(path):
            return _open_shards([local(path)], labels, captions, split)
    except PermissionError as error:
        raise UserError(f"There is no permission to read {error.filename or path}.") from None
    if is_image(path.name):
        raise UserError(f"{path} is a single image; give the folder that holds the images.")
    raise UserError(f"{path} is a file of an unknown kind; give a folder of images, a .parquet, .tar or .zip file.")


def _open_url(url: str, labels: Any, captions: Any, split: str | None) -> Source:
    fs, path = file_system(url)
    if isinstance(fs, LocalFileSystem):
        return _open_path(Path(path), labels, captions, split)
    return _open_shards(_shards(url), labels, captions, split, whole=is_pattern(path))


def _shards(where: str) -> list[File]:
    found = find(where)
    shards = [file for file in found if is_shard(file.name)]
    if not shards:
        raise UserError(
            f"{where} holds no .tar, .zip or .parquet file (the first of {len(found)} is {found[0].name}); single "
            "images must be in a folder on disk."
        )
    return shards


_PARQUET, _TAR, _ZIP = (".parquet",), (".tar", *COMPRESSED), (".zip",)


def is_shard(name: str) -> bool:
    """Whether a file of this name holds images: Parquet, tar or zip."""
    return name.lower().endswith((*_PARQUET, *_TAR, *_ZIP))


def _by_ending(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of shards by their kind, the one that is taken first: Parquet, tar, zip."""
    by = {kind[0]: [name for name in names if name.lower().endswith(kind)] for kind in (_PARQUET, _TAR, _ZIP)}
    by[_ZIP[0]] += [name for name in names if not is_shard(name)]  # a zip under another name
    return {kind: found for kind, found in by.items() if found}


def _open_shards(files: list[File], labels: Any, captions: Any, split: str | None, whole: bool = False) -> Source:
    """Parquet files if there are any, else tars, else zips; of one split, if their names are those of splits.

    A pattern chooses files itself, so it gives all of them: `whole`.
    """
    # The command line gives both as paths.
    label, caption = (None if name is None else str(name) for name in (labels, captions))
    left = Left()
    kind, *others = _by_ending([file.name for file in files]).items()
    for ending, names in others:
        left.add(f"Left out {{n}} {ending} file{{s}} among the {kind[0]} files ({{first}}).", names[0], len(names))
    files = [file for file in files if file.name in set(kind[1])]
    files, splits, notes, split = _of_split(files, split, whole)
    try:
        if kind[0] == _PARQUET[0]:
            from manyviews.data.parquet import open_parquet  # pyarrow takes a while to import

            if split not in (None, ALL):
                raise UserError(f"{files[0]} and the like have no splits in their names: leave ':{split}' out.")
            source = open_parquet(files, label, caption)
        elif kind[0] == _TAR[0]:
            source = open_tars(files, label, caption, split)
        else:
            source = open_zips(files, label, caption, split)
    except Unreachable as error:
        raise UserError(f"{error}.") from None
    return _noted(replace(source, notes=(*notes, *source.notes), splits=splits or source.splits), left)


def _of_split(
    files: list[File], split: str | None, whole: bool
) -> tuple[list[File], tuple[str, ...], list[str], str | None]:
    """The files of a split, if their names are those of several; the splits; a note; and the split yet to be found."""
    below = names_below(files)
    found = find_splits_of_files(below)
    if found is None:
        return files, (), [], split
    address = str(files[0]).removesuffix(below[0]).rstrip("/")
    chosen = found.choose(ALL if whole and split is None else split, address)
    taken = [file for file, name in zip(files, below, strict=True) if chosen in (ALL, found.of[name])]
    if split is not None:
        return taken, (), [], None
    counts = Counter(found.of[name] for name in below)
    return taken, () if whole else found.names, [found.note(chosen, counts, "file")], None


def _noted(source: Source, left: Left) -> Source:
    return replace(source, notes=(*left.notes(), *source.notes))


def _existing(path: str | os.PathLike[str]) -> Path:
    """The path itself. The error names the first part that does not exist, and the nearest name."""
    path = Path(path).expanduser()
    if path.exists():
        return path
    wrong = path.absolute()
    while not wrong.parent.exists():
        wrong = wrong.parent
    siblings = [] if not wrong.parent.is_dir() else os.listdir(wrong.parent)
    near = difflib.get_close_matches(wrong.name, siblings, n=1, cutoff=0.5)
    hint = f" Did you mean '{wrong.parent / near[0]}'?" if near else ""
    raise UserError(f"There is no '{wrong.name}' in {wrong.parent}.{hint}")
