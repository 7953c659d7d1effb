"""Write the features of images to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manyviews import checkpoint
from manyviews.data.layout import ALL
from manyviews.verbs._common import features, new_file, opened
from manyviews.weights import Pretrained


def embed(weights: str | Path | Pretrained, data: Any, out: str | Path, labels: str | Path | None = None) -> Path:
    """Write the features of every image to a Parquet file.

    Its columns are `id` (string), `embedding` (a list of float32 per image) and, when the data has labels, `label`.

    Args:
        weights: a run folder or weights: see `load`.
        data: images: see `manyviews.data.open_source`.
        out: a new file.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.

    Raises:
        UserError: `out` exists, or no image can be read.
    """
    out = new_file(out)
    source = opened(data, labels, split=ALL)
    found = features(weights, source)
    flat = pa.array(found.x.flatten().numpy(), pa.float32())
    columns = {
        "id": pa.array(list(map(_text, found.ids))),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, found.x.shape[1]),
    }
    if found.labels is not None and source.classes is not None:
        columns["label"] = pa.array([_text(source.classes[i]) for i in found.labels.tolist()])

    def save(part: Path) -> None:
        with part.open("wb") as file:  # pyarrow refuses a path that is not valid Unicode
            pq.write_table(pa.table(columns), file)

    checkpoint.write_atomically(out, save)
    return out


def _text(name: str) -> str:
    """A name that Parquet can hold: file names need not be valid Unicode."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
