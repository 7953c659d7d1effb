"""The one way in: anything that holds images becomes a `Source`."""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from manyviews.data.files import File, Unreachable, file_system, find, is_pattern, local
from manyviews.data.folder import is_image, open_folder, scan
from manyviews.data.memory import is_array, open_arrays, open_dataset
from manyviews.data.prepared import MANIFEST, open_prepared
from manyviews.data.source import Source, as_captions, given
from manyviews.data.tar import COMPRESSED, open_tars
from manyviews.errors import UserError

__all__ = ["Source", "open_source"]


def open_source(data: Any, labels: Any = None, captions: Any = None) -> Source:
    """Images from anything that holds them.

    `data` is one of
    - a folder of images, nested as you like. Its first-level folders are the labels. Or `labels` is a CSV file with the
      columns `path` (relative to the folder) and `label`, and the source holds the images that it lists. An image with
      several labels has a row for each; one without has a row with an empty label;
    - a folder of canvases that `manyviews prepare` made;
    - a Parquet file, or a folder of them, with a column of encoded images in Hugging Face's layout or as plain bytes.
      `labels` may name the column of labels;
    - a tar file in webdataset's layout, or a folder of them: see `manyviews.data.tar.open_tars`, also for `labels`;
    - a pattern of Parquet or tar files, with braces, `shards-{000..099}.tar`, or wildcards;
    - a URL of such files, of their folder or of a pattern, with `s3://`, `gs://`, `https://` or another protocol of
      fsspec. The files are not copied; read parts stay in memory for a while. See `Loader` for the order;
    - a data set as in torchvision, `dataset[i] -> (PIL image or uint8 array, label)`, without a transform;
    - uint8 arrays or tensors, `n h w 3`, `n 3 h w` or `n h w`, with `labels`, or a tuple (images, labels);
    - "demo" or "demo:test", the training or test images that come with the package;
    - a source.

    `captions` gives the images' captions, any number for each. Every kind of data has a default:
    - a folder: a CSV file with the columns `path` and `caption`, one row for each caption; by default `captions.csv` in
      the folder itself;
    - Parquet: a column of texts or lists of texts; by default "caption", "captions" or "text";
    - tar: an ending of members and a field of their .json; by default `.txt` and "caption";
    - arrays and data sets: a list of texts or of lists of texts; by default the data set's own texts, as in
      torchvision's `CocoCaptions`.

    Raises:
        UserError: there are no images to use, or labels or captions do not fit them.
    """
    if isinstance(data, Source):
        return data
    if captions is not None and not isinstance(data, str | os.PathLike):
        return _with_captions(open_source(data, labels), captions)
    if isinstance(data, str) and data.partition(":")[0] == "demo":
        from manyviews.data import demo

        if Path(data).exists():
            raise UserError(f"'{data}' names the images that come with manyviews, and a file: write ./{data} for it.")
        if labels is not None:
            raise UserError("The images that come with manyviews have labels of their own: leave --labels out.")
        if captions is not None:
            raise UserError("The images that come with manyviews have no captions: leave --captions out.")
        return demo.source(data.partition(":")[2] or "train")
    if isinstance(data, str) and "://" in data:
        return _open_url(data, labels, captions)
    if isinstance(data, str | os.PathLike):
        return _open_path(Path(data).expanduser(), labels, captions)
    if isinstance(data, tuple) and len(data) == 2 and labels is None:
        return open_arrays(*data)
    if is_array(data):
        return open_arrays(data, labels)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return open_dataset(data)
    raise UserError(
        f"Images cannot be read from a {type(data).__name__}; give a folder, a Parquet file, uint8 arrays, "
        "or a data set with __len__ and __getitem__."
    )


def _with_captions(source: Source, captions: Any) -> Source:
    found = as_captions(list(captions)) if isinstance(captions, list | tuple | np.ndarray) else None
    if found is None:
        raise UserError("Captions of images in memory are a list of texts, or a list of lists of texts.")
    if len(found) != len(source):
        raise UserError(f"There are {len(source)} images and {len(found)} captions; give one item for each image.")
    return replace(source, describe=partial(given, found))


def _open_path(path: Path, labels: Any, captions: Any) -> Source:
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
                return open_prepared(path)
            if (path / "plan.json").is_file() and any(path.glob("shard-*.safetensors")):
                raise UserError(f"{path} is not finished: run `manyviews prepare` with the same arguments again.")
            files = scan(path)
            shards = [] if any(is_image(f) for f in files) else [local(path / f) for f in files if _is_shard(f)]
            if shards:
                return _open_shards(shards, labels, captions)
            tables = (None if file is None else _existing(file) for file in (labels, captions))
            return open_folder(path, files, *tables)
        if is_pattern(str(path)) and not path.exists():
            return _open_shards(_shards(str(path)), labels, captions)
        _existing(path)
        if _is_shard(path.name):
            return _open_shards([local(path)], labels, captions)
    except PermissionError as error:
        raise UserError(f"There is no permission to read {error.filename or path}.") from None
    if is_image(path.name):
        raise UserError(f"{path} is a single image; give the folder that holds the images.")
    raise UserError(f"{path} is a file of an unknown kind; give a folder of images, a .parquet or a .tar file.")


def _open_url(url: str, labels: Any, captions: Any) -> Source:
    fs, path = file_system(url)
    if isinstance(fs, LocalFileSystem):
        return _open_path(Path(path), labels, captions)
    return _open_shards(_shards(url), labels, captions)


def _shards(where: str) -> list[File]:
    found = find(where)
    shards = [file for file in found if _is_shard(file.name)]
    if not shards:
        raise UserError(
            f"{where} holds no .tar or .parquet file (the first of {len(found)} is {found[0].name}); single images "
            "must be in a folder on disk."
        )
    return shards


def _is_shard(name: str) -> bool:
    return name.lower().endswith((".parquet", ".tar", *COMPRESSED))


def _open_shards(files: list[File], labels: Any, captions: Any) -> Source:
    """Parquet files if there are any, else tars."""
    # The command line gives both as paths.
    label, caption = (None if name is None else str(name) for name in (labels, captions))
    tables = [file for file in files if file.name.lower().endswith(".parquet")]
    try:
        if not tables:
            return open_tars(files, label, caption)
        from manyviews.data.parquet import open_parquet  # pyarrow takes a while to import

        return open_parquet(tables, label, caption)
    except Unreachable as error:
        raise UserError(f"{error}.") from None


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
