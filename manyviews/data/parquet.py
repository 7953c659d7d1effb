"""Encoded images in the columns of Parquet files, read a row group at a time."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manyviews.data.blocks import HELD, Blocks, window
from manyviews.data.decode import BadImage, fault
from manyviews.data.files import THREADS, File, Ranges, Unreachable, names_below
from manyviews.data.folder import CAPTION_NAMES, LABEL_NAMES
from manyviews.data.source import Captions, Labels, Source, as_captions, as_labels, as_targets, content_ids
from manyviews.errors import UserError, from_json, printable, unknown
from manyviews.machine import free_memory

_BATCH = 256  # rows in one array: 2 GiB of images of eight megabytes
_HASHED = 2**30  # bytes of images; more are not read for the sake of their names
_IMAGE_NAMES = ("image", "img")


def open_parquet(files: Sequence[File], label: str | None = None, caption: str | None = None) -> Source:
    """The images in a column of Parquet files of one schema, in order.

    `label` and `caption` name the columns of labels and of captions.

    Raises:
        UserError: a file that cannot be read, no column of images or several, or no such column of labels or captions.
    """
    try:
        table = Table(files, label, caption)
    except (UnicodeDecodeError, pa.ArrowException) as error:  # names and types in a damaged footer
        raise _unreadable(files[0], error) from None
    name = table.files[0].name.rpartition(".")[0]
    source = Source(name, len(table), table.read, table.ids, table.labels, table.locate, notes=table.notes())
    source = replace(source, why_unlabeled=table.why_unlabeled())
    return replace(source, blocks=table.blocks, window=table.window, describe=table.captions)


class Table:
    """The rows of several Parquet files.

    Parquet reads no less than a row group, so the most recent ones stay in memory: see `Blocks`. Reading in order
    decodes each once. Reading at random decodes one for each image, unless all stay.

    Attributes:
        files: the files, in order.
        blocks: the number of rows up to the end of each row group, without empty ones.
        window: how many row groups may be read in turns.
    """

    def __init__(self, files: Sequence[File], label: str | None = None, caption: str | None = None) -> None:
        self.files = list(files)
        with ThreadPoolExecutor(THREADS) as pool:
            self._metadata = list(pool.map(_metadata, self.files))
        schemas = [metadata.schema.to_arrow_schema() for metadata in self._metadata]
        for file, schema in zip(self.files, schemas, strict=True):
            if not schema.equals(schemas[0]):
                raise UserError(f"{file} has other columns than {self.files[0]}; give the files of one data set.")
        self._groups = [(k, g) for k, metadata in enumerate(self._metadata) for g in range(metadata.num_row_groups)]
        rows = [self._metadata[k].row_group(g).num_rows for k, g in self._groups]
        self._starts = [0, *np.cumsum(rows).tolist()]
        self._first_row = np.cumsum([0, *(metadata.num_rows for metadata in self._metadata)]).tolist()
        if not len(self):
            raise UserError(f"{self.files[0]} has no rows.")
        self._bytes, self._path = _image_columns(schemas[0], self.files[0])
        named, self._odd = _class_names(schemas[0])
        self._label = _label_column(schemas[0], label, list(named))
        self._classes = None if self._label is None else named.get(self._label)
        self._caption = _caption_column(schemas[0], caption)
        self.blocks = np.setdiff1d(self._starts, [0])
        self.window = window(np.array([self._group_bytes(k, g) for k, g in self._groups]))
        self._held = Blocks()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _group_bytes(self, number: int, group: int) -> int:
        """Size of a row group, uncompressed: nearly all of it is images.

        Facts of single columns are not asked for anywhere: where a damaged footer has sizes that contradict each other,
        pyarrow 26 ends the process.
        """
        return int(self._metadata[number].row_group(group).total_byte_size)

    def read(self, i: int) -> bytes:
        """The encoded image of row `i`."""
        group = bisect.bisect_right(self._starts, i) - 1
        content: bytes | None = self._held.get(group, self._fetch)[i - self._starts[group]].as_py()
        if not content:
            raise BadImage("the row holds no image")
        return content

    def _fetch(self, group: int) -> Any:
        number, part = self._groups[group]
        where = self.files[number]
        where.unchanged()
        try:
            with _open(where, self._metadata[number]) as file:
                # No threads: pyarrow's pool does not survive a fork, and images are decoded in parallel anyway.
                # Batches: a row group of more than 2 GiB does not fit one array, and nested ones are not split.
                chunks, size, most = [], 0, max(HELD, free_memory() // 2)
                for batch in file.iter_batches(
                    batch_size=_BATCH, row_groups=[part], columns=[self._bytes], use_threads=False
                ):
                    chunks.append(batch.column(0))
                    size += batch.nbytes
                    if size > most:  # a value that is stored once may stand in each row
                        raise BadImage(
                            f"row group {part} takes more than {most / 1e9:.1f} GB: write the file anew with a smaller "
                            "row_group_size"
                        )
        except MemoryError:  # also one of Arrow's errors
            raise
        except OSError as error:
            raise fault(error, Path(where.path) if where.local else None) from None
        except pa.ArrowException as error:
            raise BadImage(f"row group {part} cannot be read ({error})") from None
        return pa.chunked_array([c.field("bytes") if pa.types.is_struct(c.type) else c for c in chunks])

    def locate(self, i: int) -> str:
        """File and row, for people."""
        k = bisect.bisect_right(self._first_row, i) - 1
        return f"{self.files[k].name} row {i - self._first_row[k]}"

    def column(self, name: str) -> Any:
        """All values of a column, or of a field given as "column.field", as one chunked array."""

        def chunks(file: File, metadata: pq.FileMetaData) -> list[Any]:
            with _explained(file), _open(file, metadata) as opened:
                parts: list[Any] = opened.read(columns=[name]).column(0).chunks
            return parts

        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(chunks, self.files, self._metadata)
            column = pa.chunked_array([chunk for several in found for chunk in several])
        return pc.struct_field(column, 0) if "." in name else column

    def _values(self, name: str) -> list[Any]:
        try:
            found: list[Any] = self.column(name).to_pylist()
        except (UnicodeDecodeError, OverflowError, pa.ArrowException) as error:
            raise _unreadable(self.files[0], error) from None
        return found

    def ids(self) -> list[str]:
        """The paths stored with the images, if they are distinct; else hashes of the images' bytes.

        Hashes need all the images, so those of more than a gigabyte are named by file and row.
        """
        if self._path is not None:
            paths = self._values(self._path)
            if all(isinstance(path, str) and path for path in paths) and len(set(paths)) == len(paths):
                return [path.replace("\\", "/") for path in paths]
        if sum(self._group_bytes(k, g) for k, g in self._groups) <= _HASHED:
            return content_ids(self.read, len(self))
        rows = np.diff(self._first_row).tolist()
        return [f"{name} row {i}" for name, n in zip(names_below(self.files), rows, strict=True) for i in range(n)]

    def labels(self) -> Labels | None:
        if self._label is None:
            return None
        values = self._values(self._label)
        if _is_texts(self.column(self._label).type):
            return as_targets([frozenset(names or ()) for names in values])
        if any(value is None for value in values):
            return None
        return as_labels(values, self._classes)

    def why_unlabeled(self) -> str:
        """Why no labels are used although some rows have one; empty if all have, or none."""
        if self._label is None:
            return ""
        try:
            lacking = self.column(self._label).null_count
        except pa.ArrowException as error:
            raise _unreadable(self.files[0], error) from None
        if not 0 < lacking < len(self):
            return ""
        return (
            f"{lacking:,} of {len(self):,} rows have no label in the column {printable(self._label, 60)}: add them, or "
            "leave these rows out."
        )

    def notes(self) -> tuple[str, ...]:
        """Sentences for people about what was left out."""
        odd = (
            f"The names of classes in {self.files[0].name}'s metadata of Hugging Face are not understood "
            f"({printable(self._odd, 80)}): labels are named by their values."
        )
        return tuple(note for note in (odd if self._odd else "", self.why_unlabeled()) if note)

    def captions(self) -> Captions | None:
        return None if self._caption is None else as_captions(self._values(self._caption))


def _unreadable(file: File, error: Exception) -> UserError:
    return UserError(
        f"{file}, or another file of its set, is not readable Parquet ({printable(error, 100)}): it may be damaged or "
        "half downloaded."
    )


def _open(file: File, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a file anew, so that threads and forked workers share no position in it; `metadata` is its known footer."""
    return pq.ParquetFile(file.path if file.local else Ranges(file), metadata=metadata)


