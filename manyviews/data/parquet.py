"""Encoded images in the columns of Parquet files, read a row group at a time."""

from __future__ import annotations

import bisect
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manyviews.data.decode import BadImage
from manyviews.data.source import Labels, Source, as_labels, content_ids
from manyviews.errors import UserError, unknown

_CACHED_BYTES = 256 * 2**20
_BATCH = 4096  # rows in one array: 2 GiB of images of half a megabyte
_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "class", "target")


def open_parquet(files: Sequence[Path], label: str | None = None) -> Source:
    """The images in a column of Parquet files of one schema, in order; `label` names the column of labels.

    Raises:
        UserError: a file that cannot be read, no column of images or several, no such label column.
    """
    table = Table(files, label)
    return Source(table.files[0].stem, len(table), table.read, table.ids, table.labels, table.locate)


class Table:
    """The rows of several Parquet files.

    A row group is the least that Parquet can read, so the last ones stay in memory, within `_CACHED_BYTES`. Reading in
    order decodes each once. Reading at random decodes one for each image, unless they all stay.
    """

    def __init__(self, files: Sequence[Path], label: str | None) -> None:
        self.files = list(files)
        self._groups: list[tuple[int, int]] = []
        self._starts = [0]
        self._first_row = []
        schemas = []
        for number, path in enumerate(self.files):
            with _open(path) as file:
                schemas.append(file.schema_arrow)
                self._first_row.append(self._starts[-1])
                for group in range(file.num_row_groups):
                    self._groups.append((number, group))
                    self._starts.append(self._starts[-1] + file.metadata.row_group(group).num_rows)
            if not schemas[-1].equals(schemas[0]):
                raise UserError(f"{path} has other columns than {self.files[0]}; give the files of one data set.")
        if not len(self):
            raise UserError(f"{self.files[0]} has no rows.")
        self._bytes, self._path = _image_columns(schemas[0], self.files[0])
        self._label, self._classes = _label_column(schemas[0], label)
        self._forget()

    def __len__(self) -> int:
        return self._starts[-1]

    def _forget(self) -> None:
        """What belongs to one process: open files, what was read from them, and the lock around both."""
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._open_files: dict[int, pq.ParquetFile] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_cache", "_open_files", "_lock", "_process")
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, i: int) -> bytes:
        """The encoded image of row `i`."""
        if self._process != os.getpid():  # a forked worker must not share file positions and locks with its parent
            self._forget()
        group = bisect.bisect_right(self._starts, i) - 1
        with self._lock:
            images = self._read_group(group)
        content = images[i - self._starts[group]].as_py()
        if not content:
            raise BadImage("the row holds no image")
        return content

    def _read_group(self, group: int) -> Any:
        if group not in self._cache:
            number, part = self._groups[group]
            if number not in self._open_files:
                self._open_files[number] = _open(self.files[number])
            try:
                # No threads: pyarrow's pool does not survive a fork, and images are decoded in parallel anyway. In
                # batches: a row group of more than 2 GiB does not fit one array, and nested ones are not split.
                batches = self._open_files[number].iter_batches(
                    batch_size=_BATCH, row_groups=[part], columns=[self._bytes], use_threads=False
                )
                chunks = [batch.column(0) for batch in batches]
            except (OSError, pa.ArrowException) as error:
                raise BadImage(f"row group {part} cannot be read ({error})") from None
            images = pa.chunked_array([c.field("bytes") if pa.types.is_struct(c.type) else c for c in chunks])
            self._cache[group] = images
            while len(self._cache) > 1 and sum(c.nbytes for c in self._cache.values()) > _CACHED_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]

    def locate(self, i: int) -> str:
        """File and row, for people."""
        k = bisect.bisect_right(self._first_row, i) - 1
        return f"{self.files[k].name} row {i - self._first_row[k]}"

    def column(self, name: str) -> Any:
        """All values of a column or, with a dot, of a field, as one chunked array."""
        chunks = [chunk for file in self.files for chunk in _open(file).read(columns=[name]).column(0).chunks]
        column = pa.chunked_array(chunks)
        return pc.struct_field(column, 0) if "." in name else column

    def ids(self) -> list[str]:
        """The paths stored with the images, if each has one of its own; else hashes of their bytes."""
        if self._path is not None:
            paths = self.column(self._path).to_pylist()
            if all(paths) and len(set(paths)) == len(paths):
                return [path.replace("\\", "/") for path in paths]
        return content_ids(self.read, len(self))

    def labels(self) -> Labels | None:
        if self._label is None:
            return None
        values = self.column(self._label)
        return None if values.null_count else as_labels(values.to_pylist(), self._classes)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except PermissionError:
        raise UserError(f"There is no permission to read {path}.") from None
    except (OSError, pa.ArrowException):
        raise UserError(f"{path} is not a readable Parquet file; it may be damaged or half downloaded.") from None


def _image_columns(schema: pa.Schema, file: Path) -> tuple[str, str | None]:
    """The column or field of encoded bytes, and the field of paths beside it if there is one."""
    found = {}
    for field in schema:
        if pa.types.is_struct(field.type):
            inner = {field.type.field(k).name: field.type.field(k).type for k in range(field.type.num_fields)}
            if "bytes" in inner and _is_binary(inner["bytes"]):
                found[field.name] = f"{field.name}.bytes", f"{field.name}.path" if "path" in inner else None
        elif _is_binary(field.type):
            found[field.name] = field.name, None
    usual = [name for name in _IMAGE_NAMES if name in found]
    if usual or len(found) == 1:
        return found[usual[0] if usual else next(iter(found))]
    if found:
        raise UserError(f"{file} has several columns of bytes ({', '.join(found)}); name the one of images 'image'.")
    raise UserError(f"{file} has no column of encoded images, only {', '.join(schema.names)}; store their bytes in it.")


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _label_column(schema: pa.Schema, wanted: str | None) -> tuple[str | None, list[str] | None]:
    """The column of labels, and the names of the classes if Hugging Face's metadata has them."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    named = {k: v["names"] for k, v in features.items() if isinstance(v, dict) and v.get("_type") == "ClassLabel"}
    if wanted is None:
        usual = [name for name in _LABEL_NAMES if name in schema.names]
        wanted = usual[0] if usual else next(iter(named)) if len(named) == 1 else None
    elif (wanted := str(wanted)) not in schema.names:  # the command line gives it as a path
        raise unknown("column of labels", wanted, schema.names)
    return wanted, named.get(wanted) if wanted is not None else None
