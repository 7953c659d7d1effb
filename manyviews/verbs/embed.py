"""Write the features of images to a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from manyviews import distributed
from manyviews.checkpoint import check_new, save_tensors, write_atomically, write_text
from manyviews.data.layout import ALL
from manyviews.errors import UserError
from manyviews.reporting.embedding_map import lay_out
from manyviews.verbs._common import new_file, opened, plain, shared_features
from manyviews.weights import Pretrained


def embed(
    weights: str | Path | Pretrained, data: Any, out: str | Path, labels: str | Path | None = None, *, map: bool = False
) -> Path:
    """Write the features of every image to a file, in the format that its ending says.

    - `.parquet`: the columns `id` (string), `embedding` (a list of float32) and, when the data has labels, `label`.
    - `.csv`: `id`, `label`, and a column for each dimension: `e0`, `e1`, ...
    - `.npz`: the arrays `id`, `embedding` (float32, `n d`) and `label`, without pickled objects.
    - `.npy`: `embedding` alone, in the order of the names in a second file, `<out>.json`: an object with lists `id` and
      `label`.
    - `.safetensors`: the tensor `embedding`, and the same second file.

    With `map` there are `x` and `y` too: the places of the images on a map, where near ones are alike (see
    `manyviews.reporting.embedding_map.lay_out`). In the last two formats they are in the second file.

    Processes that `torchrun` started share the work; the first writes.

    Args:
        weights: a run folder or weights: see `load`.
        data: images: see `manyviews.data.open_source`.
        out: a new file.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.
        map: whether to lay the images out on a map.

    Raises:
        UserError: another ending, `out` or its second file exists, or no image can be read.
    """
    return write(weights, data, out, labels, map=map).path


@dataclass(frozen=True)
class Embedded:
    """What was written.

    Attributes:
        path: the file.
        images: number of images.
        columns: names of what it holds about each.
        notes: sentences for people.
    """

    path: Path
    images: int
    columns: tuple[str, ...]
    notes: tuple[str, ...]


def write(
    weights: str | Path | Pretrained, data: Any, out: str | Path, labels: str | Path | None = None, *, map: bool = False
) -> Embedded:
    """`embed`, and what it wrote. In other processes than the first there are no images."""
    distributed.start()
    out = Path(out)
    ending = out.suffix.lower()
    if distributed.rank() == 0:
        new_file(out)
        if ending in _BESIDE:
            check_new(_beside(out))
    if ending not in _FORMATS:
        raise UserError(f"The features are written as {', '.join(_FORMATS)}, by the ending of --out, not to {out}.")
    distributed.barrier()  # nobody begins what the first refuses
    source = opened(data, labels, split=ALL)
    tell = distributed.later()
    found = shared_features(weights, source, "embed")
    if found is None:
        return tell(Embedded(out, 0, (), ()))
    columns: dict[str, Any] = {"id": [plain(name) for name in found.ids]}
    if found.labels is not None and source.classes is not None:
        columns["label"] = [plain(source.classes[i]) for i in found.labels.tolist()]
    columns["embedding"] = found.x.numpy()
    notes = [f"{len(found.bad)} of {len(source)} images could not be read."] if found.bad else []
    if map:
        positions, how = lay_out(found.x)
        columns["x"], columns["y"] = (np.ascontiguousarray(c) for c in positions.T)
        notes.append(f"x and y are a map by {how}.")
    if ending in _BESIDE:  # first: numbers without names are of no use
        beside = {k: list(v) if isinstance(v, list) else v.tolist() for k, v in columns.items() if k != "embedding"}
        write_text(_beside(out), json.dumps(beside))
    try:
        write_atomically(out, lambda part: _FORMATS[ending](part, columns))
    except BaseException:
        if ending in _BESIDE:
            _beside(out).unlink(missing_ok=True)
        raise
    if ending in _BESIDE:
        notes.append(f"The names of the images are in {_beside(out)}.")
    return tell(Embedded(out, len(found), tuple(columns), tuple(notes)))


def _beside(out: Path) -> Path:
    """The file of the names, beside a file that holds numbers alone."""
    return out.with_name(f"{out.name}.json")


def _parquet(part: Path, columns: dict[str, Any]) -> None:
    x = columns["embedding"]
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel(), pa.float32()), x.shape[1])
    arrays = {k: embedding if k == "embedding" else pa.array(v) for k, v in columns.items()}
    order = [k for k in ("id", "embedding", "label", "x", "y") if k in arrays]
    with part.open("wb") as file:  # pyarrow refuses a path that is not valid Unicode
        pq.write_table(pa.table({k: arrays[k] for k in order}), file)


def _csv(part: Path, columns: dict[str, Any]) -> None:
    x = columns["embedding"]
    others = [k for k in columns if k != "embedding"]
    with part.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*others, *(f"e{i}" for i in range(x.shape[1]))])
        for i, values in enumerate(x):
            # The shortest decimals that read as the same float32.
            rows.writerow([*(columns[k][i] for k in others), *(str(v) for v in values)])


def _npz(part: Path, columns: dict[str, Any]) -> None:
    with part.open("wb") as file:  # NumPy would add an ending to a path
        arrays: dict[str, Any] = {k: np.asarray(v) for k, v in columns.items()}
        np.savez(file, **arrays)


def _npy(part: Path, columns: dict[str, Any]) -> None:
    with part.open("wb") as file:
        np.save(file, columns["embedding"], allow_pickle=False)


def _safetensors(part: Path, columns: dict[str, Any]) -> None:
    save_tensors(part, {"embedding": torch.from_numpy(columns["embedding"])}, {})


_FORMATS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".npz": _npz,
    ".npy": _npy,
    ".safetensors": _safetensors,
}

_BESIDE = (".npy", ".safetensors")
