"""The folder of a run: its files, made once, used by one process at a time."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from shlex import quote
from typing import Any

from filelock import FileLock, Timeout

from manyviews import distributed, methods, recipes
from manyviews.checkpoint import damage, facts_of, is_temporary, tidy, write_atomically, write_text
from manyviews.engine.trust import is_signed, servers, signature
from manyviews.errors import UserError, printable, say
from manyviews.settings import Recipe, from_json, parts, to_json

RECIPE = "recipe.json"
RUN = "run.json"
LOG = "log.jsonl"
CHECKPOINT = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
ENCODER = "encoder.safetensors"
START = "start.safetensors"
SUMMARY = "summary.json"
SUSPECTS = "suspects.json"
_FILES = (RECIPE, RUN, LOG, CHECKPOINT, PREVIOUS, ENCODER, START, SUMMARY, SUSPECTS)
_LOCK = ".lock"
_LONGEST = 4096  # characters of a path
_LARGEST = 2**26  # bytes of a JSON file that is read whole


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, which may not exist yet.

    Its files are recipe.json (every setting), run.json (the data, the versions, the machine), log.jsonl (one JSON
    object per line; the older lines of a very long run are in log.0001.jsonl and so on), checkpoint.safetensors
    (everything from which training continues), encoder.safetensors (the encoder alone, in timm's names), summary.json,
    which is written when the run is complete, and suspects.json, which names the images of batches at which numbers
    jumped or were no longer finite. A run that starts from weights has start.safetensors, the encoder as it was at the
    start. Until it is complete, a run also has checkpoint.previous.safetensors, the checkpoint before, for the case
    that the newest is damaged.

    The folder may be somebody else's. Its files are data and are checked when they are read, and nothing is written
    through a link.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Where everything is written from which training continues. To read it, take `latest`."""
        return self.path / CHECKPOINT

    @property
    def previous(self) -> Path:
        """The checkpoint before that one."""
        return self.path / PREVIOUS

    @property
    def latest(self) -> Path | None:
        """The newest checkpoint that is as it was written; None if there is none yet.

        If that is the one before, a sentence says so.

        Raises:
            UserError: there are only damaged ones.
        """
        wrong: list[str] = []
        for path in (self.checkpoint, self.previous):
            if not os.path.lexists(path):
                continue
            reason = damage(path)
            if reason is None:
                if wrong and distributed.rank() == 0:
                    step = facts_of(path).get("step")
                    _say_once(f"Warning: {wrong[0]} {path.name}, of step {step}, is used in its place.")
                return path
            wrong.append(reason)
        if wrong:
            other = "" if len(wrong) > 1 else f" There is no {PREVIOUS} to use in its place."
            raise UserError(
                f"{' '.join(wrong)}{other} Without a checkpoint the run in {self.path} cannot go on: put one back from "
                f"a backup, or remove it and {LOG} to train from the start."
            )
        return None

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
        return self.summary is not None

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
            text = _text(self.path / RECIPE)
            facts = json.loads(_text(self.path / RUN))
        except (OSError, ValueError, RecursionError) as e:
            raise UserError(f"{self.path} is not a run folder: {RECIPE} and {RUN} cannot be read ({e}).") from None
        recipe = from_json(text, str(self.path / RECIPE))
        if not isinstance(recipe, Recipe) or not isinstance(facts, dict):
            raise UserError(f"{self.path} is not a run folder: {RECIPE} does not hold a recipe.")
        try:
            recipe = _checked(recipe)
        except UserError as e:
            raise UserError(f"{self.path / RECIPE}: {e}") from None
        if (wrong := _wrong(facts)) is not None:
            raise UserError(f"{self.path / RUN} is damaged: {wrong} has a value that it cannot have.")
        return recipe, facts

    @property
    def logs(self) -> list[Path]:
        """The files of the log, oldest first; the last, log.jsonl, is the one that is written to."""
        old = [path for path in self.path.glob("log.*.jsonl") if re.fullmatch(r"log\.\d{4,9}\.jsonl", path.name)]
        return [*sorted(old, key=lambda path: int(path.suffixes[0][1:])), self.path / LOG]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of the log. Old names of numbers are translated.

        A last line that a crash cut short is left out. So are damaged lines, with a sentence.
        """
        return [row for path in self.logs for row in _rows(path)]

    @property
    def summary(self) -> dict[str, Any] | None:
        """The results of the complete run; None before that, and if the file is damaged: `resume` writes it again."""
        found: dict[str, Any] = {}
        try:
            found = json.loads(_text(self.path / SUMMARY))
            last = _renamed(found.get("last", {}))
            good = all(_is_number(found[name]) for name in ("steps", "seconds"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
            good = False
        if not good:
            if distributed.rank() == 0:
                _say_once(f"Warning: {self.path / SUMMARY} is damaged: `manyviews resume` writes it again.")
            return None
        return found | {"last": last}

    @property
    def ours(self) -> bool:
        """Whether this user began the run, and nobody edited it: see `manyviews.engine.trust`."""
        return is_signed(self.facts, json.loads(_text(self.path / RECIPE)))

    def asks(self, **given: Any) -> list[str]:
        """The servers that the run would contact, of which the user has not heard: none of one that this user began.

        Args:
            given: other places than the run's own, by their names in its facts; None where it is not given.
        """
        if self.ours:
            return []
        places = {k: v for k, v in self.facts.items() if given.get(k) is None}
        return servers(places, self.recipe, self.latest is not None)

    def sign(self) -> None:
        """Note that this user wants the run to contact the servers that it names."""
        self.write_facts(self.facts | signature(self.facts, json.loads(_text(self.path / RECIPE))))

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write the data, the versions and the machine."""
        write_text(self.path / RUN, json.dumps(dict(facts), indent=2))
        self.__dict__.pop("_contents", None)  # read them anew

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Complete the run."""
        write_text(self.path / SUMMARY, json.dumps(dict(summary), indent=2))

    def clean(self) -> None:
        """Remove unfinished files of processes that were killed while they wrote. Call it with the folder locked."""
        for part in self.path.iterdir():
            if is_temporary(part.name, _FILES) and (part.is_symlink() or not part.is_dir()):
                part.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what nothing goes on from when the run is complete: the checkpoint before the last, and its shards."""
        self.previous.unlink(missing_ok=True)
        tidy(self.checkpoint)

    def mend(self) -> None:
        """Put the checkpoint before in the place of a damaged one. Call it with the folder locked."""
        latest = self.latest
        if latest == self.previous:
            write_atomically(self.checkpoint, lambda part: shutil.copyfile(self.previous, part))

    def guard(self) -> None:
        """Check that nothing outside the folder would be written to.

        Raises:
            UserError: one of its files is a link, a pipe or a device.
        """
        folders = [self.path]
        while folders:
            for entry in os.scandir(folders.pop()):
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    if entry.name != "wandb":  # which makes links of its own
                        folders.append(Path(entry.path))
                elif not stat.S_ISREG(mode):
                    kind = "a link" if stat.S_ISLNK(mode) else "no plain file"
                    raise UserError(
                        f"{entry.path} is {kind}, and writing to the run could change something outside its folder: "
                        "replace it with a plain file, or remove it."
                    )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder alone. The operating system releases it when the process dies, however it dies.

        Raises:
            UserError: another process holds it, or something in it is a link.
        """
        self.guard()
        held = FileLock(self.path / _LOCK)
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
        with _claimed(path) as ours:
            if ours:
                RunFolder(path).write_facts({**facts, **signature(facts, json.loads(to_json(recipe)))})
                if start is not None:
                    start(RunFolder(path))
                write_text(path / RECIPE, to_json(recipe))  # last: a folder with a recipe is a run that can be resumed
                return RunFolder(path)
    path = names[0]
    if RunFolder(path).started:
        raise UserError(
            f"{path} holds a run already: continue it with `manyviews resume {quote(str(path))}`, or give another "
            "--out."
        )
    raise UserError(f"{path} exists and is not an empty folder: give another --out.")


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Make the path an empty folder, and give whether this process, and no other, now owns it.

    A folder that a killed process began is taken over. If the block fails, as on a full disk, nothing is left of it.
    """
    new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        ours = _begun(path)
    except (FileExistsError, NotADirectoryError):
        ours = False
    except OSError as e:
        raise UserError(f"The run folder {path} cannot be made ({e.strerror}): give another --out.") from None
    if not ours:
        yield False
        return
    try:
        held = FileLock(path / _LOCK)
        held.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as e:
        raise UserError(f"The run folder {path} cannot be written to ({e.strerror}): give another --out.") from None
    try:
        ours = _begun(path)  # of two processes, the first may have finished in between
        for file in path.iterdir() if ours else ():
            if file.name != _LOCK:
                file.unlink()
        yield ours
    except BaseException:
        for file in path.iterdir() if ours else ():
            file.unlink()
        held.release()
        if ours and new:
            with suppress(OSError):
                path.rmdir()
        raise
    finally:
        held.release()


