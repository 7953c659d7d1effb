"""What MAST's masks become along a run on CIFAR-10: the printed loss, masks of fixed length, and gates.

python benchmarks/mast.py [--data data] [--out benchmarks/mast.json] [--cases gates:0 ...] [--epochs 100]

Hours; the same command continues. Each case, METHOD:SEED, is trained on one thread, so that two of them, started in two
shells with other --cases and --out, share two cores. All methods see the same images with the same network, optimizer
and five augmentations. "printed", "fixed" and "gates" are MAST, "staged" is VICReg with MAST's views, one augmentation
at a time first, and "vicreg" is VICReg with all five from the start. "sums" is the printed loss to the letter, with
sums over dimensions and variances that may be zero.

After each epoch, on 500 test images: the mean entry of the masks; the dimensions in a mask, (sum m)^2 / sum m^2; the
standard deviation of the embedding's dimensions, over all and where the masks are; and how far the augmentations move
an image, in units of the distance of two unrelated ones (0 is invariant, 1 unrelated): over all dimensions, in the
subspace of each augmentation itself, and in those of the others. In the end: k-NN of the features on five sets that
need different invariances: classes, clothes, color, position, rotation. `--table` prints what the file holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import torch
from torch import Tensor

import manyviews as mv
from manyviews import recipes
from manyviews.data import Source, open_source
from manyviews.engine import loop
from manyviews.engine.build import build_method
from manyviews.engine.folder import create
from manyviews.evaluation.features import frozen, normalize
from manyviews.methods import Method
from manyviews.methods.mast import MAST
from manyviews.progress import duration
from manyviews.recipes import _common as common
from manyviews.recipes.mast import PRINTED
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Monitor, Optimizer, Recipe
from manyviews.types import Progress
from manyviews.views import MAST_5, Composed, Draws
from manyviews.weights import Pretrained

HEADS = {"hidden_dim": 512, "output_dim": 256}
STAGED, AT_ONCE = Composed(2, 32), Composed(2, 32, staged=False)
RATE = {"mask_rate": 10.0}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "printed": ("mast", {"view": STAGED, **PRINTED, **RATE}),
    "fixed": ("mast", {"view": STAGED, **PRINTED, **RATE, "mask_norm": "fixed", "prior_weight": 25.0}),
    "gates": ("mast", {"view": STAGED, **RATE}),
    "staged": ("vicreg", {"view": STAGED}),
    "vicreg": ("vicreg", {"view": AT_ONCE}),
    "sums": ("mast", {"view": STAGED, **PRINTED, **RATE, "reduction": "sum", "positive": "relu", "pooling": "last"}),
}
SETS = ("classes", "clothes", "color", "position", "rotation")
_KNOWN, _TESTED = 5_000, 2_000  # images of each set that are made of CIFAR-10


def recipe(method: str, epochs: float, seed: int, **settings: Any) -> Recipe:
    """A method of a network that a CPU trains; `settings` replace its own."""
    name, its = METHODS[method]
    return recipes.resolve(
        Recipe(
            name="mast benchmark",
            method=Component(name, {**HEADS, **its, **settings}),
            backbone=Component(common.CPU_RESNET.name, {**common.CPU_RESNET.settings, "channels": (16, 32, 64, 128)}),
            epochs=epochs,
            seed=seed,
            data=Data(canvas=32, batch_size=128, mean=common.CIFAR_MEAN, std=common.CIFAR_STD, holdout=0.0),
            optimizer=Optimizer(
                "muon", 4e-3, "sqrt", WarmupCosine(warmup=1), weight_decay=0.01, momentum=0.95, betas=(0.9, 0.95)
            ),
            monitor=Monitor(epochs=0, steps=100),
            test_size=32,
        )
    )


def pixels(source: Source) -> np.ndarray:
    """Images of 32 pixels: uint8 `n h w 3`."""
    return np.stack([np.asarray(source.load(i)) for i in range(len(source))])


# -- along the run -------------------------------------------------------------------------------------------------


def measure(method: Method, x: Tensor) -> dict[str, Any]:
    """The numbers of an epoch, from images `n 3 32 32` in [0, 1]: see the module's docstring."""

    def embed(x: Tensor) -> Tensor:
        z = method.online(normalize(255 * x, common.CIFAR_MEAN, common.CIFAR_STD))
        return z[0] if isinstance(z, tuple) else z

    draws = Draws(0, 0, torch.arange(len(x)))
    with frozen(method):
        mu = embed(x)
        std = mu.std(0)
        changed = [embed(a(x, draws.at(a.name))) for a in MAST_5]
        moved = torch.stack([(mu - z).square().mean(0) / (2 * std.square() + 1e-9) for z in changed], 1)
        found = {"std": std.mean(), "moved": moved.mean(0)}
        if isinstance(method, MAST):
            masks = method.masks()
            squares = masks.square().sum(0).clamp(min=1e-12)
            share = masks.square() / squares
            across = moved.T @ share  # of each augmentation, in each subspace
            found |= {
                "mask": masks.mean(),
                "dimensions": masks.sum(0).square() / squares,
                "std inside": std @ share,
                "moved inside": across.diagonal(),
                "moved in others": (across.sum(1) - across.diagonal()) / (len(across) - 1),
            }
    return {name: np.round(v.tolist(), 4).tolist() for name, v in found.items()}


def watched(method: Method, x: Tensor, rows: list[dict[str, Any]]) -> Callable[[Progress], None]:
    """The method's `after_update`, which also measures at the end of each epoch."""
    update = method.after_update

    def after_update(at: Progress) -> None:
        update(at)
        if (at.step + 1) % at.steps_per_epoch == 0 or at.step + 1 == at.steps:
            rows.append({"epoch": (at.step + 1) / at.steps_per_epoch} | measure(method, x))

    return after_update


