"""The three papers' directional claims, tried on CIFAR-10: which hold at a size that this machine can do.

python benchmarks/claims.py --train cifar10_train.parquet --test cifar10_test.parquet --out benchmarks/claims.json

A claim says that one arm is better than another. Every arm is one method with one change, trained with the same
optimizer on the same images for as many epochs, from the last checkpoint, with several seeds; its number is the
k-NN accuracy (cosine, k = 20, temperature 0.1) on the test images, voted on by all training images. Nothing is chosen
with them but batch and momentum, which all arms share: after one look at BYOL.

Arms are paired by seed. A claim is reproduced when its mean difference is above zero and Student's t-test (two-sided),
corrected for the number of claims by Holm, gives p < 0.05; not reproduced when it is so below zero; and inconclusive
otherwise. Beside it stand the 95 % interval, the effect in standard deviations of the differences, the paper's own
difference (points of linear top-1 on ImageNet), the power: how likely so many seeds would have shown a true difference
of one point, at 0.05 over the number of claims, and how many seeds it would take for four in five; for one point, and
for the difference that was measured. An arm's instability stands beside its accuracy: the largest gradient's norm over
the median one, after the first fifth of the run, and the standard deviation of the last loss over seeds.

Runs that the file holds already are not repeated, so that the command can be interrupted, and two of them can share
the work. `--table` prints what the file holds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from scipy.stats import chi2, norm, ttest_1samp
from scipy.stats import t as student

from manyviews import recipes
from manyviews.checkpoint import write_text
from manyviews.data import Source, open_source
from manyviews.engine import loop
from manyviews.engine.build import build_method
from manyviews.engine.folder import create
from manyviews.evaluation import extract, knn
from manyviews.machine import describe
from manyviews.recipes import _common as common
from manyviews.recipes.mast import PRINTED
from manyviews.regularizers import Rescue
from manyviews.schedules import Cosine, WarmupCosine
from manyviews.settings import Component, Data, Monitor, Optimizer, Recipe
from manyviews.views import MAST_5, MAST_15, Composed, Cutout, Global, Local, View


@dataclass(frozen=True)
class Claim:
    """That one arm is better than another; by how much in the paper, in points of linear top-1 on ImageNet."""

    letter: str
    words: str
    better: str
    worse: str
    paper: float | None = None


CLAIMS = (
    Claim("a", "naive multi-crop is worse than two views", "byol", "byol naive"),
    Claim("b", "own predictors are better than a shared one", "byol multicrop", "byol naive"),
    Claim("c", "three tasks are better than multi-crop, at the same cost", "byol mulan", "byol multicrop", 0.9),
    Claim("d", "cutout alone learns when it is asymmetric", "byol cutout", "byol symmetric", 43.4),
    Claim("e", "crops alone are worse than all augmentations", "byol", "byol crop"),
    Claim("e", "all augmentations but crops are worse than crops alone", "byol crop", "byol no crop", 21.5),
    Claim("f", "rescuing easy samples helps SimCLR", "simclr rescue", "simclr", 1.1),
    Claim("f", "rescuing easy samples helps MoCo v3", "moco_v3 rescue", "moco_v3", 0.6),
    Claim("g", "MAST-5 is better than VICReg with the same staged views", "mast5 gates", "vicreg5 staged", 1.5),
    Claim("g", "MAST-15 is better than VICReg with the same staged views", "mast15 gates", "vicreg15 staged"),
    Claim("g", "staging the augmentations helps VICReg", "vicreg5 staged", "vicreg5", 0.2),
    Claim("g", "fifteen augmentations are worse than five for VICReg", "vicreg5", "vicreg15", 0.1),
    Claim("h", "MAST-5 is better than without uncertainty", "mast5 gates", "mast5 certain gates", 0.8),
    Claim("h", "MAST-5 is better than with handcrafted masks", "mast5 gates", "mast5 disjoint", 0.6),
)


@dataclass(frozen=True)
class Scale:
    """What all arms have in common.

    Attributes:
        images: of the training set, the same for all.
        recipe: backbone, optimizer, data and epochs.
        hidden, output: widths of the heads.
        momentum: of moving averages.
    """

    images: int
    recipe: Recipe
    hidden: int
    output: int
    momentum: float


def _cpu(images: int, epochs: float, side: int) -> Scale:
    """A ResNet of four blocks with half the channels of `simclr_cpu`'s."""
    return Scale(
        images=images,
        recipe=Recipe(
            name="claims",
            method=Component("byol"),
            backbone=Component(common.CPU_RESNET.name, {**common.CPU_RESNET.settings, "channels": (16, 32, 64, 128)}),
            epochs=epochs,
            data=Data(canvas=side, batch_size=128, mean=common.CIFAR_MEAN, std=common.CIFAR_STD, holdout=0.0),
            optimizer=Optimizer(
                "muon", 4e-3, "sqrt", WarmupCosine(warmup=1), weight_decay=0.01, momentum=0.95, betas=(0.9, 0.95)
            ),
            monitor=Monitor(epochs=0, steps=10),
            test_size=side,
        ),
        hidden=256,
        output=64,
        momentum=0.98,
    )