def _begun(path: Path) -> bool:
    """Whether a folder is empty, or has nothing but what `create` writes before the recipe, in its order."""
    names = {file.name for file in path.iterdir()}
    if not names or (names == {RUN} and not (path / RUN).stat().st_size):
        return True
    left = {name for name in names if not is_temporary(name, _FILES)} - {_LOCK}
    return _LOCK in names and (not left or (RUN in left and left <= {RUN, START, CHECKPOINT}))


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8")


def _bytes(path: Path, most: int | None = _LARGEST) -> bytes:
    """The content of a plain file. A pipe would wait for its writer, and a device may never end."""
    if not stat.S_ISREG((found := path.stat()).st_mode):
        raise OSError(f"{path.name} is not a plain file")
    if most is not None and found.st_size > most:
        raise OSError(f"{path.name} has {found.st_size} bytes")
    return path.read_bytes()


def _checked(recipe: Recipe) -> Recipe:
    """The recipe as `pretrain` checks it: every setting known and of its type, in every stage."""
    if recipe.method.name not in methods.names():
        return recipe  # from a file that is not here: whoever builds it says so
    for part in parts(recipe):
        recipes.resolve(part.recipe)
    return recipes.resolve(recipe)


def _wrong(facts: Mapping[str, Any]) -> str | None:
    """The first of a run's facts that is of another kind than `pretrain` and `finish` write."""
    texts = ("data", "captions", "old", "id", "started", "machine")
    wrong = [k for k in texts if not isinstance(facts.get(k), str | None) or len(facts.get(k) or "") > _LONGEST]
    wrong += [] if isinstance(facts.get("changed", []), list) else ["changed"]
    early = facts.get("early")
    if early is not None and not (
        isinstance(early, dict)
        and early.keys() == {"since", "of", "over"}
        and all(type(v) is int and v >= 0 for v in early.values())
        and early["over"] > 0
    ):
        wrong.append("early")
    left = facts.get("left_out", [])
    if not isinstance(left, list) or not all(type(step) is int and step >= 0 for step in left):
        wrong.append("left_out")
    return next((printable(k) for k in wrong), None)


