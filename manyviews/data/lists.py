"""Lists of images that `manyviews curate` wrote: which images of a source to keep, and why not the others."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from manyviews.checkpoint import write_atomically, write_text
from manyviews.data.files import shown
from manyviews.data.left import listed
from manyviews.data.source import Source
from manyviews.errors import UserError, from_json, printable
from manyviews.machine import cache_folder

ENDINGS = (".parquet", ".csv")

_KEY = b"manyviews.list"
_YES, _NO = "yes", "no"


def write_list(path: Path, columns: Mapping[str, Sequence[Any]], data: str | None, how: Mapping[str, Any]) -> None:
    """Write a list to a new file: Parquet, or CSV with a second file, `<path>.json`.

    Args:
        path: ends in one of `ENDINGS`.
        columns: values by name, as many in each: at least `id`, `position` in the source, and `kept`; None is empty.
        data: the address of the source, for `open_source`; None for images in memory, whose list cannot be opened.
        how: how it was made, as JSON can hold it.
    """
    facts = json.dumps({"data": data, **how}, indent=2)
    if data is not None and _is_remote(data):
        with suppress(OSError):  # the list is written, and asks for the address when it is opened
            _mark(data).parent.mkdir(parents=True, exist_ok=True)
            _mark(data).touch()
    columns = {name: [_plain(v) if isinstance(v, str) else v for v in values] for name, values in columns.items()}
    if path.suffix.lower() == ".csv":
        write_text(_beside(path), facts)
        write_atomically(path, lambda part: _csv(part, columns))
    else:
        write_atomically(path, lambda part: _parquet(part, columns, facts))


def is_list(path: Path) -> bool:
    """Whether a file on disk is such a list."""
    if path.suffix.lower() == ".csv":
        return path.is_file() and _beside(path).is_file()
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    import pyarrow as pa  # takes a while to import
    import pyarrow.parquet as pq

    try:
        return _KEY in (pq.read_schema(path).metadata or {})
    except (OSError, UnicodeDecodeError, pa.ArrowException):
        return False  # whoever opens it says what is wrong


def open_list(path: Path, open_data: Callable[[str], Source]) -> Source:
    """The images that a list keeps, in the order of its source.

    Images are found by their names if the source has changed since. Those that are new are left out, with a note.

    Args:
        path: a list: see `is_list`.
        open_data: opens a source by its address.

    Raises:
        UserError: the list is damaged, its source cannot be opened or lacks images that it keeps, or it keeps none.
    """
    columns, facts = _read(path)
    address = facts.get("data")
    if not isinstance(address, str):
        raise UserError(f"{path} lists images that were in memory: open them and take its rows with Source.subset.")
    if _is_remote(address) and not _mark(address).exists():
        raise UserError(
            f"{path} lists images at {printable(shown(address), 200)}. A list may come from anybody, so no server is "
            "asked that you have not curated here yourself: run `manyviews curate` on this address, or copy the images."
        )
    again = "Put them back, or run `manyviews curate` again on the place where they are."
    try:
        source = open_data(address)
    except UserError as error:
        raise UserError(f"{path} lists images of {address}, which cannot be opened: {error} {again}") from None
    kept = np.array(columns["kept"], dtype=bool)
    position = np.array(columns["position"], dtype=np.int64)
    names = [_plain(name) for name in source.ids]
    same = [0 <= i < len(names) and names[i] == name for i, name in zip(position.tolist(), columns["id"], strict=True)]
    if not all(same):
        place = {name: i for i, name in enumerate(names)}
        position = np.array([place.get(name, -1) for name in columns["id"]], dtype=np.int64)
    gone = [columns["id"][row] for row in np.flatnonzero(kept & (position < 0))]
    if gone:
        few = listed(gone, 5)
        raise UserError(f"{len(gone)} of {kept.sum()} images that {path} keeps are not in {address}: {few}. {again}")
    if not kept.any():
        raise UserError(f"{path} keeps none of its {len(kept)} images: curate with milder settings.")
    notes = [f"{kept.sum():,} of the {len(kept):,} images that {path.name} lists are kept."]
    if new := len(names) - len(set(position[position >= 0].tolist())):
        notes.append(f"{new:,} images are not in {path.name}, and are left out: run `manyviews curate` again for them.")
    return replace(source.subset(np.sort(position[kept])), notes=(*source.notes, *notes))


def _is_remote(address: str) -> bool:
    """Whether opening an address may contact a server: any chain of protocols may."""
    return "::" in address or ("://" in address and not address.startswith(("file://", "local://")))


def _mark(address: str) -> Path:
    """The file that says that this user has curated an address."""
    digest = blake2b(address.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return cache_folder("curated") / digest


def _read(path: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    try:
        columns, text = _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)
        facts = from_json(text)
        _check(columns)
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:  # pyarrow's errors are among these
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is no list that `manyviews curate` wrote, or is damaged ({reason}).") from None
    if not isinstance(facts, dict):
        raise UserError(f"{path} is no list that `manyviews curate` wrote: it does not say of which images it is.")
    return columns, facts


def _check(columns: Mapping[str, Sequence[Any]]) -> None:
    kinds = {"id": str, "position": int, "kept": bool}
    for name, kind in kinds.items():
        strange = next((value for value in columns[name] if type(value) is not kind), None)
        if strange is not None or None in columns[name]:
            raise ValueError(f"its column {name} has {printable(repr(strange), 60)}")
    if any(abs(value) >= 2**63 for value in columns["position"]):
        raise ValueError("its column position has numbers that are too large")


def _read_csv(path: Path) -> tuple[dict[str, list[Any]], str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = [row["kept"] for row in rows if row["kept"] not in (_YES, _NO)]
    if wrong:
        raise ValueError(f"its column kept has '{wrong[0]}', not {_YES} or {_NO}")
    columns: dict[str, list[Any]] = {
        "id": [row["id"] for row in rows],
        "position": [int(row["position"]) for row in rows],
        "kept": [row["kept"] == _YES for row in rows],
    }
    return columns, _beside(path).read_text(encoding="utf-8")


def _read_parquet(path: Path) -> tuple[dict[str, list[Any]], str]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["id", "position", "kept"], use_threads=False)
    return {name: table[name].to_pylist() for name in table.column_names}, table.schema.metadata[_KEY].decode()


def _parquet(part: Path, columns: Mapping[str, Sequence[Any]], facts: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    with part.open("wb") as file:  # pyarrow refuses a path that is not valid Unicode
        pq.write_table(table.replace_schema_metadata({_KEY: facts}), file)


def _csv(part: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    def cell(value: Any) -> Any:
        if isinstance(value, bool):
            return _YES if value else _NO
        return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value

    with part.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)  # Python before 3.11.9: see `to_csv`
        rows.writerow(columns)
        for values in zip(*columns.values(), strict=True):
            rows.writerow([cell(value) for value in values])


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _plain(name: str) -> str:
    """A name that any format can hold: file names need not be valid Unicode."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
