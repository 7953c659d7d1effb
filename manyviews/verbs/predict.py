"""Write the answers of a model for any number of images."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manyviews.checkpoint import check_new, write_atomically
from manyviews.data.layout import ALL
from manyviews.errors import UserError
from manyviews.evaluation.features import fingerprint, stamps, weights_digest
from manyviews.progress import progress
from manyviews.verbs._common import claim, loaded, opened, plain, say_once, seen_by
from manyviews.verbs._segmentation import masks_to
from manyviews.weights import Pretrained
from manyviews.weights.model import Model, Predictions, answers
from manyviews.weights.segmenter import Segmenter

PART = 2048
"""Images whose answers are kept together, so that an interruption costs no more."""

_PLAN = "plan.json"
_ENDINGS = (".csv", ".parquet")


@dataclass(frozen=True)
class Predicted:
    """What was written.

    Attributes:
        path: the file.
        images: number of images, those that cannot be read among them.
        counts: number of images of each class that some have, the most frequent first.
        unknown: number of images that are far from the training images.
        problems: number of images that cannot be read, by reason.
    """

    path: Path
    images: int
    counts: dict[str, int]
    unknown: int
    problems: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**vars(self), "path": str(self.path)}


def predict(model: str | Path | Model, data: Any, out: str | Path, *, k: int = 3) -> Path:
    """Write a row for each image: its class, the probability, and whether the image is known.

    For models of one class the columns are `id`; `class` and `probability`, calibrated on the validation images of the
    adaptation; `known`, whether the image is as near to the training images as 95 % of these; `distance`, by which that
    is judged; `class_2`, `probability_2` and so on; and `problem`, why an image cannot be read. For models of several
    classes they are `id`; `classes`, those that reach their thresholds, with semicolons between them; `probability of
    NAME` for each class; `known`, `distance` and `problem`. Models of numbers have a column of each number's name in
    their place. Answers are kept in parts beside `out` until all are there, and the same call continues an interrupted
    one.

    Args:
        model: the folder of a model, or a model: see `adapt`.
        data: images: see `manyviews.data.open_source`.
        out: a new file that ends in .csv or .parquet; for a model that segments a folder, which gets a mask of each
            image, a PNG whose values are the classes, and `legend.json`.
        k: classes in a row, the likeliest first.

    Raises:
        UserError: no model, another ending, or `out` exists.
    """
    return write(model, data, out, k=k).path


def write(model: str | Path | Pretrained, data: Any, out: str | Path, *, k: int = 3) -> Predicted:
    """`predict`, and what it wrote."""
    out, found = Path(out), loaded(model)
    if isinstance(found, Segmenter):
        if out.suffix.lower() in _ENDINGS:
            raise UserError(f"{found.name} gives each pixel a class: its masks are written to a folder, not to {out}.")
        (source,) = seen_by(found, opened(data, split=ALL))
        counts, bad = masks_to(found, source, out)
        return Predicted(out, len(source), dict(Counter(counts).most_common()), 0, bad)
    if out.suffix.lower() not in _ENDINGS:
        raise UserError(f"Predictions are written as {' or '.join(_ENDINGS)}, by the ending of --out, not to {out}.")
    if k < 1:
        raise UserError(f"A row has 1 class or more, not {k}.")
    check_new(out)
    if not isinstance(found, Model):
        raise UserError(f"{found.name} is an encoder without a head: make a model of it with `manyviews adapt`.")
    if found.note:
        say_once(found.note)
    (source,) = seen_by(found, opened(data, split=ALL))
    k = min(k, len(found.classes))
    parts = out.with_name(f"{out.name}.parts")
    plan = {
        "model": weights_digest(found.encoder) + weights_digest(found.head),
        "images": f"{fingerprint(source)} {stamps(source)}",
        "number": len(source),
        "k": k,
    }
    claim(parts, _PLAN, json.dumps(plan, indent=2), "predictions of another model or other images")
    starts = range(0, len(source), PART)
    files = [parts / f"{start:09d}.parquet" for start in starts]
    with progress("predict") as update:
        for start, file in zip(starts, files, strict=True):
            if not file.exists():
                some = source.subset(range(start, min(start + PART, len(source))))
                given = answers(found, some, lambda done, start=start: update(start + done, len(source)))  # type: ignore[misc]
                table = pa.table(_columns(given, k))
                write_atomically(file, lambda part, table=table: _save(table, part))  # type: ignore[misc]
    counts, problems, unknown = Counter[str](), Counter[str](), 0
    for table in _tables(files):
        problems.update(reason for reason in table["problem"].to_pylist() if reason)
        if "class" in table.column_names:
            counts.update(name for name in table["class"].to_pylist() if name is not None)
        if found.task == "several":
            for name, limit in zip(found.classes, np.array(found.thresholds, dtype=np.float32), strict=True):
                values = table[_column("several", name)].to_pylist()
                counts[name] += sum(v is not None and np.float32(v) >= limit for v in values)
        unknown += table["known"].to_pylist().count(False)
    write_atomically(out, lambda part: (_csv if out.suffix.lower() == ".csv" else _parquet)(part, files))
    shutil.rmtree(parts)
    return Predicted(
        out, len(source), {k: v for k, v in counts.most_common() if v}, unknown, dict(problems.most_common())
    )


def _columns(found: Predictions, k: int) -> dict[str, pa.Array]:
    """The columns of a part, in order; an image that cannot be read has nulls."""
    bad = [i in found.problems for i in range(len(found))]

    def column(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
        return pa.array([None if b else v for b, v in zip(bad, values, strict=True)], kind)

    columns: dict[str, pa.Array] = {"id": pa.array([plain(name) for name in found.ids], pa.string())}
    near = {
        "known": column(map(bool, found.known), pa.bool_()),
        "distance": column(map(float, found.distance), pa.float32()),
    }
    if found.task == "classes":
        ranked = found.ranked(k)
        for place in range(k):
            ending = "" if place == 0 else f"_{place + 1}"
            best = ranked[:, place]
            columns[f"class{ending}"] = column([found.classes[c] for c in best], pa.string())
            values = [float(p[c]) for p, c in zip(found.probability, best, strict=True)]
            columns[f"probability{ending}"] = column(values, pa.float32())
            columns |= near if place == 0 else {}
    else:
        if found.task == "several":
            columns["classes"] = column([";".join(names) for names in found.found], pa.string())
        for name, values in zip(found.classes, found.outputs.T, strict=True):
            columns[_column(found.task, name)] = column(map(float, values), pa.float32())
        columns |= near
    columns["problem"] = pa.array([found.problems.get(i) for i in range(len(found))], pa.string())
    return columns


def _column(task: str, name: str) -> str:
    """The column of a class or a number; one that has the name of another column gets an underscore."""
    if task == "several":
        return f"probability of {name}"
    return f"{name}_" if name in ("id", "known", "distance", "problem") else name


def _save(table: pa.Table, path: Path) -> None:
    with path.open("wb") as file:  # pyarrow refuses a path that is not valid Unicode
        pq.write_table(table, file)


def _tables(files: list[Path]) -> Iterator[pa.Table]:
    for path in files:
        with path.open("rb") as file:
            yield pq.read_table(file)


def _parquet(part: Path, files: list[Path]) -> None:
    with part.open("wb") as file:
        writer: pq.ParquetWriter | None = None
        for table in _tables(files):
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _csv(part: Path, files: list[Path]) -> None:
    with part.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        for i, table in enumerate(_tables(files)):
            if i == 0:
                rows.writerow(table.column_names)
            for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
                rows.writerow(["" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in row])
