"""Whether a balanced list helps on a long-tailed CIFAR-10: SimCLR, VICReg and PMSN, each on three lists of images.

    python benchmarks/longtail.py [--data data] [--out benchmarks/longtail.json] [--cases simclr:all:0 ...]

The long tail has 5,000 images of the first class, 50 of the last, and a geometric row between (Cao et al. 2019). The
arms, METHOD:ARM:SEED: "all" of it, 12,406 images; a "random" subset of --kept of them; and a "balanced" one of as many,
by hierarchical k-means on the features of this seed's SimCLR on all images, which sees no label. Every case sees as
many images, --seen, so that a small list is seen more often. Judged with 10,000 balanced training images and all test
images: k-NN and a linear probe, percent, of all classes, and of the head (three classes), the middle (four) and the
tail (three). The same command continues; `balanced` runs `simclr:all` of its seed first.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import torch
from torch.nn.functional import normalize

import manyviews as mv
from manyviews import recipes
from manyviews.data import Source, open_source
from manyviews.evaluation import extract, neighbors
from manyviews.evaluation.knn import vote
from manyviews.evaluation.unlabeled import curation
from manyviews.settings import Recipe, override

METHODS, ARMS = ("simclr", "vicreg", "pmsn"), ("all", "random", "balanced")
PARTS = {"all": range(10), "head": range(3), "middle": range(3, 7), "tail": range(7, 10)}
MOST, RATIO = 5000, 0.01


def long_tail(labels: np.ndarray) -> np.ndarray:
    """Positions of the images of the long tail, ascending."""
    counts = [round(MOST * RATIO ** (c / 9)) for c in range(10)]
    rng = np.random.default_rng(0)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in enumerate(counts)]))


def recipe(method: str, images: int, seen: int, seed: int) -> Recipe:
    """The method's own settings on CIFAR-10; networks, batch and optimizer are those of the CPU recipes."""
    made = recipes.get(f"{method}_cifar10")
    changes: dict[str, Any] = {
        "data.batch_size": 256,
        "data.holdout": 0.0,
        "monitor.epochs": 0.0,
        "optimizer": replace(recipes.get("simclr_cpu").optimizer, lr=4e-3),
        "seed": seed,
    }
    if method == "pmsn":  # a transformer
        changes |= {"optimizer": replace(recipes.get("dino_cifar10").optimizer, lr=1e-3, lr_scaling="constant")}
    else:
        changes["backbone"] = recipes.get("simclr_cpu").backbone
    for path, value in changes.items():
        made = override(made, path, value)
    return replace(made, epochs=seen / images)


def features(folder: Path, source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of length one and labels."""
    weights = mv.load(folder)
    found = extract(weights.encoder, source, test_size=weights.test_size, mean=weights.mean, std=weights.std)
    assert found.labels is not None
    return normalize(found.x, dim=1), found.labels


def judged(folder: Path, known: Source, test: Source) -> dict[str, dict[str, float]]:
    """Accuracies by protocol and part."""
    from sklearn.linear_model import LogisticRegression

    (x, y), (tx, ty) = features(folder, known), features(folder, test)
    similarity, index = neighbors(x, tx, 20)
    probe = LogisticRegression(C=10.0, max_iter=200).fit(x, y)
    answers = {"knn": vote(similarity, y[index], 10, 0.1)[:, 0], "linear": torch.from_numpy(probe.predict(tx))}
    return {
        name: {
            part: round(100 * float(np.mean([(found[ty == c] == c).double().mean() for c in classes])), 2)
            for part, classes in PARTS.items()
        }
        for name, found in answers.items()
    }


def chosen(arm: str, tail: np.ndarray, source: Source, kept: int, seed: int, folder: Path) -> np.ndarray:
    """Positions of an arm's images in the training set."""
    if arm == "all":
        return tail
    if arm == "random":
        return np.sort(np.random.default_rng(seed).permutation(tail)[:kept])
    x, _ = features(folder, source.subset(tail))
    return tail[curation.balanced(curation.tree(x, seed).parents, kept, seed).numpy()]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("data"))
    options.add_argument("--kept", type=int, default=4000)
    options.add_argument("--seen", type=int, default=250_000, help="images that each case sees: 20 epochs of all")
    options.add_argument(
        "--cases", nargs="*", default=[f"{m}:{a}:{s}" for s in range(3) for m in METHODS for a in ARMS]
    )
    options.add_argument("--runs", type=Path, default=Path("runs/longtail"), help="where runs are kept")
    options.add_argument("--out", type=Path)
    asked = options.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    found = {"kept": asked.kept, "seen": asked.seen, "cases": {}} | found
    source, test = open_source(asked.data / "cifar10_train.parquet"), open_source(asked.data / "cifar10_test.parquet")
    assert source.labels is not None
    labels = source.labels
    tail = long_tail(labels)
    rng = np.random.default_rng(1)
    known = source.subset(
        np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:1000] for c in range(10)]))
    )

    def trained(method: str, arm: str, seed: int) -> Path:
        folder = asked.runs / f"{method}-{arm}-{seed}"
        if not (folder / "encoder.safetensors").exists():
            before = trained("simclr", "all", seed) if arm == "balanced" else folder
            images = chosen(arm, tail, source, asked.kept, seed, before)
            made = recipe(method, len(images), asked.seen, seed)
            run = (
                mv.resume(folder)
                if (folder / "recipe.json").exists()
                else mv.pretrain(source.subset(images), made, out=folder)
            )
            assert run.summary is not None
            counts = np.bincount(labels[images], minlength=10).tolist()
            facts = {"images": counts, "seconds": round(run.summary["seconds"]), "steps": run.summary["steps"]}
            (folder / "longtail.json").write_text(json.dumps(facts))
        return folder

    for case in asked.cases:
        method, arm, seed = case.split(":")
        if case in found["cases"]:
            continue
        folder = trained(method, arm, int(seed))
        facts = json.loads((folder / "longtail.json").read_text())
        found["cases"][case] = facts | {"scores": judged(folder, known, test)} | _bench.facts(torch.device("cpu"))
        print(case, found["cases"][case]["scores"], f"{facts['seconds']} s", flush=True)
        _bench.write(asked.out, found)


if __name__ == "__main__":
    main()
