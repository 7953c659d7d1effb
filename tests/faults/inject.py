"""Faults in a process's own writes, clock, images and gradients: installed in a child before its run begins.

What a run does to files in a folder is counted: each open for writing, each write that reaches the system, each fsync,
rename, link and removal. A fault hits the n-th of them, so it is found again.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = ("open", "write", "fsync", "rename", "mkdir")


def install(kind: str, **settings: Any) -> None:
    """Install a fault by name."""
    known = {"files": Files, "clock": clock, "hang": hang, "change": change, "numbers": numbers, "step": at_step}
    (known | {"observation": observation})[kind](**settings)


class Files:
    """Counts what is done to the files in a folder, and lets the n-th fail.

    Args:
        folder: the folder.
        at: which one, from 0; None only counts.
        fault: "SIGKILL" or another signal to this process, or the name of an error such as "ENOSPC".
        lasting: whether every later one fails, too, as on a full disk.
        record: a file that receives each as a line.
        only: kinds that count.
    """

    def __init__(
        self,
        folder: str,
        at: int | None = None,
        fault: str = "SIGKILL",
        lasting: bool = False,
        record: str | None = None,
        only: list[str] | None = None,
    ) -> None:
        self.folder, self.at, self.fault, self.lasting = os.path.abspath(folder), at, fault, lasting
        self.only, self.count = only, 0
        self.record = None if record is None else os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._open, self._os_open = io.open, os.open
        builtins.open = io.open = self.open  # type: ignore[assignment]
        os.open = self._wrapped(os.open, "open", lambda path, flags, *_: bool(flags & (os.O_CREAT | os.O_WRONLY)))
        for name, called in (("replace", "rename"), ("rename", "rename"), ("link", "rename"), ("mkdir", "mkdir")):
            setattr(os, name, self._wrapped(getattr(os, name), called))
        sync = os.fsync
        os.fsync = lambda handle: (self.reach("fsync", os.readlink(f"/proc/self/fd/{handle}")), sync(handle))[1]
        from safetensors import SafetensorError

        from manyviews import checkpoint

        save = checkpoint.save_file

        def save_file(tensors: Any, path: Any, **more: Any) -> None:  # writes in Rust, past Python's files
            def half() -> None:
                save(tensors, path, **more)
                os.truncate(path, os.path.getsize(path) // 2)

            try:
                self.reach("write", os.fspath(path), half)
            except OSError as error:
                text = f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
                raise SafetensorError(text) from None
            save(tensors, path, **more)

        checkpoint.save_file = save_file

    def reach(self, what: str, path: str, half: Callable[[], Any] | None = None) -> None:
        """Count one, and let it fail if it is its turn; `half` does half of it."""
        path = os.path.abspath(os.fsdecode(path))
        if not path.startswith(self.folder) or (self.only and what not in self.only):
            return
        number, self.count = self.count, self.count + 1
        if self.record is not None:
            os.write(self.record, f"{what} {os.path.relpath(path, self.folder)}\n".encode())
        if self.at is None or number < self.at or (number > self.at and not self.lasting):
            return
        if half is not None and number == self.at:
            half()
        if self.fault.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.fault])
        else:
            code = getattr(errno, self.fault)
            raise OSError(code, os.strerror(code), path)

    def open(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **more: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return self._open(file, mode, buffering, *args, **more)
        path = os.path.abspath(os.fsdecode(file))
        if not path.startswith(self.folder) or not (os.path.isfile(path) or not os.path.exists(path)):
            return self._open(file, mode, buffering, *args, **more)
        self.reach("open", path)
        reach = self.reach

        class Raw(io.FileIO):
            def write(self, content: Any) -> int:
                reach("write", path, lambda: super(Raw, self).write(memoryview(content)[: len(content) // 2]))
                return super().write(content)

        raw = Raw(path, mode.replace("b", "").replace("t", ""))
        if "+" in mode:
            buffer: Any = io.BufferedRandom(raw)
        else:
            buffer = io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, *args, **more)

    def _wrapped(self, real: Any, what: str, counts: Callable[..., bool] = lambda *_: True) -> Any:
        def call(path: Any, *args: Any, **more: Any) -> Any:
            if not isinstance(path, int) and counts(path, *args):
                self.reach(what, os.fspath(path))
            return real(path, *args, **more)

        return call


def at_step(step: int, then: str) -> None:
    """A signal to this process while it computes the gradient of a step, from 0."""
    from manyviews.engine import loop

    real, calls = loop.backpropagate, [0]

    def backpropagate(*args: Any, **more: Any) -> Any:
        if calls[0] == step:
            os.kill(os.getpid(), signal.Signals[then])
        calls[0] += 1
        return real(*args, **more)

    loop.backpropagate = backpropagate


def observation(nth: int) -> None:
    """SIGTERM while the n-th observation is made, from 0, and SIGKILL before it has ended."""
    from manyviews.engine import monitor

    real, calls = monitor.measure, [0]

    def measure(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth + 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)

    monitor.measure = measure


def clock(jumps: list[float]) -> None:
    """The clock of the day jumps by so many seconds at each reading, in turn. The monotonic clock does not."""
    real, calls = time.time, [0]

    def jumped() -> float:
        calls[0] += 1
        return real() + jumps[calls[0] % len(jumps)]

    time.time = jumped
    time.time_ns = lambda: int(jumped() * 1e9)


def hang(name: str, seconds: float, patience: float | None = None) -> None:
    """To read an image takes so many seconds."""
    from manyviews.data import canvas, slow

    if patience is not None:
        slow.PATIENCE = patience
    real = canvas.decoded

    def decoded(raw: Any, *args: Any) -> Any:
        if isinstance(raw, Path) and raw.name == name:
            time.sleep(seconds)
        return real(raw, *args)

    canvas.decoded = decoded


def change(folder: str, how: str, names: list[str], step: int) -> None:
    """Images are deleted, cut short, replaced, or away with their folder, while a step is computed."""
    from manyviews.engine import loop

    real, calls = loop.backpropagate, [0]

    def backpropagate(*args: Any, **more: Any) -> Any:
        if calls[0] == step and how == "away":
            os.rename(folder, f"{folder} away")
        elif calls[0] == step:
            for name in names:
                path = Path(folder) / name
                if how == "deleted":
                    path.unlink()
                elif how == "truncated":
                    os.truncate(path, path.stat().st_size // 2)
                else:
                    path.write_bytes(os.urandom(path.stat().st_size))
        calls[0] += 1
        return real(*args, **more)

    loop.backpropagate = backpropagate


def numbers(steps: list[int], value: str, folder: str) -> None:
    """The loss of some steps' batches is `value`, such as "nan", "inf" or "1e30", whenever they are met.

    The batches are known by their images, so a replay meets them again.
    """
    from manyviews.engine import loop

    real, calls = loop.backpropagate, [0]
    known = Path(folder) / "bad_batches.txt"  # beside the run: a resumed one meets them again, too

    def backpropagate(method: Any, views: Any, at: Any, **more: Any) -> Any:
        items = str(views[0].args[0].index.tolist())
        bad = known.read_text().splitlines() if known.exists() else []
        if calls[0] in steps and len(bad) < len(steps):
            known.write_text("\n".join([*bad, items]))
            bad.append(items)
        calls[0] += 1
        found = real(method, views, at, **more)
        if items not in bad:
            return found
        for p in method.parameters():
            if p.grad is not None:
                p.grad.mul_(float(value))
        return {k: v * float(value) for k, v in found.items()}

    loop.backpropagate = backpropagate
