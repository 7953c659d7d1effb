"""The folder of a run: its files, made once, used by one process at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

from filelock import FileLock, Timeout

from manyviews.checkpoint import write_text
from manyviews.errors import UserError
from manyviews.settings import Recipe, from_json, to_json

RECIPE = "recipe.json"
RUN = "run.json"
LOG = "log.jsonl"
CHECKPOINT = "checkpoint.safetensors"
ENCODER = "encoder.safetensors"
START = "start.safetensors"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, which may not exist yet.

    Its files are recipe.json (every setting), run.json (the data, the versions, the machine), log.jsonl (one JSON
    object per line), checkpoint.safetensors (everything from which training continues), encoder.safetensors (the
    encoder alone, in timm's names), and summary.json, which is written when the run is complete. A run that starts from
    weights has start.safetensors, the encoder as it was at the start.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Everything from which training continues."""
        return self.path / CHECKPOINT

    @property
    def encoder(self) -> Path:
        """The encoder alone; there when the run is complete."""
        return self.path / ENCODER

    @property
    def start(self) -> Path:
        """The encoder as it was at the start, of a run that starts from weights."""
        return self.path / START

    @property
    def plots(self) -> Path:
        """The folder of plots."""
        return self.path / "plots"

    @property
    def evaluations(self) -> Path:
        """The folder of reports, numbered."""
        return self.path / "evaluations"

    @property
    def started(self) -> bool:
        """Whether the folder holds a run that can be resumed."""
        return (self.path / RECIPE).exists()

    @property
    def complete(self) -> bool:
        """Whether the run has taken its last step and written its summary."""
        return (self.path / SUMMARY).exists()

    @property
    def recipe(self) -> Recipe:
        """Every setting of the run. Raises UserError when the folder holds no run."""
        return self._contents[0]

    @property
    def facts(self) -> dict[str, Any]:
        """The data, the versions and the machine. Raises UserError when the folder holds no run."""
        return self._contents[1]

    @cached_property
    def _contents(self) -> tuple[Recipe, dict[str, Any]]:
        if not self.path.is_dir():
            raise UserError(f"There is no run folder {self.path}.")
        try:
            recipe = from_json((self.path / RECIPE).read_text(encoding="utf-8"), str(self.path / RECIPE))
            facts = json.loads((self.path / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise UserError(f"{self.path} is not a run folder: {RECIPE} and {RUN} cannot be read ({e}).") from None
        if not isinstance(recipe, Recipe) or not isinstance(facts, dict):
            raise UserError(f"{self.path} is not a run folder: {RECIPE} does not hold a recipe.")
        return recipe, facts

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of the log, without one that a crash cut short. Old names of numbers are translated."""
        found: list[dict[str, Any]] = []
        path = self.path / LOG
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            found.append(_renamed(row))
        return found

    @property
    def summary(self) -> dict[str, Any] | None:
        """The results of the complete run; None before that."""
        if not self.complete:
            return None
        found: dict[str, Any] = json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
        return found | {"last": _renamed(found.get("last", {}))}

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write the data, the versions and the machine."""
        write_text(self.path / RUN, json.dumps(dict(facts), indent=2))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Complete the run."""
        write_text(self.path / SUMMARY, json.dumps(dict(summary), indent=2))

    def clean(self) -> None:
        """Remove unfinished files of a process that was killed while it wrote a checkpoint."""
        for part in self.path.glob(f".{CHECKPOINT}.*"):
            part.unlink()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder alone. The operating system releases it when the process dies, however it dies.

        Raises:
            UserError: another process holds it.
        """
        held = FileLock(self.path / ".lock")
        try:
            held.acquire(timeout=0)
        except Timeout:
            raise UserError(f"Another process is training in {self.path}: wait for it, or stop it.") from None
        except OSError as e:
            raise UserError(f"The run in {self.path} cannot be written to: {e.strerror}.") from None
        try:
            yield
        finally:
            held.release()


def create(
    out: Path | None, recipe: Recipe, facts: Mapping[str, Any], start: Callable[[RunFolder], object] | None = None
) -> RunFolder:
    """Make the folder of a new run and write its recipe and facts.

    Args:
        out: its path; None for `runs/<recipe>-<date>-<time>`, numbered if that is taken.
        recipe: every setting of the run.
        facts: JSON-able; the data, the versions, the machine.
        start: writes what the run starts from into the folder, before it is one that can be resumed.

    Raises:
        UserError: the path is taken, or the folder cannot be made.
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
        if RunFolder(path).started:
            raise UserError(
                f"{path} holds a run already: continue it with `manyviews resume {quote(str(path))}`, or give another "
                "--out."
            )
        raise UserError(f"{path} exists and is not an empty folder: give another --out.")
    RunFolder(path).write_facts(facts)
    if start is not None:
        start(RunFolder(path))
    write_text(path / RECIPE, to_json(recipe))  # last: a folder with a recipe is a run that can be resumed
    return RunFolder(path)


def _claim(path: Path) -> bool:
    """Make the path an empty folder, and say whether this process, and no other, now owns it."""
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


def _renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers under their present names: until commit 93ea1ef, "monitor/" was "observe/"."""
    if not any(name.startswith("observe/") for name in row):  # nearly always: a log may have a million lines
        return dict(row)
    return {re.sub("^observe/", "monitor/", name): value for name, value in row.items()}
