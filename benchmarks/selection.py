"""How often a choice without labels agrees with one by labels: RankMe, LiDAR, alpha-ReQ and the spectrum's AUC.

python benchmarks/selection.py --data cifar10_train.parquet --out benchmarks/selection.json

Three sweeps, of SimCLR's temperature, of VICReg's covariance weight and of SimCLR's learning rate, each value with
several seeds: a small ResNet for five epochs on 5,000 of CIFAR-10's images, a minute a run on one core. The criteria
are computed on these 5,000 images, without their labels. The oracle is the accuracy on 5,000 other images of k-NN
(cosine, k = 20, temperature 0.1) and of a linear probe, which learn from 10,000 others.

For each sweep, criterion and metric: Kendall's tau between the runs' order by the criterion and by accuracy, the share
of pairs of runs in the same order, and the regret, which is how many points the run that the criterion chooses is below
the best run. "both" is all runs of both methods: what these criteria are not made for. The order by chance has a tau of
0 and half of the pairs; of 10 runs it is beyond 0.5, on either side, in one of twenty.

Runs that the file holds already are not repeated, so that the command can be interrupted. `--table` prints what it has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import facts

from manyviews import recipes
from manyviews.checkpoint import write_text
from manyviews.data import Source, open_source
from manyviews.engine.build import build_method
from manyviews.engine.loop import train
from manyviews.evaluation import evaluate
from manyviews.evaluation.unlabeled.diagnosis import diagnose
from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Monitor, Optimizer, Recipe, override
from manyviews.verbs.select import CRITERIA, METRICS, agreement, numbers_of
from manyviews.views import Global

TRAIN, KNOWN, ASKED = 5_000, 10_000, 5_000  # images to pretrain on, to learn a probe from, and to test on

_VIEW = common.small(Global(2, area=(0.2, 1.0)))
_HEADS = {"hidden_dim": 256, "output_dim": 128}
_BASE = Recipe(
    name="selection",
    method=Component("simclr", {"view": _VIEW, "temperature": 0.2, **_HEADS}),
    backbone=Component(common.CPU_RESNET.name, {**common.CPU_RESNET.settings, "channels": (16, 32, 64, 128)}),
    epochs=5,
    data=Data(canvas=32, batch_size=128, mean=common.CIFAR_MEAN, std=common.CIFAR_STD, holdout=0.0),
    optimizer=Optimizer(
        "muon", 4e-3, "sqrt", WarmupCosine(warmup=0.5), weight_decay=0.01, momentum=0.95, betas=(0.9, 0.95)
    ),
    monitor=Monitor(epochs=0, steps=100),
    test_size=32,
)
_VICREG = replace(_BASE, method=Component("vicreg", {"view": _VIEW, **_HEADS}))

SWEEPS: dict[str, tuple[Recipe, str, tuple[float, ...]]] = {
    "temperature": (_BASE, "method.temperature", (0.05, 0.1, 0.2, 0.5, 1.0)),
    "covariance weight": (_VICREG, "method.covariance_weight", (0.0, 0.1, 1.0, 4.0, 16.0)),
    "learning rate": (_BASE, "optimizer.lr", (5e-4, 1.5e-3, 4e-3, 1.2e-2)),
}
"""Of each a recipe, the setting that varies, and its values."""

Row = dict[str, Any]


def arms() -> dict[str, Recipe]:
    """Every recipe by what is special about it; the one that two sweeps share is there once."""
    return {
        _name(base, path, value): recipes.resolve(override(base, path, value))
        for base, path, values in SWEEPS.values()
        for value in values
    }


def _name(base: Recipe, path: str, value: float) -> str:
    lr = value if path == "optimizer.lr" else base.optimizer.lr
    settings = base.method.settings | ({path.removeprefix("method."): value} if path.startswith("method.") else {})
    special = {k: settings.get(k, 1.0) for k in ("temperature", "covariance_weight") if k in settings}
    return " ".join([base.method.name, *(f"{k}={v:g}" for k, v in special.items()), f"lr={lr:g}"])


def measure(recipe: Recipe, train_on: Source, known: Source, asked: Source) -> Row:
    """Train, and compute every criterion and every accuracy (in percent) of the last checkpoint."""
    method = build_method(recipe)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        train(method, recipe, train_on, Path(folder))
    seconds = time.monotonic() - start
    device = next(method.parameters()).device
    how: dict[str, Any] = {
        "test_size": recipe.test_size,
        "mean": recipe.data.mean,
        "std": recipe.data.std,
        "device": device,
    }
    seen = diagnose(method.kept_encoder, train_on, baseline=False, **how)
    report = evaluate(method.kept_encoder, known, asked, protocols=METRICS, baselines=False, **how)
    scores = report.representations["trained"].scores
    return {
        **{k: None if v is None else round(v, 4) for k, v in numbers_of(seen).items()},
        **{m: round(100 * scores[m].top1, 2) for m in METRICS},
        "state": seen.state,
        "seconds": round(seconds),
    }


def results(rows: list[Row]) -> list[Row]:
    """For each sweep, criterion and metric, how well the two agree over the runs that there are."""
    groups = {sweep: {_name(base, path, value) for value in values} for sweep, (base, path, values) in SWEEPS.items()}
    groups["both"] = set(arms())
    found = []
    for sweep, names in groups.items():
        mine = [row for row in rows if row["arm"] in names]
        if len(mine) < 3:
            continue
        labels = [f"{row['arm']} seed={row['seed']}" for row in mine]
        for criterion, good in CRITERIA.items():
            goodness = [good(row) for row in mine]
            chosen = labels[max(range(len(mine)), key=lambda i: goodness[i])]
            for metric in METRICS:
                agreed = asdict(agreement(labels, goodness, [row[metric] for row in mine]))
                numbers = {k: v if v is None or isinstance(v, str) else round(v, 3) for k, v in agreed.items()}
                where = {"sweep": sweep, "criterion": criterion, "metric": metric, "runs": len(mine)}
                found.append({**where, **numbers, "chosen": chosen})
    return found


def table(rows: list[Row]) -> str:
    """Both tables as Markdown: every arm's means over its seeds, and every sweep's agreement."""
    lines = [
        "| run | seeds | RankMe | LiDAR | alpha | AUC | k-NN | linear | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in arms():
        mine = [row for row in rows if row["arm"] == name]
        if mine:
            keys = ("rankme", "lidar", "alpha_req", "auc", *METRICS, "seconds")
            means = [statistics.mean(r[k] for r in mine if r[k] is not None) for k in keys]
            lines.append(f"| {name} | {len(mine)} | " + " | ".join(f"{v:.4g}" for v in means) + " |")
    lines += [
        "",
        "| sweep | runs | criterion | tau (k-NN) | pairs | regret | tau (linear) | pairs | regret |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    found = {(r["sweep"], r["criterion"], r["metric"]): r for r in results(rows)}
    for sweep, criterion in dict.fromkeys((s, c) for s, c, _ in found):
        both = [found[sweep, criterion, metric] for metric in METRICS]
        cells = [f"{_cell(r['tau'])} | {_cell(r['pairs'])} | {r['regret']:.1f}" for r in both]
        lines.append(f"| {sweep} | {both[0]['runs']} | {criterion} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10's training images, a Parquet file")
    parser.add_argument("--out", type=Path, required=True, help="the file of results, which grows")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--most", type=int, help="stop after so many runs")
    parser.add_argument("--table", action="store_true", help="print what the file holds, and run nothing")
    options = parser.parse_args()
    state = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    if not options.table:
        images = open_source(options.data)
        order = np.random.default_rng(0).permutation(len(images))
        parts = np.split(order[: TRAIN + KNOWN + ASKED], np.cumsum([TRAIN, KNOWN]))
        train_on, known, asked = (images.subset(np.sort(part)) for part in parts)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        state = {**facts(device, "manyviews", "torch"), "seeds": options.seeds, "rows": state["rows"]}
        done = {(row["arm"], row["seed"]) for row in state["rows"]}
        wanted = [(name, seed) for seed in range(options.seeds) for name in arms() if (name, seed) not in done]
        for name, seed in wanted[: options.most]:
            row = measure(replace(arms()[name], seed=seed), train_on, known, asked)
            state["rows"].append({"arm": name, "seed": seed, "commit": state["commit"], **row})
            state["results"] = results(state["rows"])
            write_text(options.out, json.dumps(state, indent=1) + "\n")
            numbers = f"RankMe {row['rankme']:.1f}, LiDAR {row['lidar']:.1f}, k-NN {row['knn']}, linear {row['linear']}"
            print(f"{name}, seed {seed}: {numbers} after {row['seconds']} s", flush=True)
    print(table(state["rows"]))


if __name__ == "__main__":
    main()
