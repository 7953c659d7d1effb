"""What the benchmarks against other libraries share: processes that take turns, real images, statistics, facts.

Linux only: processes are bound to cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from manyviews.machine import describe

Answer = dict[str, Any]

# -- processes that take turns ---------------------------------------------------------------------------------------


class Worker:
    """This script in a process of its own, bound to some cores, that does what it is asked and waits in between.

    One library to a process: none inherits another's threads, caches or settings. A process that waits for its turn
    uses no processor.

    Args:
        script: whose `--serve` calls `serve`.
        role: told to it, whatever JSON can hold.
        cores: how many of this process's cores it may use; 0 for all.
        folder: for its temporary files.
    """

    def __init__(self, script: str, role: Any, cores: int, folder: str) -> None:
        allowed = sorted(os.sched_getaffinity(0))[: cores or None]
        # Set before the process starts, for thread pools look at it when they are loaded.
        threads = {"OMP_NUM_THREADS": str(len(allowed)), "MKL_NUM_THREADS": str(len(allowed))}
        quiet = {"NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, script, "--serve", json.dumps(role)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **threads, **quiet, "TMPDIR": folder},
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )

    def ask(self, question: Any) -> Answer:
        """Its answer. Raises RuntimeError with the end of its error output when it died."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: `hear` says of what
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self.hear()

    def hear(self) -> Answer:
        """What it says next; the first thing is that it is ready."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(self._errors.read().decode(errors="replace")[-3000:])
        return json.loads(line)

    def close(self) -> None:
        """End the process: it leaves at the end of its input."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died with something unread
            self._process.stdin.close()
        self._process.wait()
        self._errors.close()


@contextlib.contextmanager
def workers(script: str, roles: dict[str, Any], cores: int = 0) -> Iterator[dict[str, Worker]]:
    """A process for each role, all ready: none still imports when the first is asked."""
    with tempfile.TemporaryDirectory() as folder:
        found = {name: Worker(script, role, cores, folder) for name, role in roles.items()}
        try:
            for worker in found.values():
                worker.hear()
            yield found
        finally:
            for worker in found.values():
                worker.close()


class Turns:
    """What a worker says and hears, a JSON line each. All that libraries print goes to the error output."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        torch.set_num_threads(len(os.sched_getaffinity(0)))

    def say(self, answer: Answer) -> None:
        print(json.dumps(answer), file=self._out, flush=True)

    def wait(self) -> Any:
        """The next question; ends the process when there are no more."""
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # at once, whatever framework this is called from
        return json.loads(line)


def serve(answer: Callable[[Any], Answer]) -> None:
    """Answer questions until there are no more."""
    turns = Turns()
    turns.say({"ready": True})
    while True:
        turns.say(answer(turns.wait()))


def parser(doc: str | None, quick: str, gpu: str) -> argparse.ArgumentParser:
    """The options that a benchmark against other libraries takes.

    Args:
        doc: of the script.
        quick: what --quick does.
        gpu: what --gpu measures.
    """
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", type=Path, default=Path("data"))
    found.add_argument("--out", type=Path)
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--quick", action="store_true", help=quick)
    found.add_argument("--gpu", nargs="?", const="also", choices=("also", "only"), help=gpu)
    found.add_argument("--serve", help=argparse.SUPPRESS)
    return found


# -- images ----------------------------------------------------------------------------------------------------------


def photographs(data: Path, n: int) -> list[bytes]:
    """JPEG files of dogs, short side 160: `n` of the 1,500, evenly spread."""
    with zipfile.ZipFile(data / "imagewoof160_mini.zip") as files:
        names = sorted(name for name in files.namelist() if name.startswith("train/") and name.endswith(".jpg"))
        return [files.read(names[i]) for i in np.linspace(0, len(names) - 1, n).astype(int)]


def cifar10(data: Path, n: int) -> list[bytes]:
    """WebP files, without loss, of CIFAR-10's first `n` training images."""
    rows = next(pq.ParquetFile(data / "cifar10_train.parquet").iter_batches(n, columns=["image"]))
    return [row["bytes"] for row in rows.column("image").to_pylist()]


def decoded(files: Iterable[bytes]) -> list[Image.Image]:
    """RGB images in memory."""
    return [Image.open(io.BytesIO(file)).convert("RGB") for file in files]


# -- statistics and facts --------------------------------------------------------------------------------------------


def spread(values: Sequence[float], digits: int = 4) -> list[float]:
    """Lower quartile, median and upper quartile, to so many significant digits."""
    cuts = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return [float(f"{cut:.{digits}g}") for cut in cuts]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """`spread` of the ratios of neighbors in time."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def installed(*packages: str) -> dict[str, str | None]:
    """Their versions; None for one that is not there."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()


# When this is imported, before anything is measured: commits that are made meanwhile are not what was. Results that
# benchmarks wrote before this one are no change of what is measured.
_CHANGED = _git("status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)benchmarks/*.json")
_COMMIT = _git("rev-parse", "--short", "HEAD") + (" changed" if _CHANGED else "")
_BEGUN = datetime.now(UTC).isoformat(timespec="minutes")


def facts(device: torch.device, *packages: str) -> Answer:
    """What a reader must know to believe a number, or to measure it again."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return {
        "machine": describe(device),
        "processor": _processor(),
        "commit": _COMMIT,
        "begun": _BEGUN,
        "command": " ".join(["python", *sys.argv]),
        "versions": installed(*packages),
    }


def write(path: Path | None, found: Answer) -> None:
    """As JSON, when there is a path."""
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"