@contextmanager
def _explained(file: File) -> Iterator[None]:
    try:
        yield
    except (Unreachable, MemoryError):
        raise
    except PermissionError:
        raise UserError(f"There is no permission to read {file}.") from None
    except (OSError, pa.ArrowException):
        raise UserError(f"{file} is not a readable Parquet file; it may be damaged or half downloaded.") from None


def _metadata(file: File) -> pq.FileMetaData:
    with _explained(file), _open(file) as opened:
        return opened.metadata


def _image_columns(schema: pa.Schema, file: File) -> tuple[str, str | None]:
    """The column or field of encoded bytes, and the field of paths next to it if there is one."""
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
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema) -> tuple[dict[str, list[str]], str]:
    """Names of the classes by column, if Hugging Face's metadata has them, and what is wrong with it."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        features = {} if text is None else from_json(text).get("info", {}).get("features", {})
        kinds = {k: v for k, v in features.items() if isinstance(v, dict) and v.get("_type") == "ClassLabel"}
        if not all(isinstance(v["names"], list) for v in kinds.values()):
            raise ValueError("the names are no list")
        return {k: [str(name) for name in v["names"]] for k, v in kinds.items()}, ""
    except (AttributeError, KeyError, ValueError) as error:
        return {}, str(error)


def _label_column(schema: pa.Schema, wanted: str | None, named: Sequence[str]) -> str | None:
    """The column of labels: the one that is asked for, has a usual name, or is alone in having names of classes."""
    if wanted is None:
        usual = [name for name in LABEL_NAMES if name in schema.names]
        there = [name for name in named if name in schema.names]
        return usual[0] if usual else there[0] if len(there) == 1 else None
    if wanted not in schema.names:
        raise unknown("column of labels", wanted, schema.names)
    return wanted


def _caption_column(schema: pa.Schema, wanted: str | None) -> str | None:
    """The column of captions, if there is one: texts, or lists of texts."""
    texts = [field.name for field in schema if _is_text(getattr(field.type, "value_type", field.type))]
    if wanted is None:
        return next((name for name in CAPTION_NAMES if name in texts), None)
    if wanted not in texts:
        raise unknown("column of captions", wanted, texts)
    return wanted


def _is_texts(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) and _is_text(kind.value_type))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
