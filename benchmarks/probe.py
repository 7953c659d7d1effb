"""Time of a linear probe, with numbers below 1.2e-38 as they are and taken for zero: see `machine.flushed`.

python benchmarks/probe.py --out benchmarks/probe.json [--threads 1]

Normal features around class centers, near to each other or far apart: the surer a probe is, the smaller its numbers.
The two take turns, and must choose the same settings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import _bench
import torch

from manyviews import machine
from manyviews.evaluation import Task, linear_probe

CASES = {"few": (400, 512, 1.0), "easy": (2400, 256, 3.0), "hard": (2400, 256, 0.3)}
"""Images to learn from, dimensions, and the deviation of class centers."""

CLASSES = 10


def task(images: int, dims: int, apart: float) -> Task:
    generator = torch.Generator().manual_seed(0)
    centers = apart * torch.randn(CLASSES, dims, generator=generator)
    labels = torch.randint(CLASSES, (images + images // 4,), generator=generator)
    x = centers[labels] + torch.randn(len(labels), dims, generator=generator)
    return Task(x[:images], labels[:images], x[images:], labels[images:], x[images:], CLASSES)


def one(case: Task, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"as they are": [], "zero": []}
    flushed, chosen = machine.flushed, []
    for _ in range(rounds):
        for name, inside in (("as they are", contextlib.nullcontext), ("zero", flushed)):
            machine.flushed = inside
            start = time.perf_counter()
            chosen.append(linear_probe(case).validation)
            seconds[name].append(time.perf_counter() - start)
    machine.flushed = flushed
    ratios = _bench.ratios(seconds["as they are"], seconds["zero"])
    found = {name: round(median(values), 3) for name, values in seconds.items()}
    return {**found, "ratios": ratios, "same": all(validation == chosen[0] for validation in chosen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {name: one(task(*sizes), options.rounds) for name, sizes in CASES.items()}
    print(json.dumps(found, indent=1))
    about = _bench.facts(torch.device("cpu"), "manyviews", "torch")
    _bench.write(options.out, {**about, "threads": options.threads, "seconds": found})


if __name__ == "__main__":
    main()
