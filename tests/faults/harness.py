"""Runs that a fault hits, what they leave, and the run that nothing interrupted, with which they are compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
VARY = {"images_per_second", "data_wait"}  # numbers of a line of the log that are times


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code, or minus the signal; its seconds; and what it printed."""

    code: int
    seconds: float
    text: str


class Server:
    """The process of `tests.faults.server`, which runs commands one after the other."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        own = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MANYVIEWS_PRECISION": "float32"}
        own |= {"XDG_CACHE_HOME": str(scratch / "cache"), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server", str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **own},
        )
        self._answer()

    def run(
        self,
        *args: str | Path,
        fault: Mapping[str, Any] | None = None,
        signals: Sequence[tuple[float, str]] = (),
        limit: float = 900.0,
        brief: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run the command line with a fault, with signals after so many seconds each; `brief` without pictures."""
        output = self.scratch / "output.txt"
        request = {
            "args": [str(a) for a in args],
            "fault": fault,
            "signals": list(signals),
            "limit": limit,
            "brief": brief,
            "output": str(output),
            "environment": dict(environment or {}),
        }
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        found = self._answer()
        return Ended(found["code"], found["seconds"], output.read_text(errors="replace"))

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server has died"
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def contents(run: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on whether it was interrupted, in comparable form."""
    found: dict[str, Any] = {}
    for name in ("checkpoint", "encoder"):
        with safe_open(run / f"{name}.safetensors", framework="numpy") as file:
            found |= {f"{name}: {k}": file.get_tensor(k).tobytes() for k in sorted(file.keys())}
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found["log"] = [{k: v for k, v in row.items() if k not in VARY} for row in rows]
    summary = json.loads((run / "summary.json").read_text())
    last = {k: v for k, v in summary.pop("last").items() if k not in VARY}
    found["summary"] = {k: v for k, v in summary.items() if k != "seconds"} | {"last": last}
    found["files"] = sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and p.name != ".lock")
    return found


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The names under which two runs' contents differ, and a little of how."""
    found = []
    for key in sorted({*a, *b}):
        x, y = a.get(key), b.get(key)
        if x == y:
            continue
        if key == "log" and x and y:
            steps = [[(r["step"], "monitor/dim" in r) for r in rows] for rows in (x, y)]
            found.append(f"log: {steps[0]} and {steps[1]}" if steps[0] != steps[1] else "log: other numbers")
        elif key.partition(":")[0] in ("checkpoint", "encoder"):
            found.append(key)
        else:
            found.append(f"{key}: {str(x)[:400]} and {str(y)[:400]}")
    return found


def pictures(folder: Path, n: int = 60, side: int = 32) -> Path:
    """A folder of small pictures of two kinds."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(n):
        kind = ("bright", "dark")[i % 2]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (side, side, 3), dtype=np.uint8) + (128 if kind == "bright" else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{i:03}.png")
    return folder
