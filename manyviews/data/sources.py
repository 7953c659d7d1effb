"""One way in: whatever holds images becomes a `Source`."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from manyviews.data.folder import is_image, open_folder, scan
from manyviews.data.memory import is_array, open_arrays, open_dataset
from manyviews.data.prepared import MANIFEST, open_prepared
from manyviews.data.source import Source
from manyviews.errors import UserError

__all__ = ["Source", "open_source"]


def open_source(data: Any, labels: Any = None) -> Source:
    """Images from anything that holds them.

    `data` is one of
    - a folder of images, nested as you like. Labels are its first-level folders, or those of a CSV file, given as
      `labels`, with the columns `path` (relative to the folder) and `label`: the source then holds what it lists;
    - a folder of canvases that `manyviews prepare` made;
    - a Parquet file, or a folder of them, with a column of encoded images in Hugging Face's layout or as plain bytes.
      `labels` may name the column of labels;
    - a data set as in torchvision, `dataset[i] -> (PIL image or uint8 array, label)`, without a transform;
    - uint8 arrays or tensors, `n h w 3`, `n 3 h w` or `n h w`, with `labels`, or a tuple (images, labels);
    - "demo" or "demo:test", the training or the test images that come with the package;
    - a source already.

    Raises:
        UserError: nothing usable is there.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, str) and data.partition(":")[0] == "demo":
        from manyviews.data import demo

        if Path(data).exists():
            raise UserError(f"'{data}' names the images that come with manyviews, and is here: write ./{data} for it.")
        return demo.source(data.partition(":")[2] or "train")
    if isinstance(data, str | os.PathLike):
        return _open_path(Path(data).expanduser(), labels)
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


def _open_path(path: Path, labels: Any) -> Source:
    try:
        if path.is_dir():
            if (path / MANIFEST).is_file():
                return open_prepared(path)
            if (path / "plan.json").is_file() and any(path.glob("shard-*.safetensors")):
                raise UserError(f"{path} is not finished: run `manyviews prepare` with the same arguments again.")
            files = scan(path)
            tables = [path / f for f in files if f.lower().endswith(".parquet")]
            if tables and not any(is_image(f) for f in files):
                return _open_parquet(tables, labels)
            return open_folder(path, files, None if labels is None else _existing(labels))
        _existing(path)
    except PermissionError as error:
        raise UserError(f"There is no permission to read {error.filename or path}.") from None
    if path.suffix.lower() == ".parquet":
        return _open_parquet([path], labels)
    if is_image(path.name):
        raise UserError(f"{path} is a single image; give the folder that holds the images.")
    raise UserError(f"{path} is a file of an unknown kind; give a folder of images, or a .parquet file.")


def _open_parquet(files: list[Path], labels: Any) -> Source:
    from manyviews.data.parquet import open_parquet  # pyarrow takes a while to import

    return open_parquet(files, labels)


def _existing(path: str | os.PathLike[str]) -> Path:
    """The path, or an error that names its first part that is wrong, and what may have been meant."""
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
