"""The log of a run: a file of JSON lines, and the loggers that the recipe names."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from manyviews.checkpoint import unwritten, write_text
from manyviews.engine.folder import RunFolder
from manyviews.errors import UserError, say

Row = Mapping[str, float | int | str]
_LARGEST = 2**24  # bytes of a file


class Log:
    """Rows of numbers, each with its step, appended to `log.jsonl` and handed to the loggers.

    Opening rewinds to `step`: rows that an interrupted run wrote after its last checkpoint are dropped, because they
    are about to be written again. A file that has grown past 16 MiB, at some 400 bytes a row, is put aside under the
    next number, and a new one begins.

    Args:
        folder: the run's folder.
        step: step at which the run starts or continues.
        loggers: "tensorboard", "wandb", "mlflow".
        stage: stage, from 0, whose rows are dropped too, because it begins anew at this step.

    Raises:
        UserError: a logger's package is not installed, or it does not know its server.
    """

    def __init__(
        self, folder: RunFolder, step: int = 0, loggers: tuple[str, ...] = (), stage: int | None = None
    ) -> None:
        self._folder, self._path = folder, folder.logs[-1]
        if not (step and _rewind(folder, step, stage)):
            write_text(self._path, "")
            for old in folder.logs[:-1]:
                old.unlink()
        self._file = self._path.open("a", encoding="utf-8")
        self._sinks = {name: _LOGGERS[name](folder, step) for name in loggers}

    def write(self, row: Row) -> None:
        """Append one row. A number that is not finite becomes a string, because JSON has none."""
        plain = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        try:
            self._file.write(json.dumps(plain) + "\n")
            self._file.flush()
        except OSError as error:
            raise unwritten(self._path, error) from error
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
        for name, (sink, _) in list(self._sinks.items()):
            try:
                sink(numbers, int(row["step"]))
            except Exception as e:  # a server that is down must not end the training
                del self._sinks[name]
                say(f"Warning: {name} receives nothing more of this run, because it failed: {e}")

    def sync(self) -> None:
        """Put all rows on the disk: a checkpoint that survives a power cut must not be ahead of them."""
        try:
            os.fsync(self._file.fileno())
            if self._file.tell() > _LARGEST:
                self._file.close()
                *old, _ = self._folder.logs
                number = int(old[-1].suffixes[0][1:]) + 1 if old else 1
                self._path.replace(self._path.with_name(f"log.{number:04d}.jsonl"))
                self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise unwritten(self._path, error) from error

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk: the line that it has no room for has been reported
            self._file.close()
        for _, close in self._sinks.values():
            close()


def _rewind(folder: RunFolder, step: int, stage: int | None) -> bool:
    """Cut off the rows after a step, or of a later stage: see `Log`. False if there is no log.

    Steps never fall along a log, so only its end is read, however long it is. Of files that were put aside, those that
    hold nothing else go, and the last that holds more is the one that is written to again.
    """
    *old, path = folder.logs
    while True:
        if path.exists() and (_cut(path, step, stage) or not old):
            return True
        if not old:
            return False
        old.pop().replace(path)


def _cut(path: Path, step: int, stage: int | None) -> int:
    """Cut off a file's lines after a step, or of a later stage, and damaged ones among these; the bytes that stay."""

    def stays(line: bytes) -> bool:
        try:
            row = json.loads(line)
            return bool(row.get("step", 0) <= step and (stage is None or row.get("stage", 0) <= stage))
        except (ValueError, TypeError, AttributeError, RecursionError):
            return False

    with path.open("r+b") as file:
        if not (end := file.seek(0, os.SEEK_END)):
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            end = text.rfind(b"\n") + 1  # a crash may have cut the last line short
            while end and not stays(text[(start := text.rfind(b"\n", 0, end - 1) + 1) : end]):
                end = start
        file.truncate(end)
    return end


Sink = tuple[Callable[[dict[str, float], int], Any], Callable[[], Any]]


def _tensorboard(folder: RunFolder, step: int) -> Sink:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise missing("tensorboard") from None
    writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=step + 1 if step else None)

    def sink(numbers: dict[str, float], step: int) -> None:
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)

    return sink, writer.close


def _wandb(folder: RunFolder, step: int) -> Sink:
    try:
        import wandb
    except ImportError:
        raise missing("wandb") from None
    known = folder.facts["id"]
    try:
        run = wandb.init(project="manyviews", name=folder.path.name, dir=folder.path, resume="allow", id=known)
    except wandb.errors.UsageError as error:  # nobody is logged in
        raise UserError(f"Weights & Biases: {error} Or set WANDB_MODE=offline.") from None
    return lambda numbers, step: run.log(numbers, step=step), run.finish


def _mlflow(folder: RunFolder, step: int) -> Sink:
    try:
        import mlflow
    except ImportError:
        raise missing("mlflow") from None
    if not mlflow.is_tracking_uri_set():  # MLflow would write a database, which its small package cannot
        raise UserError("MLflow needs its server's address: set MLFLOW_TRACKING_URI, such as to http://localhost:5000.")
    mlflow.set_experiment("manyviews")
    known = folder.path / "mlflow_run_id"
    run = mlflow.start_run(run_id=known.read_text() if known.exists() else None, run_name=folder.path.name)
    write_text(known, run.info.run_id)
    return lambda numbers, step: mlflow.log_metrics(numbers, step=step), mlflow.end_run


def missing(package: str) -> UserError:
    """The error for a logger whose package is not installed."""
    return UserError(f"Logging to {package} needs its package: pip install 'manyviews[{package}]'.")


_LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