def check_progress(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Raises UserError when what a checkpoint says of its run's progress is not what a run writes."""
    before = facts.get("before", (0, 0))
    good = {
        "step": _counts(facts.get("step")),
        "seconds": _spent(facts.get("seconds")),
        "stage": _counts(facts.get("stage", 0)),
        "epochs": _spent(facts.get("epochs", 0)),
        "end": _counts(facts.get("end", 0)),
        "pause": _spent(facts.get("pause", 0)),
        "before": isinstance(before, list | tuple) and len(before) == 2 and _counts(before[0]) and _spent(before[1]),
        "scaling": isinstance(facts.get("scaling", {}), dict),
    }
    wrong = next((name for name, fits in good.items() if not fits), None)
    if wrong is not None:
        raise UserError(f"{checkpoint} is not a run's checkpoint: it has no {wrong} as a run writes it.")


def _counts(x: Any) -> bool:
    return type(x) is int and 0 <= x < 2**63


def _spent(x: Any) -> bool:
    return type(x) in (int, float) and 0 <= x < math.inf


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of one file of the log: see `RunFolder.rows`."""
    try:
        *lines, last = _bytes(path, None).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror or e}).") from None
    found = [_row(line) for line in lines if line.strip()]
    rows = [row for row in found if row is not None]
    if len(rows) < len(found) and distributed.rank() == 0:
        count = len(found) - len(rows)
        _say_once(f"Warning: {count} damaged line{'s' * (count > 1)} of {path} left out.")
    tail = _row(last)
    return rows if tail is None else [*rows, tail]


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of the log; None if it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int or not 0 <= found["step"] < 2**63:
        return None
    row = _renamed(found)
    return row if all(isinstance(v, str) or _is_number(v) for v in row.values()) else None


def _is_number(x: Any) -> bool:
    return isinstance(x, bool | float) or (isinstance(x, int) and abs(x) < 2**63)


@cache
def _say_once(text: str) -> None:
    say(text)


def _renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers under their present names: until commit 93ea1ef, "monitor/" was "observe/"."""
    if not any(name.startswith("observe/") for name in row):  # nearly always: a log may have a million lines
        return dict(row)
    return {re.sub("^observe/", "monitor/", name): value for name, value in row.items()}
