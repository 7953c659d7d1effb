"""The papers' tables, row by row: what to train, what to evaluate, and the numbers that were printed. Data, no code.

Rows that several tables share are one training. Rows that cannot be run here say why.
"""

from __future__ import annotations

from manyviews.errors import UserError, unknown
from manyviews.papers import mast, mulan, rescue
from manyviews.papers.parts import Detect, Diagnose, Evaluate, Row, Step, Subspaces, Sweep, Training, Transfer, hashed
from manyviews.papers.sets import SETS, SUITE, DataSet

__all__ = [
    "ROWS",
    "SETS",
    "SUITE",
    "TITLES",
    "DataSet",
    "Detect",
    "Diagnose",
    "Evaluate",
    "Row",
    "Step",
    "Subspaces",
    "Sweep",
    "Training",
    "Transfer",
    "get",
    "hashed",
    "plain",
    "under",
]

TITLES = {"mulan": mulan.TITLE, "rescue": rescue.TITLE, "mast": mast.TITLE}
"""The papers by the first word of their rows' names."""

ROWS = {row.name: row for row in (*mulan.ROWS, *rescue.ROWS, *mast.ROWS)}
"""Every row by its name, in the papers' order."""


def plain(name: str) -> str:
    """A row's name as it is written here: `mulan.table2.byol_multitask` is `mulan.table2.byol-multitask`."""
    return name.strip(".").replace("_", "-")


def under(name: str = "") -> list[Row]:
    """The rows of a paper, such as "mulan", of a table, "mulan.table2", or one of them; all without a name.

    Raises:
        UserError: there is no such row, with the nearest name.
    """
    name = plain(name)
    found = [row for row in ROWS.values() if not name or row.name == name or row.name.startswith(f"{name}.")]
    if found:
        return found
    tables = dict.fromkeys(known.rpartition(".")[0] for known in ROWS)
    table, _, last = name.rpartition(".")
    if table in tables:
        inside = [known.rpartition(".")[2] for known in ROWS if known.rpartition(".")[0] == table]
        raise unknown(f"row of {table}", last, inside)
    names = [*ROWS] if name.count(".") > 1 else [*TITLES, *tables]
    wrong = str(unknown("row", name, names)).partition(" Known:")[0]
    raise UserError(f"{wrong} `manyviews reproduce` lists all tables.")


def get(name: str) -> Row:
    """The row of that name. Raises UserError with the nearest one, or with one of the rows of a table."""
    found = under(name)
    if found[0].name != plain(name):
        example = f"{name} has rows, such as {found[0].name}"
        raise UserError(f"{example}: `manyviews reproduce {name}` lists all {len(found)}.")
    return found[0]
