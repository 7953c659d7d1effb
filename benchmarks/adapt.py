"""What each strategy of adaptation gives with 1, 5, 10 and 100 % of the labels, from three kinds of encoder.

python benchmarks/adapt.py [--data data] [--out benchmarks/adapt.json] [--weights FILE --backbone NAME] [--run RUN]
python benchmarks/adapt.py --out benchmarks/adapt.json --show [--plot plot.png]

Hours; the same command continues. A case is ENCODER:PERCENT:STRATEGY:SEED, such as imagenet:10:lpft:0. Encoders are
imagenet (--weights, a file of weights, such as torchvision's MobileNetV2, mobilenetv2_100 in timm), own (--run,
pretrained on the same images without labels) and scratch (the architecture of --weights, or else of --run, with fresh
weights). Cases of an encoder that is not given are left out.

The images are clothes, 3,068 photographs of ten kinds of garment, and 372 to test, which choose nothing; a fifth of the
labeled ones chooses. Each seed has its own labels. One thread: start two shells with other --cases and
--out for two cores. --show prints a table of what is there, and how far auto is from the best and from linear.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import _bench
import torch

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.evaluation.subsets import balanced
from manyviews.weights import Pretrained

ENCODERS = ("imagenet", "own", "scratch")
PERCENTS = (1, 5, 10, 100)
STRATEGIES = ("linear", "mlp", "lora", "unfreeze", "lpft", "finetune", "auto")
SEEDS = (0, 1, 2)


def encoder(name: str, seed: int, asked: argparse.Namespace) -> Pretrained | None:
    """The weights to begin with; None if they are not given."""
    given = {
        "imagenet": asked.weights and (asked.weights, asked.backbone),
        "own": asked.run and (asked.run,),
    }
    given["scratch"] = given["imagenet"] or given["own"]
    if given[name] is None:
        return None
    found = mv.load(*given[name], test_size=asked.size)
    if name == "scratch":
        assert isinstance(found.encoder, Encoder)
        torch.manual_seed(seed)
        fresh = Encoder.from_spec(found.encoder.spec).eval()
        return Pretrained(fresh, found.mean, found.std, found.test_size, "scratch", reading=found.reading)
    return found


def measure(case: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any] | None:
    """Adapt and test; None if the encoder is not given."""
    name, percent, strategy, seed = case.split(":")
    weights = encoder(name, int(seed), asked)
    if weights is None:
        return None
    data = str(asked.data / "clothing10_192.zip")
    source, test = open_source(data, split="train"), open_source(data, split="test")
    assert source.labels is not None
    rows = balanced(source.ids, torch.from_numpy(source.labels), int(percent) / 100, int(seed))
    out = folder / case.replace(":", "-")
    labeled = source.subset(rows.numpy())
    model = mv.adapt(weights, labeled, out, strategy=strategy, test=test, seed=int(seed), budget=asked.budget)
    facts = model.facts
    kept = ("strategy", "images", "setting", "parameters", "validation", "test", "tried", "why", "seconds")
    found = {k: facts[k] for k in kept if k in facts}
    for part in ("validation", "test"):
        found[part].pop("per_class", None)
    return found


def show(found: dict[str, Any], plot: Path | None) -> None:
    """A Markdown table of test accuracies, and what auto must be judged by."""
    cells: dict[tuple[str, str, int], list[float]] = {}
    for case, numbers in found["cases"].items():
        name, percent, strategy, _ = case.split(":")
        cells.setdefault((name, strategy, int(percent)), []).append(100 * numbers["test"]["accuracy"])
    print(f"| encoder | strategy | {' | '.join(f'{p} %' for p in PERCENTS)} |\n| --- | --- |{' --- |' * len(PERCENTS)}")
    for name in ENCODERS:
        for strategy in STRATEGIES:
            row = [cells.get((name, strategy, p)) for p in PERCENTS]
            if any(row):
                print(f"| {name} | {strategy} | {' | '.join(map(_cell, row))} |")
    for name in ENCODERS:
        for p in PERCENTS:
            means = {s: statistics.fmean(v) for s in STRATEGIES if (v := cells.get((name, s, p)))}
            if {"auto", "linear"} <= means.keys():
                best = max(means, key=lambda s: means[s])
                print(
                    f"{name}, {p} %: auto is {means['auto'] - means[best]:+.1f} from the best ({best}), "
                    f"{means['auto'] - means['linear']:+.1f} from linear"
                )
    if plot is not None:
        _draw(cells, plot)


def _cell(values: list[float] | None) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _draw(cells: dict[tuple[str, str, int], list[float]], plot: Path) -> None:
    from matplotlib import pyplot as plt

    names = [name for name in ENCODERS if any(key[0] == name for key in cells)]
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.5), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for strategy in STRATEGIES:
            points = [(p, statistics.fmean(v)) for p in PERCENTS if (v := cells.get((name, strategy, p)))]
            if points:
                style = {"linewidth": 2.5, "color": "black"} if strategy == "auto" else {}
                axis.plot(*zip(*points, strict=True), marker="o", label=strategy, **style)
        axis.set(xscale="log", title=name, xlabel="labels, %", xticks=PERCENTS, xticklabels=PERCENTS)
    axes[0, 0].set_ylabel("test accuracy, %")
    axes[0, -1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(plot, dpi=120)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data"))
    options.add_argument("--weights", type=Path)
    options.add_argument("--backbone", help="timm's name of the weights' architecture, if the file does not tell it")
    options.add_argument("--run", type=Path)
    options.add_argument("--size", type=int, default=128)
    options.add_argument("--budget", help="time of a case, such as 20m")
    options.add_argument("--out", type=Path)
    options.add_argument("--show", action="store_true")
    options.add_argument("--plot", type=Path)
    every = [f"{e}:{p}:{s}:{seed}" for p in PERCENTS for seed in SEEDS for e in ENCODERS for s in STRATEGIES]
    options.add_argument("--cases", nargs="*", default=every)
    asked = options.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {"cases": {}}
    if not asked.show:
        facts = _bench.facts(torch.device("cpu"), "timm", "peft")
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as temporary:
            for case in asked.cases:
                if case in found["cases"]:
                    continue
                numbers = measure(case, asked, Path(temporary))
                if numbers is not None:
                    found["cases"][case] = {**numbers, **facts, "size": asked.size}
                    print(f"{case}: {100 * numbers['test']['accuracy']:.1f} %, {numbers['seconds']:.0f} s", flush=True)
                    _bench.write(asked.out, found)
    show(found, asked.plot)


if __name__ == "__main__":
    main()
