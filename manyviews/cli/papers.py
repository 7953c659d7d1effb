"""The verb that reproduces the papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import manyviews as mv
from manyviews.cli._options import Json, settings, write_json, wrote
from manyviews.cli._parser import Arg
from manyviews.errors import printable

if TYPE_CHECKING:
    from manyviews.papers import Row
    from manyviews.verbs.reproduce import Number, Reproduction


def reproduce(
    row: Annotated[str | None, Arg("ROW")] = None,
    /,
    data: Annotated[tuple[str, ...], Arg("NAME=PATH", repeat=True)] = (),
    out: Annotated[Path, Arg("FOLDER")] = Path("reproduced"),
    dry_run: bool = False,
    small: bool = False,
    json: Json = None,
) -> None:
    """Reproduce a row of a paper's table, or list the rows: MULAN, the rescue of easy samples, MAST.

    For example:
      manyviews reproduce
      manyviews reproduce mulan.table2
      manyviews reproduce mulan.table2.byol --dry-run
      manyviews reproduce mulan.table2.byol --small
      manyviews reproduce mulan.table2.byol --data imagenet=/data/imagenet --out reproduced

    Args:
        row: A row, such as mulan.table2.byol. Rows of a paper or a table are listed, all of them without a name.
        data: Where a set of images is. The error about a missing one says where to get it.
        out: Folder of runs and results, which rows share. The same command again continues.
        dry_run: Print each command, and how long it takes on this machine; run nothing.
        small: Run everything at about a hundredth of its size in seconds, on made-up images. The numbers mean nothing.
    """
    from manyviews import papers

    listed = papers.under(row or "")
    if row is None or listed[0].name != papers.plain(row):
        _list(listed)
        write_json(json, [_facts(one) for one in listed])
        return
    found = mv.reproduce(row, settings(data, "--data", "imagenet=/data/imagenet"), out, small=small, dry_run=dry_run)
    _show(found, plan=dry_run)
    write_json(json, found.to_dict())


def _list(rows: list[Row]) -> None:
    """A line for each row, below its table."""
    from manyviews.papers import TITLES

    wide, before = max(len(row.name) for row in rows), ""
    for row in rows:
        table = row.name.rpartition(".")[0]
        if table != before:
            print(f"{'' if not before else chr(10)}{TITLES[table.partition('.')[0]]}, {row.where.rpartition(',')[0]}:")
            before = table
        numbers = _printed(row)
        print(
            f"  {row.name:{wide}}  {row.words}{f': {numbers}' if numbers else ''}{' (not here)' if row.absent else ''}"
        )
    print("\n`manyviews reproduce ROW --dry-run` says what it takes.")


def _printed(row: Row) -> str:
    """The paper's numbers of a row, in a line."""
    values = [f"{value:g}" for step in row.steps for value in step.printed.values() if value is not None]
    return ", ".join([*values, *([] if row.hours is None else [f"{row.hours:g} h"])])


def _facts(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "where": row.where,
        "words": row.words,
        "printed": [{"data": step.data, **step.printed} for step in row.steps],
        "hours": row.hours,
        "data": row.data,
        "absent": row.absent or None,
        "notes": list(row.notes),
    }


def _show(found: Reproduction, plan: bool) -> None:
    from manyviews.papers import SETS, TITLES

    row = found.row
    print(f"{row.name}: {row.words} ({TITLES[row.name.partition('.')[0]]}, {row.where})")
    print()
    _table(found.numbers, ours=not plan)
    if row.absent:
        print(f"\nIt cannot be run here. {row.absent}")
    if plan:
        for i, part in enumerate(found.parts, start=1):
            about = SETS[part.data]
            print(f"\n{i}. {printable(part.command)}")
            print(f"   Needs {part.data}: {about.title}, {about.images:,} images, from {about.where}")
            if part.done:
                print("   Done.")
            elif part.seconds is not None:
                print(f"   About {_long(part.seconds)} on this machine: {part.note}.")
        if len(found.parts) > 1 and found.seconds is not None:
            print(f"\nAbout {_long(found.seconds)} in all. What follows the training is estimated from its pace.")
    for note in row.notes:
        print(f"\nNote: {note}")
    if found.small:
        print(f"\nAt this size the numbers mean nothing: they show that all {len(found.parts)} parts run.")
    if not plan:
        wrote(found.folder / f"{row.name}{'-small' if found.small else ''}.json")


def _table(numbers: Sequence[Number], ours: bool) -> None:
    """The paper's numbers, and ours next to them."""
    if not numbers:
        print("The paper shows it in a picture.")
        return
    head = ["set", "number", "paper", *(["ours", "difference"] if ours else [])]
    cells = [head]
    for number in numbers:
        values = [number.paper, *([number.ours, number.difference] if ours else [])]
        cells.append([number.data, number.name, *("-" if v is None else f"{v:.4g}" for v in values)])
        if ours and number.difference is not None:
            cells[-1][-1] = f"{number.difference:+.2f}"
    wide = [max(len(line[i]) for line in cells) for i in range(len(head))]
    for line in cells:
        words = [cell.ljust(wide[i]) if i < 2 else cell.rjust(wide[i]) for i, cell in enumerate(line)]
        print("   ".join(words).rstrip())


def _long(seconds: float) -> str:
    """A length of time that may be years."""
    from manyviews.progress import duration

    days = seconds / 86400
    if days < 2:
        return duration(seconds)
    return f"{days:.0f} days" if days < 730 else f"{days / 365:.1f} years"