# -- at the end ----------------------------------------------------------------------------------------------------


def suite(data: Path) -> dict[str, Any]:
    """Sets of images of 32 pixels by name: arrays to learn from, and to test on."""

    def cifar(part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        source = open_source(data / f"cifar10_{part}.parquet")
        last = source.subset(np.arange(len(source) - count, len(source)))  # not those that are trained on
        assert last.labels is not None
        return pixels(last), np.asarray(last.labels)

    parts = cifar("train", _KNOWN), cifar("test", _TESTED)
    edges = np.quantile(hue(parts[0][0]), np.linspace(0, 1, 9)[1:-1])
    return {
        "classes": parts,
        "clothes": data / "clothing10_192.zip",
        "color": tuple((x, np.searchsorted(edges, hue(x))) for x, _ in parts),
        "position": tuple(placed(x) for x, _ in parts),
        "rotation": tuple(turned(x) for x, _ in parts),
    }


def hue(x: np.ndarray) -> np.ndarray:
    """The angle of the mean color of images `n h w 3` around gray, in [-pi, pi]: `n`."""
    r, g, b = x.reshape(len(x), -1, 3).mean(1).T
    return np.arctan2(3**0.5 * (g - b), 2 * r - g - b)


def placed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A ninth of each image, 16 of 32 pixels a side and enlarged, and which of the nine it is."""
    label = np.arange(len(x)) % 9
    top, left = label // 3 * 8, label % 3 * 8
    parts = np.stack([image[y : y + 16, z : z + 16] for image, y, z in zip(x, top, left, strict=True)])
    return parts.repeat(2, 1).repeat(2, 2), label


def turned(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each image turned by so many quarters, and how many."""
    label = np.arange(len(x)) % 4
    return np.stack([np.rot90(image, k) for image, k in zip(x, label, strict=True)]), label


def run(made: Recipe, train: Source, x: Tensor, sets: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train, measure after each epoch, and judge the encoder: k-NN accuracy on each set, in percent."""
    method, rows = build_method(made), list[dict[str, Any]]()
    method.after_update = watched(method, x, rows)  # type: ignore[method-assign]
    start = time.monotonic()
    loop.train(method, made, train, create(folder / "run", made, {}).path)
    seconds = round(time.monotonic() - start)
    weights = Pretrained(method.kept_encoder, made.data.mean, made.data.std, made.test_size, made.method.name)
    found = mv.transfer(weights, sets, folder / "transfer", protocols=("knn",), baselines=False).table()
    return {"knn": {row["set"]: round(100 * row["top1"], 2) for row in found}, "along": rows, "seconds": seconds}


def table(runs: dict[str, Any]) -> str:
    """Both tables as Markdown: the end of each method's runs, and k-NN on each set."""

    def cell(values: list[float], digits: int) -> str:
        more = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{more}"

    of = {m: [its for case, its in runs.items() if case.split(":")[0] == m] for m in METHODS}
    of = {m: found for m, found in of.items() if found}
    columns = {"mask": 3, "dimensions": 1} | dict.fromkeys(
        ("std", "std inside", "moved", "moved inside", "moved in others"), 2
    )
    lines = [f"| method | seeds | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    for m, found in of.items():
        ends = [its["along"][-1] for its in found]
        cells = [cell([float(np.mean(e[c])) for e in ends], n) if c in ends[0] else "" for c, n in columns.items()]
        lines.append(f"| {m} | {len(found)} | {' | '.join(cells)} |")
    names = [*SETS, "mean"]
    lines += ["", f"| method | seeds | {' | '.join(names)} | minutes |", "| --- " * (len(names) + 3) + "|"]
    for m, found in of.items():
        cells = [cell([its["knn"][s] for its in found], 1) for s in names]
        minutes = statistics.median(its["seconds"] for its in found) / 60
        lines.append(f"| {m} | {len(found)} | {' | '.join(cells)} | {minutes:.1f} |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data"))
    options.add_argument("--epochs", type=float, default=100.0)
    options.add_argument("--images", type=int, default=5_000, help="of CIFAR-10, to train on")
    cases = [f"{m}:{seed}" for seed in range(5) for m in METHODS if m != "sums"]
    options.add_argument("--cases", nargs="*", default=cases)
    options.add_argument("--out", type=Path)
    options.add_argument("--table", action="store_true", help="print what the file holds, and train nothing")
    asked = options.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    found = {"epochs": asked.epochs, "images": asked.images, "runs": {}} | found
    wanted = [] if asked.table else [case for case in asked.cases if case not in found["runs"]]
    if wanted:
        torch.set_num_threads(1)
        train = open_source(asked.data / "cifar10_train.parquet").subset(np.arange(found["images"]))
        test = open_source(asked.data / "cifar10_test.parquet").subset(np.arange(500))
        x = torch.from_numpy(pixels(test)).permute(0, 3, 1, 2).float() / 255
        sets = suite(asked.data)
    for case in wanted:
        method, seed = case.split(":")
        with tempfile.TemporaryDirectory() as folder:
            mine = run(recipe(method, found["epochs"], int(seed)), train, x, sets, Path(folder))
        found["runs"][case] = mine | _bench.facts(torch.device("cpu"))
        torch.set_num_threads(1)
        print(f"{case}: {mine['knn']}, {duration(mine['seconds'])}", flush=True)
        _bench.write(asked.out, found)
    print(table(found["runs"]))


if __name__ == "__main__":
    main()
