"""The folder of a run: what lies where, made once, used by one process at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any

from filelock import FileLock, Timeout

from manyviews.checkpoint import write_text
from manyviews.errors import UserError
from manyviews.settings import Recipe, from_json, to_json

RECIPE = "recipe.json"  # every setting
RUN = "run.json"  # the data, the versions, the machine
LOG = "log.jsonl"  # one JSON object per line
CHECKPOINT = "checkpoint.safetensors"  # everything from which training continues
ENCODER = "encoder.safetensors"  # what it was all for, in timm's names
SUMMARY = "summary.json"  # written when the run is complete
EVALUATIONS = "evaluations"
PLOTS = "plots"


def create(out: Path | None, recipe: Recipe, facts: Mapping[str, Any]) -> Path:
    """Make the folder of a new run and write its recipe and facts.

    Args:
        out: where; None for `runs/<recipe>-<date>-<time>`, numbered if that is taken.
        recipe: of the run.
        facts: JSON-able; what else is known of the run.

    Raises:
        UserError: there is something already, or the folder cannot be made.
    """
    if out is None:
        base = Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
        names = [base, *(base.with_name(f"{base.name}-{i}") for i in range(2, 100))]
    else:
        names = [out]
    for path in names:
        if _claim(path):
            break
    else:
        path = names[0]
        if (path / RECIPE).exists():
            raise UserError(
                f"{path} holds a run already: continue it with `manyviews resume {quote(str(path))}`, or give another "
                "--out."
            )
        raise UserError(f"{path} exists and is not an empty folder: give another --out.")
    write_text(path / RUN, json.dumps(dict(facts), indent=2))
    write_text(path / RECIPE, to_json(recipe))  # last: a folder with a recipe is a run that can be resumed
    return path


def _claim(path: Path) -> bool:
    """Whether the path was made into, or was, an empty folder, and this process is the one that has it now."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            return False
        (path / RUN).touch(exist_ok=False)  # of two processes, one succeeds
        return True
    except (FileExistsError, NotADirectoryError):
        return False
    except OSError as e:
        raise UserError(f"The run folder {path} cannot be made ({e.strerror}): give another --out.") from None


def read(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """A run's recipe and facts.

    Raises:
        UserError: the folder holds no run.
    """
    if not folder.is_dir():
        raise UserError(f"There is no run folder {folder}.")
    try:
        recipe = from_json((folder / RECIPE).read_text(encoding="utf-8"), str(folder / RECIPE))
        facts = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{folder} is not a run folder: {RECIPE} and {RUN} cannot be read ({e}).") from None
    if not isinstance(recipe, Recipe) or not isinstance(facts, dict):
        raise UserError(f"{folder} is not a run folder: {RECIPE} does not hold a recipe.")
    return recipe, facts


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the folder alone; the operating system lets go of it when the process dies, however it dies.

    Raises:
        UserError: another process holds it.
    """
    held = FileLock(folder / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise UserError(f"Another process is training in {folder}: wait for it, or stop it.") from None
    except OSError as e:
        raise UserError(f"The run in {folder} cannot be written to: {e.strerror}.") from None
    try:
        yield
    finally:
        held.release()


def rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log; one that a crash cut short is left out. Old names of numbers are translated."""
    found: list[dict[str, Any]] = []
    path = folder / LOG
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found.append({re.sub("^observe/", "monitor/", name): value for name, value in row.items()})
    return found
