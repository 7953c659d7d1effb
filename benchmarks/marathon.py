"""A long run of a tiny method: are memory, open files, threads and speed as flat at the end as at the start?

python benchmarks/marathon.py --steps 1000000 --out benchmarks/marathon.json [--minutes 60] [--run marathon]

A process of its own trains MoCo v2 (a moving average, a queue) on 512 random images, with a transformer of one block.
It writes a log line every 20 steps, a checkpoint every minute, and measures the encoder every 12,000 steps. This
process watches it from outside, by /proc and the log. Stopped by --minutes or Ctrl-C, it goes on where it was when it
is started again: the run resumes, and the JSON holds the samples of every session.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import _bench
import numpy as np
import psutil
import torch
from PIL import Image

import manyviews as mv
from manyviews.settings import Component, Data, Monitor, Optimizer, Recipe, Step
from manyviews.views import Global

IMAGES, SIDE, BATCH, HOLDOUT = 512, 16, 4, 0.05
POLL = 2.0  # seconds between looks at the log


def recipe(steps: int, images: int) -> Recipe:
    """So many steps, or the fewest whole epochs above."""
    heads = {"hidden_dim": 16, "output_dim": 8, "queue_size": 64, "momentum": 0.99}
    vit = {"img_size": 8, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}
    return Recipe(
        name="marathon",
        method=Component("moco_v2", {"view": Global(2, size=8), **heads}),
        backbone=Component("vit_tiny_patch16_224", vit),
        epochs=steps / (images // BATCH),
        data=Data(canvas=SIDE, batch_size=BATCH, holdout=HOLDOUT),
        optimizer=Optimizer("sgd", lr=0.01),
        step=Step(precision="float32"),
        monitor=Monitor(epochs=100, steps=20, checkpoint_minutes=1),
        test_size=8,
    )


def images(folder: Path) -> Path:
    """Random pictures, made once."""
    if not folder.exists():
        folder.mkdir(parents=True)
        draw = np.random.default_rng(0)
        for i in range(IMAGES):
            Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def train(folder: Path, steps: int) -> None:
    """What the process that is watched does."""
    torch.set_num_threads(1)
    run = folder / "run"
    if (run / "recipe.json").exists():
        mv.resume(run)
    else:
        mv.pretrain(images(folder / "images"), recipe(steps, round(IMAGES * (1 - HOLDOUT))), out=run)


def last_step(log: Path) -> int:
    """The step of the last whole line."""
    if not log.exists():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def sample(process: psutil.Process, step: int, log: Path, session: int) -> dict[str, Any]:
    """The process as it is now."""
    with process.oneshot():
        used = process.cpu_times()
        return {
            "session": session,
            "step": step,
            "processor_seconds": round(used.user + used.system, 2),
            "resident_mib": round(process.memory_info().rss / 2**20, 2),
            "open_files": process.num_fds(),
            "threads": process.num_threads(),
            "log_bytes": log.stat().st_size,
        }


def watch(folder: Path, options: argparse.Namespace, session: int) -> list[dict[str, Any]]:
    """One session: samples every so many steps until the run or the time ends."""
    log, found, end = folder / "run" / "log.jsonl", list[dict[str, Any]](), time.monotonic() + 60 * options.minutes
    begun = due = last_step(log)
    command = [sys.executable, __file__, "--serve", str(folder), "--steps", str(options.steps)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = psutil.Process(child.pid)
    try:
        while child.poll() is None and time.monotonic() < end:
            step = last_step(log)
            if step >= due and step > begun:
                found.append(sample(process, step, log, session))
                due = step + options.every
            time.sleep(POLL)
    except (KeyboardInterrupt, psutil.NoSuchProcess):
        pass
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)  # it saves
        child.wait()
    return found


def summary(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The last session's growth, from its second sample on: the first is of a process that still warms up."""
    rows = [row for row in samples if row["session"] == samples[-1]["session"]][1:]
    if len(rows) < 4:
        return {}
    a, b = rows[0], rows[-1]
    paces = [
        (new["processor_seconds"] - old["processor_seconds"]) / (new["step"] - old["step"]) * 1e3
        for old, new in pairwise(rows)
    ]
    third = max(1, len(paces) // 3)
    slope = np.polyfit([row["step"] for row in rows], [row["resident_mib"] for row in rows], 1)[0]
    return {
        "from_step": a["step"],
        "to_step": b["step"],
        "resident_mib": [a["resident_mib"], b["resident_mib"]],
        "kib_per_1000_steps": round(float(slope) * 1024 * 1000, 2),
        "open_files": [min(row["open_files"] for row in rows), max(row["open_files"] for row in rows)],
        "threads": [min(row["threads"] for row in rows), max(row["threads"] for row in rows)],
        "processor_ms_per_step": [round(median(paces[:third]), 3), round(median(paces[-third:]), 3)],
        "log_bytes_per_step": round((b["log_bytes"] - a["log_bytes"]) / (b["step"] - a["step"]), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=1000, help="steps between samples")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long this call may take")
    parser.add_argument("--run", type=Path, default=Path("marathon"), help="a folder for images and run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        train(options.serve, options.steps)
        return
    known = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    samples = known.get("samples", [])
    session = samples[-1]["session"] + 1 if samples else 1
    samples += watch(options.run, options, session)
    about = _bench.facts(torch.device("cpu"), "manyviews", "torch", "timm", "numba")
    reached = last_step(options.run / "run" / "log.jsonl")
    found = {**about, "steps_asked": options.steps, "steps_taken": reached, **summary(samples)}
    print(json.dumps(found, indent=1))
    _bench.write(options.out, {**found, "samples": samples})


if __name__ == "__main__":
    main()
