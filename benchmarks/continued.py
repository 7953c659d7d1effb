"""Continued pretraining on clothes from networks that were trained on other photographs, and what they forget.

python benchmarks/continued.py --weights mobilenet_v2.pth efficientnet_lite0.pth [--data data] [--out continued.json]

Hours; the same command continues. Each case, NETWORK:ARM:MINUTES:SEED, is a run of as many steps as one idle core takes
in these minutes, by the rates below: a busy machine does not change the results. Before and after it, k-NN is measured
on test images of clothes, the new domain, and of dogs, which ImageNet's networks know well.

The arms, all with SimCLR and the settings of the recipe photos_cpu_small:
    full      from the weights, with the defaults of --init
    faster    the same with a tenth of the recipe's learning rate, in place of a hundredth
    at_once   the same without first steps for the heads alone
    tracked   the same with the statistics of BatchNorm following those of the views
    last      the last two stages learn
    same      the same network from nothing, as many steps
    scratch   the recipe as it is, with its small network and views of 48 pixels, for as many minutes
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import _bench
import torch

import manyviews as mv
from manyviews.data import open_source
from manyviews.engine.monitor import hold_out
from manyviews.progress import duration
from manyviews.settings import Component, Recipe

RECIPE = "photos_cpu_small"
LARGER = {"method.view.size": 96, "test_size": 128, "step.precision": "float32", "data.batch_size": 64}
"""Views in which a network that was made for 224 pixels sees what it knows."""

ARMS: dict[str, dict[str, Any]] = {
    "full": LARGER,
    "faster": {**LARGER, "optimizer.lr": 1.6e-3},
    "at_once": {**LARGER, "adaptation": "Full(keep_statistics=True)"},
    "tracked": {**LARGER, "adaptation": "Warmed(1)"},
    "last": {**LARGER, "adaptation": "LastBlocks(2)"},
    "same": LARGER,
    "scratch": {},
}
RATES = {"mobilenetv2_100": 30.0, "efficientnet_lite0": 26.0, "": 280.0}
"""Images that an idle core trains on in a second: of each network with the larger views, and of the recipe as it is."""

MINUTES = (1, 5, 20)
SETS = {"clothes": "clothing10_192.zip", "dogs": "imagewoof160_mini.zip"}


def accuracies(weights: Any, data: Path) -> dict[str, float]:
    """k-NN in percent on the test images of both sets."""
    found = {}
    for name, file in SETS.items():
        report = mv.evaluate(weights, str(data / file), protocols=("knn",), baselines=False)
        found[name] = round(100 * report.representations["trained"].scores["knn"].top1, 2)
    return found


def trained(case: str, file: Path, data: Path, folder: Path) -> dict[str, Any]:
    """A run and its accuracies."""
    network, arm, minutes, seed = case.split(":")
    images = str(data / SETS["clothes"])
    settings = {"seed": int(seed), "monitor.epochs": 0, "monitor.classes": "no", **ARMS[arm]}
    init = None if arm in ("same", "scratch") else file
    batch = ARMS[arm].get("data.batch_size", mv.recipes.get(RECIPE).data.batch_size)
    per_epoch = len(hold_out(open_source(images), 0.05)[0]) // batch
    rate = RATES["" if arm == "scratch" else network]
    steps = max(1, round(60 * float(minutes) * rate / batch))
    out = folder / case.replace(":", "-")
    recipe = with_network(network) if arm == "same" else RECIPE
    run = mv.pretrain(images, recipe, epochs=steps / per_epoch, init=init, settings=settings, out=out)
    assert run.summary is not None
    last = {k.removeprefix("monitor/"): v for k, v in run.summary["last"].items() if k.startswith("monitor/")}
    kept = {k: round(v, 4) for k, v in last.items() if k in ("cka", "cosine", "moved")}
    return {
        "knn": accuracies(run.folder, data),
        "steps": steps,
        "seconds": round(run.summary["seconds"]),
        **({"kept": kept} if kept else {}),
    }


def with_network(network: str) -> Recipe:
    """The recipe with another network, without weights."""
    return replace(mv.recipes.get(RECIPE), backbone=Component(network))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data"))
    options.add_argument("--weights", type=Path, nargs="+", required=True)
    options.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    options.add_argument("--minutes", type=float, nargs="*", default=MINUTES)
    options.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options.add_argument("--out", type=Path)
    asked = options.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    found = {"before": {}, "runs": {}} | found
    torch.set_num_threads(1)
    files = {mv.load(file).encoder.name: file for file in asked.weights}
    for network, file in files.items():
        if network not in found["before"]:
            found["before"][network] = accuracies(mv.load(file, test_size=LARGER["test_size"]), asked.data)
            print(f"{network} before: {found['before'][network]}", flush=True)
            _bench.write(asked.out, found)
    cases = [
        f"{'' if arm == 'scratch' else network}:{arm}:{minutes:g}:{seed}"
        for seed in asked.seeds
        for minutes in asked.minutes
        for arm in asked.arms
        for network in files
    ]
    with tempfile.TemporaryDirectory() as folder:
        for case in dict.fromkeys(cases):
            if case in found["runs"]:
                continue
            found["runs"][case] = trained(case, files.get(case.partition(":")[0], Path()), asked.data, Path(folder))
            found["facts"] = _bench.facts(torch.device("cpu"))
            torch.set_num_threads(1)
            print(f"{case}: {found['runs'][case]}, {duration(found['runs'][case]['seconds'])}", flush=True)
            _bench.write(asked.out, found)


if __name__ == "__main__":
    main()
