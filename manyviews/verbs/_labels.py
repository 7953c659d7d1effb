"""What labels ask for: a class, several classes, or numbers of each image; read from folders, tables and columns."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from manyviews.data import Source
from manyviews.data.left import listed
from manyviews.data.source import as_labels, as_targets, given, no_labels, unlabeled
from manyviews.errors import UserError, say
from manyviews.evaluation.sets import FEWEST, check_labels, frequent
from manyviews.verbs._common import doubted, opened, tell

TASKS = ("classes", "several", "numbers", "segmentation")
"""What a model may answer with."""

_SEPARATORS = re.compile(r"\s*[;|,]\s*")
_FEW = 5  # names in a message
_FEWEST = 2  # images of a class: one to learn from and one to choose with
_YES, _NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}


@dataclass(frozen=True, eq=False)
class Labeled:
    """Images with their labels.

    Attributes:
        task: "classes", "several" or "numbers".
        source: the images. Those with one class each have their labels.
        names: names of the classes or of the numbers.
        y: labels, a row for each image: bool, `n classes`, or float32, `n columns`; None for "classes".
        notes: sentences: what was detected, and what was left out.
    """

    task: str
    source: Source
    names: tuple[str, ...]
    y: Tensor | None = None
    notes: tuple[str, ...] = ()


def labeled(data: Any, labels: Any, task: str | None = None) -> Labeled:
    """Open images with labels, and find out what the labels ask for.

    - A column whose values name one class each, or folders: "classes".
    - Values such as `red;dress`, an image in several rows, lists, or several columns of 0 and 1: "several".
    - A column of numbers that are not whole, or that are nearly all different, or several columns: "numbers".

    Images without a label are left out, with a note; where images have several, one without has none of the classes.

    Args:
        data: see `manyviews.data.open_source`.
        labels: a CSV file with a column `path` and one or more of labels; a column of Parquet files, or several with
            commas between them; or whatever `open_source` takes.
        task: what to take them for; None to find out.

    Raises:
        UserError: labels that cannot be read, or are not what `task` says.
    """
    named = str(labels) if isinstance(labels, str | Path) else ""
    file = Path(named).expanduser()
    if file.suffix.lower() in (".csv", ".tsv") and file.is_file():
        found = _of_table(data, file, task)
    elif "," in named:
        found = _of_columns(data, [name.strip() for name in named.split(",") if name.strip()], task)
    else:
        found = of_source(opened(data, labels), task)
        found = replace(found, notes=(*found.notes, *_empty(data, found.source)))
    tell(found.source, found.notes)
    return found


def of_source(source: Source, task: str | None = None) -> Labeled:
    """What the labels of a source ask for: see `labeled`."""
    if source.classes is None:
        raise UserError(no_labels(source))
    if source.several:
        assert source.targets is not None
        if task not in (None, "several"):
            raise UserError(f"Images of {source.name} have several labels or none: leave --task out, or take several.")
        return _several(source, source.targets, source.classes, "some images have several labels")
    assert source.labels is not None
    values = [source.classes[k] for k in source.labels]
    found = task or ("classes" if source.by_folder else _kind(values))
    if found == "classes":
        return Labeled("classes", source, tuple(source.classes))
    if found == "several":
        return _separated(source, values)
    return _numbers(source, {"number": values})


def _empty(data: Any, source: Source) -> tuple[str, ...]:
    """A sentence about folders that would be classes, if they had images."""
    if not source.by_folder or not isinstance(data, str | Path) or not Path(data).is_dir():
        return ()
    roots = [Path(data), *(Path(data) / part for part in source.splits if (Path(data) / part).is_dir())]
    folders = [d for root in roots for d in sorted(root.iterdir()) if d.is_dir() and not d.name.startswith(".")]
    names = [d.name for d in folders if not any(f.is_file() for f in d.rglob("*"))]
    return (f"Folders without files are no classes: {listed(names, _FEW)}.",) if names else ()


def _kind(values: Sequence[str]) -> str:
    """What one column of values asks for."""
    distinct = set(values)
    numbers = [_number(v) for v in distinct]
    if all(n is not None for n in numbers):
        whole = all(n == int(n) for n in numbers if n is not None and math.isfinite(n))
        return "numbers" if not whole or 2 * len(distinct) > len(values) else "classes"
    parts = {part for v in distinct for part in _SEPARATORS.split(v)}
    # Separators in names of classes do not make fewer of them.
    return "several" if len(parts) < len(distinct) else "classes"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# -- tables --------------------------------------------------------------------------------------------------------


def _of_table(data: Any, file: Path, task: str | None) -> Labeled:
    """Images of a folder with the labels of a CSV file."""
    columns, rows = _rows(file)
    wanted = ["label"] if "label" in columns else columns
    several = any(len(found) > 1 for found in rows.values())
    source, places = _listed(data, file, rows)
    found = [[row[wanted[0]] for row in rows[place]] for place in places]
    notes = source.notes
    source = replace(source, notes=())
    if len(wanted) > 1:
        if several:
            raise UserError(f"{file} has several rows for an image, and several columns of labels: give one of both.")
        table = {name: [rows[place][0][name] for place in places] for name in wanted}
        answer = _of_values(source, table, task, str(file))
    elif several:
        if task not in (None, "several"):
            raise UserError(f"{file} has several rows for an image: leave --task out, or take several.")
        answer = _several(source, *as_targets([set(v) - {""} for v in found]), f"{file.name} has several rows of some")
    else:
        values = [v[0] for v in found]
        kind = task or _kind([v for v in values if v])
        there = [i for i, v in enumerate(values) if v or kind == "several"]
        lost = len(values) - len(there)
        some, kept = source.subset(there), [values[i] for i in there]
        if kind == "numbers":
            answer = _numbers(source, {wanted[0]: values})
        elif kind == "several":
            answer = _separated(some, kept)
        else:
            named = as_labels(kept)
            assert named is not None
            some = replace(some, annotate=partial(given, named))
            gone = (f"{lost} images of {file} have no label, and are left out.",) if lost else ()
            answer = Labeled("classes", some, tuple(named[1]), notes=gone)
    return replace(answer, notes=(*notes, *answer.notes))


def _of_columns(data: Any, columns: Sequence[str], task: str | None) -> Labeled:
    """Images of Parquet files with the labels of several columns."""
    sources = [opened(data, name) for name in columns]
    table = {}
    for name, source in zip(columns, sources, strict=True):
        if source.labels is None or source.classes is None:
            raise UserError(f"The column {name} of {source.name} has empty rows, or no number or text in each.")
        table[name] = [source.classes[k] for k in source.labels]
    return _of_values(sources[0], table, task, sources[0].name)


def _of_values(source: Source, table: Mapping[str, Sequence[str]], task: str | None, where: str) -> Labeled:
    """Several columns: classes that an image has or has not, or numbers."""
    flags = {v.lower() for values in table.values() for v in values} - {""} <= _YES | _NO
    kind = task or ("several" if flags else "numbers")
    if kind == "classes":
        raise UserError(f"{where} has {len(table)} columns of labels, and a class is in one: name it 'label'.")
    if kind == "numbers":
        return _numbers(source, table)
    if not flags:
        raise UserError(f"The columns {listed(table, _FEW)} of {where} must hold 0 and 1, for classes.")
    rows = np.array([[v.lower() for v in values] for values in table.values()]).T
    there = (rows != "").all(1)
    found = _several(
        source.subset(np.flatnonzero(there)),
        np.isin(rows[there], list(_YES)),
        list(table),
        f"{len(table)} columns of 0 and 1",
    )
    return replace(found, notes=(*found.notes, *_missing(source, ~there)))


def _rows(file: Path) -> tuple[list[str], dict[str, list[dict[str, str]]]]:
    """The columns of labels, and the rows of each image."""
    advice = "it needs a header with the column path and one or more of labels"
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            table = csv.DictReader(
                text, skipinitialspace=True, delimiter="\t" if file.suffix.lower() == ".tsv" else ","
            )
            columns = [name for name in table.fieldnames or () if name != "path"]
            if "path" not in (table.fieldnames or ()) or not columns:
                raise UserError(f"The labels file {file} has the columns {','.join(table.fieldnames or ())}; {advice}.")
            rows: dict[str, list[dict[str, str]]] = {}
            for row in table:
                if not row["path"]:
                    raise UserError(f"Line {table.line_num} of the labels file {file} lacks a path.")
                place = os.path.normpath(row["path"].replace("\\", "/")).replace(os.sep, "/")
                rows.setdefault(place, []).append({name: (row[name] or "").strip() for name in columns})
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"The labels file {file} cannot be read ({e}); {advice}.") from None
    if not rows:
        raise UserError(f"The labels file {file} has no rows; {advice}.")
    return columns, rows


def _listed(data: Any, file: Path, rows: Mapping[str, Any]) -> tuple[Source, list[str]]:
    """The images that a labels file names, in their order, without labels, and their names there."""
    source = opened(data, split="all")
    names = [source.where(i) for i in range(len(source))]
    there = [i for i, name in enumerate(names) if name in rows]
    if missing := sorted(set(rows) - set(names)):
        raise UserError(
            f"{len(missing)} of the {len(rows)} paths in the labels file {file} are not images under {source.name}, "
            f"the first is {missing[0]}; paths are relative to that folder."
        )
    note = f"{len(names) - len(there)} images of {source.name} are not in {file}, and are left out."
    notes = (note,) if len(there) < len(names) else ()
    return replace(source.subset(there), annotate=unlabeled, by_folder=False, notes=notes), [names[i] for i in there]


# -- several classes, and numbers ----------------------------------------------------------------------------------


def _separated(source: Source, values: Sequence[str]) -> Labeled:
    """Labels such as `red;dress`."""
    items = [{part for part in _SEPARATORS.split(v) if part} for v in values]
    example = next((v for v in values if len(_SEPARATORS.split(v)) > 1), values[0])
    return _several(source, *as_targets(items), f"labels such as '{example}'")


def _several(source: Source, targets: np.ndarray, names: Sequence[str], why: str) -> Labeled:
    note = (
        f"Several labels of an image ({why}): each of {len(names)} classes is there or not. --task classes takes one "
        "label as it is."
    )
    none = int((~targets.any(1)).sum())
    notes = (note, f"{none} of {len(targets)} images have none of the classes.") if none else (note,)
    return Labeled("several", source, tuple(names), torch.from_numpy(np.ascontiguousarray(targets)), notes)


def _numbers(source: Source, table: Mapping[str, Sequence[str]]) -> Labeled:
    rows = np.full((len(source), len(table)), np.nan)
    for column, (name, values) in enumerate(table.items()):
        for i, value in enumerate(values):
            number = _number(value) if value else math.nan
            if number is None:
                raise UserError(
                    f"{source.where(i)} has the {name} '{value}', which is no number: correct it, or leave it empty."
                )
            rows[i, column] = number
    there = np.isfinite(rows).all(1)
    names = tuple(table)
    note = (
        f"Numbers ({listed(names, _FEW)}): learned by squared error. --task classes takes each value as a class."
        if len(names) == 1
        else f"Numbers in {len(names)} columns ({listed(names, _FEW)}): learned by squared error."
    )
    y = torch.from_numpy(rows[there]).float()
    return Labeled("numbers", source.subset(np.flatnonzero(there)), names, y, (note, *_missing(source, ~there)))


def _missing(source: Source, gone: np.ndarray) -> tuple[str, ...]:
    """A sentence about images without a label."""
    if not gone.any():
        return ()
    first = source.where(int(np.argmax(gone)))
    return (f"{int(gone.sum())} of {len(gone)} images lack a label (the first: {first}), and are left out.",)


# -- several sets ------------------------------------------------------------------------------------------------------


def agreeing(
    learned: Labeled, held: Labeled | None, others: Sequence[Labeled], balance: str, min_per_class: int | None
) -> tuple[Labeled, Labeled | None, list[Labeled]]:
    """The sets with labels for the same classes or numbers, in the same order.

    Raises:
        UserError: too few images, options that the labels have no use for, or sets that differ in their classes.
    """
    sets = [*([] if held is None else [held]), *others]
    if learned.task == "classes":
        sources, left_out = frequent([learned.source, *(s.source for s in sets)], min_per_class, least=_FEWEST)
        source, *more = sources
        if left_out:
            say(left_out)
        else:
            doubted(source)
        named = check_labels(source, _FEWEST, "an adaptation")
        classes = [named[i] for i in np.unique(cast(np.ndarray, source.labels))]
        if empty := [name for name in named if name not in classes]:  # in a part of a set
            say(f"{source.name} has no images of {listed(empty)}: left out.")
        learned, *sets = [_numbered(s, classes) for s in (source, *more)]
    else:
        if balance != "none" or min_per_class is not None:
            raise UserError(
                f"--balance and --min-per-class are for images of one class each, and these have {learned.task}."
            )
        if len(learned.source) < FEWEST:
            raise UserError(
                f"{learned.source.name} has {len(learned.source)} images with labels, and an adaptation to "
                f"{learned.task} needs {FEWEST} or more."
            )
        if learned.task == "several":
            learned = _used(learned)
        sets = [_aligned(s, learned.names) for s in sets]
    return (learned, None, sets) if held is None else (learned, sets[0], sets[1:])


def _numbered(source: Source, classes: list[str]) -> Labeled:
    source = source.with_classes(classes)
    return Labeled("classes", source, tuple(classes), torch.from_numpy(cast(np.ndarray, source.labels)))


def _used(learned: Labeled) -> Labeled:
    """Without the classes that no image has, or all have. Raises UserError if none is left."""
    assert learned.y is not None
    there = learned.y.any(0) & ~learned.y.all(0)
    lost = [name for name, kept in zip(learned.names, there.tolist(), strict=True) if not kept]
    if len(lost) == len(learned.names):
        raise UserError(f"All images of {learned.source.name} have the same labels: there is nothing to tell apart.")
    if lost:
        say(f"{listed(lost)}: no image of {learned.source.name} has it, or all have: left out.")
    names = tuple(name for name, kept in zip(learned.names, there.tolist(), strict=True) if kept)
    return replace(learned, names=names, y=learned.y[:, there])


def _aligned(other: Labeled, names: tuple[str, ...]) -> Labeled:
    """The labels of another set in the order of these names."""
    assert other.y is not None
    if other.task == "numbers" and len(names) == len(other.names) == 1:
        return replace(other, names=names)
    y = other.y.new_zeros(len(other.y), len(names))
    for column, name in enumerate(other.names):
        if name in names:
            y[:, names.index(name)] = other.y[:, column]
        elif other.task == "numbers" or other.y[:, column].any():
            raise UserError(f"{other.source.name} has labels for '{name}', which is not among {listed(names, 8)}.")
    if other.task == "numbers" and (gone := [name for name in names if name not in other.names]):
        raise UserError(f"{other.source.name} lacks the numbers {listed(gone)}, which are learned: add the columns.")
    return replace(other, names=names, y=y)
