"""Beside other processes: how fast a run is, and whether one with a budget ends in time.

python benchmarks/busy.py [--data data] [--before CHECKOUT] [--rounds 3] [--budgets 10m ...] [--out busy.json]

Linux, two cores. About five minutes a round. Each case starts `manyviews pretrain` as a user would, without any setting
of threads, on CIFAR-10: alone, two at once, and beside a process that takes one core. Speeds are those of the run's log
after its first 20 seconds. With --before, another checkout of this project takes turns with this one.

--budgets are runs of `manyviews pretrain clothing10_192.zip --budget TIME`, alone, and beside a process that begins to
take one core after a third of the time. What is measured is the time of the whole command.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _bench
import torch

import manyviews as mv
from manyviews.progress import seconds

SKIPPED, MEASURED = 20.0, 40.0
"""Seconds that a case is given before it is measured, and in which it is."""

RECIPES = ("simclr_cpu", "byol_cifar10")
"""A small network, whose steps have many short operations, and a ResNet-18."""

BUSY = "while True: pass"


def start(tree: Path, recipe: str, data: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A run of its own, as the command line starts it."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    words = ["pretrain", str(data / "cifar10_train.parquet"), "--recipe", recipe, "--out", str(folder)]
    settings = ["--set", "monitor.steps=1", "--set", "monitor.epochs=0", "--set", "data.holdout=0"]
    return subprocess.Popen(
        [sys.executable, "-m", "manyviews", *words, *settings],
        env={**environment, "PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""},
        cwd=tree,
        stdout=subprocess.DEVNULL,
        stderr=(folder.parent / f"{folder.name}.err").open("wb"),
    )


def rows(folder: Path) -> list[dict[str, float]]:
    """The lines of the run's log so far."""
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [row for row in map(json.loads, lines) if "images_per_second" in row]


def speeds(tree: Path, recipe: str, runs: int, busy: int, data: Path) -> list[float]:
    """Images per second of runs side by side, beside so many busy processes."""
    with tempfile.TemporaryDirectory() as place:
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
        folders = [Path(place) / str(i) for i in range(runs)]
        begun = [start(tree, recipe, data, folder) for folder in folders]
        try:
            while not all(rows(folder) for folder in folders):
                if any(run.poll() is not None for run in begun):
                    raise RuntimeError((Path(place) / "0.err").read_text()[-2000:])
                time.sleep(0.5)
            time.sleep(SKIPPED)
            first = [len(rows(folder)) for folder in folders]
            time.sleep(MEASURED)
            # The batch over the mean time of a step: what is logged between steps is theirs.
            measured = [rows(folder)[n:] for folder, n in zip(folders, first, strict=True)]
            return [statistics.harmonic_mean([r["images_per_second"] for r in found] or [1e-9]) for found in measured]
        finally:
            for process in (*others, *begun):
                process.send_signal(signal.SIGKILL)
                process.wait()


def budget(text: str, busy: bool, data: Path) -> dict[str, float]:
    """Seconds that were promised, and that the command took."""
    promised = seconds(text)
    with tempfile.TemporaryDirectory() as place:
        out, begun = Path(place) / "run", time.monotonic()
        words = ["pretrain", str(data / "clothing10_192.zip"), "--budget", text, "--out", str(out)]
        environment = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
        run = subprocess.Popen(
            [sys.executable, "-m", "manyviews", *words],
            env={**environment, "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        other = None
        if busy:
            time.sleep(promised / 3)
            other = subprocess.Popen([sys.executable, "-c", BUSY])
        try:
            run.wait()
            took = time.monotonic() - begun
        finally:
            if other is not None:
                other.kill()
                other.wait()
        recipe = mv.Run(out).recipe
        summary = mv.Run(out).summary or {}
        return {
            "promised": promised,
            "took": round(took, 1),
            "expected_epochs": recipe.epochs,
            "steps": summary["steps"],
        }


CASES = {"alone": (1, 0), "two runs": (2, 0), "beside a busy process": (1, 1)}
"""Runs side by side, and busy processes beside them."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data"))
    options.add_argument("--before", type=Path)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--recipes", nargs="*", default=RECIPES)
    options.add_argument("--budgets", nargs="*", default=[])
    options.add_argument("--out", type=Path)
    asked = options.parse_args()
    trees = {"now": Path(__file__).resolve().parents[1]} | ({"before": asked.before.resolve()} if asked.before else {})
    found: dict[str, Any] = {**_bench.facts(torch.device("cpu")), "images_per_second": {}, "budgets": {}}
    for recipe in asked.recipes:
        cases = found["images_per_second"][recipe] = {case: {name: [] for name in trees} for case in CASES}
        for _ in range(asked.rounds):
            for case, (runs, busy) in CASES.items():
                for name, tree in trees.items():
                    cases[case][name].append(round(sum(speeds(tree, recipe, runs, busy, asked.data.resolve())), 1))
                    print(f"{recipe}, {case}, {name}: {cases[case][name][-1]} images/s", flush=True)
                    _bench.write(asked.out, found)
    for text in asked.budgets:
        for busy in (False, True):
            case = f"{text}, {'beside a busy process' if busy else 'alone'}"
            found["budgets"][case] = budget(text, busy, asked.data)
            print(f"{case}: {found['budgets'][case]}", flush=True)
            _bench.write(asked.out, found)


if __name__ == "__main__":
    main()
