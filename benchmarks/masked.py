"""Masked and self-distilled transformers beside each other: what each learns in the same time on two cores.

python benchmarks/masked.py [--data data] [--out benchmarks/masked.json] [--cases dino:cifar10:0 ...]

Hours; the same command continues. First the machine must be idle: the epochs that fit into --minutes are measured for
each method and set. Then each case, METHOD:SET:SEED, is trained for these epochs on one thread, so that two of them,
started in two shells with other --cases and --out, share two cores. Every method has the same network, batch,
optimizer and rate; its own settings are those of its `_cifar10` recipe. Evaluated with the last checkpoint: k-NN and a
linear probe on test images, and patch features by linear segmentation of CamVid's streets.

The sets: cifar10, ViT-Ti/4 on 50,000 images of 32 pixels, judged with 10,000 of them and 5,000 test images; imagewoof,
ViT-S/16 at 112 pixels on 1,500 photographs of dogs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import torch
from photos import scores

import manyviews as mv
from manyviews import recipes
from manyviews.data import open_source
from manyviews.engine import pace
from manyviews.progress import duration
from manyviews.settings import Component, Recipe, override
from manyviews.views import DINO_LOCAL, DINO_PAIR, Global, Local

METHODS = ("ibot", "dinov2", "ijepa", "mae", "dino")
SETS = ("cifar10", "imagewoof")

COMMON: dict[str, Any] = {
    "data.batch_size": 64,
    "data.holdout": 0.0,
    "monitor.epochs": 0.0,
    "optimizer.lr": 1e-3,
    "optimizer.lr_scaling": "constant",
}
"""The same for all. The batch is small, so that there are some hundred steps in the time."""

DOGS: dict[str, Any] = {
    "backbone": Component("vit_small_patch16_224", {"img_size": 112}),
    "data.canvas": 160,
    "data.mean": (0.485, 0.456, 0.406),
    "data.std": (0.229, 0.224, 0.225),
    "test_size": 112,
}
CROPS = (Global(2, area=(0.3, 1.0), size=112, color=DINO_PAIR), Local(4, area=(0.1, 0.3), size=48, color=DINO_LOCAL))


def place(name: str, data: Path) -> tuple[str, str | None]:
    """Images to train on with their labels, and test images if they lie elsewhere."""
    if name == "cifar10":
        return str(data / "cifar10_train.parquet"), str(data / "cifar10_test.parquet")
    return str(data / "imagewoof160_mini.zip"), None


def recipe(method: str, name: str) -> Recipe:
    """The method on a set, without its epochs."""
    made = recipes.get(f"{method}_cifar10")
    changes = dict(COMMON)
    if name == "imagewoof":
        own = {k: v for k, v in made.backbone.settings.items() if k not in ("img_size", "patch_size")}
        backbone = replace(DOGS["backbone"], settings={**own, **DOGS["backbone"].settings})
        views = {"method.views": CROPS} if "views" in made.method.settings else {"method.view.size": 112}
        changes |= DOGS | {"backbone": backbone} | views
    for path, value in changes.items():
        made = override(made, path, value)
    return made


def chosen(method: str, name: str, minutes: float, data: Path) -> float:
    """The epochs that fit into so many minutes of this machine, which must be idle."""
    images, _ = place(name, data)
    made = recipe(method, name)
    found = pace.measure(made, open_source(images), torch.device("cpu"))
    assert found is not None
    return round(found.epochs(made, 60 * minutes), 3)


def judged(weights: Any, name: str, data: Path, streets: Path, baseline: bool) -> dict[str, dict[str, float]]:
    """k-NN and linear accuracy, and the mIoU of patch features, percent, by representation."""
    known: Any
    test: Any
    known, test = place(name, data)
    if name == "cifar10":  # all 60,000 would take half as long as the training
        known = open_source(known).subset(np.arange(10_000))
        test = open_source(test).subset(np.arange(5_000))
    found = scores(mv.evaluate(weights, known, test, protocols=("knn", "linear"), baselines=baseline))
    dense = mv.segment(weights, streets, baseline=baseline, test_size=64 if name == "cifar10" else 240)
    found["trained"]["miou"] = round(100 * dense.value, 2)
    if baseline:
        found["untrained"]["miou"] = round(100 * dense.baselines["an untrained encoder"], 2)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data"))
    options.add_argument("--minutes", type=float, default=15.0)
    cases = [f"{m}:{s}:{seed}" for seed in range(3) for s in SETS for m in METHODS]
    options.add_argument("--cases", nargs="*", default=cases)
    options.add_argument("--out", type=Path)
    asked = options.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    found = {"minutes": asked.minutes, "epochs": {}, "runs": {}} | found
    wanted = [case.split(":") for case in asked.cases]
    for method, name in {(method, name): None for method, name, _ in wanted}:
        if f"{method}:{name}" not in found["epochs"]:
            found["epochs"][f"{method}:{name}"] = chosen(method, name, asked.minutes, asked.data)
            print(f"{method} on {name}: {found['epochs'][f'{method}:{name}']} epochs", flush=True)
            _bench.write(asked.out, found)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(asked.data / "camvid240_segmentation.zip") as archive:
            archive.extractall(folder / "streets")
        for method, name, seed in wanted:
            case = f"{method}:{name}:{seed}"
            if case in found["runs"]:
                continue
            made = replace(recipe(method, name), epochs=found["epochs"][f"{method}:{name}"], seed=int(seed))
            run = mv.pretrain(place(name, asked.data)[0], made, out=folder / case.replace(":", "-"))
            assert run.summary is not None
            found["runs"][case] = {
                "scores": judged(run.folder, name, asked.data, folder / "streets", baseline=seed == "0"),
                "steps": run.summary["steps"],
                "seconds": round(run.summary["seconds"]),
                **_bench.facts(torch.device("cpu")),
            }
            torch.set_num_threads(1)
            print(f"{case}: {found['runs'][case]['scores']}, {duration(run.summary['seconds'])}", flush=True)
            _bench.write(asked.out, found)


if __name__ == "__main__":
    main()
