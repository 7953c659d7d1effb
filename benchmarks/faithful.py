"""Whether runs on the compiled views of a CPU learn what runs on the batched operations of other devices learn.

python benchmarks/faithful.py --data data --out benchmarks/faithful.json

The recipe `simclr_cpu`, shortened, on CIFAR-10's training images, with each kind of views and several seeds; the number
is the k-NN accuracy (cosine, k = 20, temperature 0.1) on the test images of the last checkpoint. Both kinds make the
same draws, so that what differs are the last bits, and what grows from them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import _bench
import torch
from torch import Tensor

from manyviews import recipes
from manyviews.data import open_source
from manyviews.engine import loop
from manyviews.engine.build import build_method
from manyviews.evaluation import extract, knn
from manyviews.views import color as ops
from manyviews.views import compiled
from manyviews.views.distort import Distorting
from manyviews.views.geometry import crop_resize


def batched(
    pixels: Tensor, boxes: Tensor, flip: Tensor, size: int, mean: Any, std: Any, paint: Distorting | None = None
) -> Tensor:
    """What `compiled.render` does, as it is done on other devices."""
    x = crop_resize(pixels, boxes, size, flip)
    if paint is not None:
        x = paint(x, slice(None))
    out = torch.empty(len(x), 3, size, size, memory_format=torch.channels_last)
    return ops.normalize(x, mean, std, out)


def run(job: tuple[str, int, float, Path]) -> dict[str, Any]:
    """One run, on one thread."""
    views, seed, epochs, data = job
    torch.set_num_threads(1)
    if views == "batched":
        compiled.render = batched
    recipe = recipes.get("simclr_cpu")
    recipe = replace(recipe, seed=seed, epochs=epochs, monitor=replace(recipe.monitor, epochs=0))
    train, test = (open_source(data / f"cifar10_{part}.parquet") for part in ("train", "test"))
    method, start = build_method(recipe), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        loop.train(method, recipe, train, Path(folder))
    seconds = time.process_time() - start
    how = {"test_size": recipe.test_size, "mean": recipe.data.mean, "std": recipe.data.std}
    known, asked = (extract(method.kept_encoder, source, **how) for source in (train, test))
    assert known.labels is not None and asked.labels is not None
    score = 100 * knn(known.x, known.labels, asked.x, asked.labels, ks=[20]).weighted[20]
    return {"views": views, "seed": seed, "knn": round(score, 2), "cpu_seconds": round(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of CIFAR-10's Parquet files")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    kinds = ("compiled", "batched")
    jobs = [(views, seed, options.epochs, options.data) for seed in range(options.seeds) for views in kinds]
    rows = []
    # A process for each run: what one changes does not stay for the next.
    with ProcessPoolExecutor(options.processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        for row in pool.map(run, jobs):
            rows.append(row)
            print(f"{row['views']:8}  seed {row['seed']}: k-NN {row['knn']:.2f}", flush=True)
    scores = {kind: [row["knn"] for row in rows if row["views"] == kind] for kind in kinds}
    differences = [a - b for a, b in zip(*scores.values(), strict=True)]
    summary = {
        **{kind: {"mean": statistics.mean(s), "deviation": statistics.stdev(s)} for kind, s in scores.items()},
        "difference": {"mean": statistics.mean(differences), "deviation": statistics.stdev(differences)},
    }
    for name, found in summary.items():
        print(f"{name:10} {found['mean']:6.2f} ± {found['deviation']:.2f}")
    facts = _bench.facts(torch.device("cpu"), "manyviews", "torch", "numba")
    _bench.write(options.out, {**facts, "epochs": options.epochs, "rows": rows, "summary": summary})


if __name__ == "__main__":
    main()