SCALES = {
    # Minutes on one core: a fifth of CIFAR-10's images.
    "cpu": _cpu(images=10_000, epochs=6, side=32),
    # Ten minutes on one core: twice the images, ten epochs. "imagewoof" is for its photographs at 64 pixels.
    "long": _cpu(images=20_000, epochs=10, side=32),
    "imagewoof": _cpu(images=1_500, epochs=60, side=64),
    "gpu": Scale(
        images=50_000,
        recipe=replace(recipes.get("byol_cifar10"), monitor=Monitor(epochs=0, steps=10)),
        hidden=1024,
        output=256,
        momentum=0.99,
    ),
}


def arms(scale: Scale) -> dict[str, Recipe]:
    """Every arm's recipe, by name."""
    hidden, output, side = scale.hidden, scale.output, scale.recipe.test_size
    heads = {"hidden_dim": hidden, "output_dim": output}
    momentum = Cosine(scale.momentum, 1.0)

    def recipe(method: str, rescue: Rescue | None = None, **settings: Any) -> Recipe:
        return recipes.resolve(
            replace(
                scale.recipe,
                method=Component(method, {**heads, **settings}),
                regularizers=() if rescue is None else (rescue,),
            )
        )

    def byol(*tasks: View, **settings: Any) -> Recipe:
        return recipe("byol", tasks=tasks, momentum=momentum, **settings)

    two = common.small(Global(2, area=(0.2, 1.0)), side)
    several = common.small(Global(2, area=(0.25, 1.0)), side)
    local = common.small(Local(4), side // 2)
    whole = {"area": (1.0, 1.0), "ratio": (1.0, 1.0)}
    plain = {"color": None, "flip": 0.0}

    def contrast(rescue: Rescue | None = None) -> Recipe:
        return recipe("simclr", rescue, view=two, temperature=0.1)

    def moco(rescue: Rescue | None = None) -> Recipe:
        return recipe("moco_v3", rescue, tasks=(two,), weights=2.0, temperature=0.2, momentum=momentum)

    wide = {"hidden_dim": 2 * hidden, "output_dim": 4 * output}

    def mast(augmentations: tuple[Any, ...] = MAST_5, **settings: Any) -> Recipe:
        # Muon moves a mask by about 6e-4 a step at these rates: ten times as far, or it is still where it began.
        rate = {} if settings.get("masks") == "disjoint" else {"mask_rate": 10.0}
        return recipe("mast", view=Composed(2, side, augmentations=augmentations), **wide, **rate, **settings)

    def vicreg(augmentations: tuple[Any, ...], staged: bool = False) -> Recipe:
        return recipe("vicreg", view=Composed(2, side, augmentations=augmentations, staged=staged), **wide)

    # To the letter: sums over dimensions, variances that may be zero (but for a floor), heads that begin with pooling.
    letter = PRINTED | {"reduction": "sum", "positive": "relu", "pooling": "last"}

    return {
        "byol": byol(two, weights=2.0),
        "byol naive": byol(several, local, predictor="shared"),
        "byol multicrop": byol(several, local),
        "byol mulan": byol(several, replace(local, count=2), common.small(Cutout(1), side)),
        "byol cutout": byol(Global(1, side, **whole, **plain), Cutout(2, side, **whole, **plain), weights=2.0),
        "byol symmetric": byol(Cutout(2, side, symmetric=True, **whole, **plain), weights=2.0),
        "byol crop": byol(replace(two, **plain), weights=2.0),
        "byol no crop": byol(replace(two, **whole), weights=2.0),
        "simclr": contrast(),
        "simclr rescue": contrast(Rescue(scale=0.75)),
        "moco_v3": moco(),
        "moco_v3 rescue": moco(Rescue(scale=0.05)),
        "vicreg5": vicreg(MAST_5),
        "vicreg15": vicreg(MAST_15),
        "vicreg5 staged": vicreg(MAST_5, staged=True),
        "vicreg15 staged": vicreg(MAST_15, staged=True),
        "mast5 gates": mast(),
        "mast15 gates": mast(MAST_15),
        "mast5 certain gates": mast(uncertainty=False),
        "mast5 disjoint": mast(masks="disjoint"),
        "mast5 means": mast(**PRINTED),
        "mast5 letter": mast(**letter),
    }


def measured(recipe: Recipe, train_on: Source, train: Source, test: Source) -> dict[str, float]:
    """Top-1 k-NN accuracy of the last checkpoint in percent, the seconds of training, the last loss and spikes."""
    method = build_method(recipe)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = create(Path(folder) / "run", recipe, {})
        loop.train(method, recipe, train_on, run.path)
        rows = [row for row in run.rows if "grad_norm" in row]
    seconds = time.monotonic() - start
    norms = [row["grad_norm"] for row in rows[len(rows) // 5 :]]
    how = {"test_size": recipe.test_size, "mean": recipe.data.mean, "std": recipe.data.std}
    device = next(method.parameters()).device
    known, asked = (extract(method.kept_encoder, s, device=device, **how) for s in (train, test))
    assert known.labels is not None and asked.labels is not None
    accuracy = 100 * knn(known.x, known.labels, asked.x, asked.labels, ks=[20]).weighted[20]
    spike = max(norms) / statistics.median(norms)
    return {"knn": round(accuracy, 2), "seconds": round(seconds), "loss": rows[-1]["loss"], "spike": round(spike, 2)}


def differences(rows: list[dict[str, Any]], claim: Claim) -> list[float]:
    """The differences between a claim's arms, by seed."""
    scores = {(r["arm"], r["seed"]): r["knn"] for r in rows}
    seeds = sorted(s for a, s in scores if a == claim.better and (claim.worse, s) in scores)
    return [scores[claim.better, s] - scores[claim.worse, s] for s in seeds]


def power(effect: float, seeds: int, level: float) -> float:
    """How likely a two-sided paired t-test shows an effect, in standard deviations of the differences."""
    if seeds < 2:
        return 0.0
    limit, shift = student.ppf(1 - level / 2, seeds - 1), effect * math.sqrt(seeds)
    # Over the deviations that so many seeds may happen to have; SciPy's noncentral t fails for large shifts.
    deviation = np.sqrt(chi2.ppf((np.arange(4000) + 0.5) / 4000, seeds - 1) / (seeds - 1))
    return float((norm.sf(limit * deviation - shift) + norm.cdf(-limit * deviation - shift)).mean())


def needed(effect: float, level: float, most: int = 1000) -> int | None:
    """The fewest seeds that show an effect four times in five; None if `most` are too few."""
    return next((n for n in range(2, most + 1) if power(abs(effect), n, level) >= 0.8), None)


def holm(ps: list[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979)."""
    order = sorted(range(len(ps)), key=ps.__getitem__)
    found, last = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        last = max(last, min(1.0, (len(ps) - rank) * ps[i]))
        found[i] = last
    return found


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What follows for each claim: see the module's docstring."""
    by_claim = [differences(rows, claim) for claim in CLAIMS]
    able = [i for i, d in enumerate(by_claim) if len(d) > 1 and statistics.stdev(d) > 0]
    corrected = dict(zip(able, holm([float(ttest_1samp(by_claim[i], 0.0).pvalue) for i in able]), strict=True))
    level = 0.05 / max(1, len(able))
    found = []
    for i, (claim, d) in enumerate(zip(CLAIMS, by_claim, strict=True)):
        v: dict[str, Any] = {"claim": claim.letter, "words": claim.words, "seeds": len(d), "paper": claim.paper}
        if i not in corrected:
            found.append(v | {"verdict": "not run"})
            continue
        mean, spread = statistics.mean(d), statistics.stdev(d)
        half = float(student.ppf(0.975, len(d) - 1)) * spread / math.sqrt(len(d))
        decided = "reproduced" if mean > 0 else "not reproduced"
        found.append(
            v
            | {
                "difference": round(mean, 2),
                "interval": round(half, 2),
                "p": round(corrected[i], 4),
                "effect": round(mean / spread, 2),
                "power": round(power(1 / spread, len(d), level), 2),
                "seeds for a point": needed(1 / spread, level),
                "seeds for this": needed(mean / spread, level),
                "verdict": decided if corrected[i] < 0.05 else "inconclusive at this scale",
            }
        )
    return found


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Both tables as Markdown: every arm's accuracy, and every claim's verdict."""
    lines = ["| arm | seeds | k-NN | minutes | spike | last loss over seeds |", "| --- " * 6 + "|"]
    for name in names:
        mine = [r for r in rows if r["arm"] == name]
        if mine:
            scores = [r["knn"] for r in mine]
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            minutes = statistics.median(r["seconds"] for r in mine) / 60
            spikes, losses = ([r[k] for r in mine if k in r] for k in ("spike", "loss"))
            unstable = f"{statistics.median(spikes):.1f}, at most {max(spikes):.1f}" if spikes else ""
            loss = f"± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
            accuracy = f"{statistics.mean(scores):.1f}{spread}"
            lines.append(f"| {name} | {len(scores)} | {accuracy} | {minutes:.1f} | {unstable} | {loss} |")
    lines += ["", "| | claim | paper | seeds | difference, 95 % interval | p (Holm) | effect | power for a point |"]
    lines[-1] += " seeds for a point, for this | verdict |"
    lines.append("| --- " * 10 + "|")
    for v in verdicts(rows):
        cells = [v["claim"], v["words"], "" if v["paper"] is None else f"{v['paper']:+.1f}", str(v["seeds"])]
        if "difference" in v:
            many = [str(v[f"seeds for {what}"] or "over 1000") for what in ("a point", "this")]
            cells += [f"{v['difference']:+.1f} ± {v['interval']:.1f}", f"{v['p']:.3f}", f"{v['effect']:+.1f}"]
            cells += [f"{v['power']:.2f}", ", ".join(many)]
        else:
            cells += [""] * 5
        lines.append(f"| {' | '.join([*cells, v['verdict']])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="CIFAR-10's training images, a Parquet file")
    parser.add_argument("--test", help="its test images")
    parser.add_argument("--out", type=Path, required=True, help="the file of results, which grows")
    parser.add_argument("--scale", choices=sorted(SCALES), default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", help="only these, separated by commas")
    parser.add_argument("--table", action="store_true", help="print what the file holds, and run nothing")
    options = parser.parse_args()
    scale = SCALES[options.scale]
    found = arms(scale)
    locks = Path(tempfile.gettempdir()) / f"manyviews claims {options.out.absolute().as_posix().replace('/', ' ')}"
    locks.mkdir(exist_ok=True)

    def read() -> dict[str, Any]:
        return json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}

    def add(row: dict[str, Any]) -> None:
        with FileLock(locks / "file"):
            state = read()
            state["rows"].append(row)
            write_text(options.out, json.dumps(state, indent=1) + "\n")

    if not options.table:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        facts = {"scale": options.scale, "commit": commit, "machine": describe(device)}
        train, test = open_source(options.train), open_source(options.test)
        train_on = train.subset(np.sort(np.random.default_rng(0).permutation(len(train))[: scale.images]))
        names = options.arms.split(",") if options.arms else list(found)
        for seed in range(options.seeds):  # all arms of a seed before the next: a table of two seeds is worth something
            for name in names:
                # Held while the run lasts, whatever ends it: another process takes the next arm meanwhile.
                try:
                    run = FileLock(locks / f"{options.scale} {name} {seed}", blocking=False).acquire()
                except Timeout:
                    continue
                with run:
                    if any((r["scale"], r["arm"], r["seed"]) == (options.scale, name, seed) for r in read()["rows"]):
                        continue
                    row = measured(replace(found[name], seed=seed), train_on, train, test)
                    add({"arm": name, "seed": seed, **row, **facts})
                print(f"{name}, seed {seed}: k-NN {row['knn']} after {row['seconds']} s", flush=True)
    state = read()
    rows = [r for r in state["rows"] if r["scale"] == options.scale]
    print(table(rows, list(found)))


if __name__ == "__main__":
    main()
