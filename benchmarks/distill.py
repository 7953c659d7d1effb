"""A small network on unlabeled photographs of clothes: taught by a teacher, or alone by SimCLR, for the same minutes.

python benchmarks/distill.py --teacher FILE [--minutes 10] [--seeds 0 1 2] [--data data] [--out benchmarks/distill.json]

The same command continues. --teacher is any weights that `manyviews.load` reads. Each target of the method `distill`
has the same budget, from which the teacher's look at the images is taken, and so has SimCLR with the same network, size
of views and batch. Machine and threads should be the same for all, and nothing else should run. k-NN and a linear probe
are of the 372 test images, with the teacher's own beside them.

--labels 0.1 adds SimCLR v2's ablation (Chen et al. 2020, table 2) instead: the teacher is adapted to so much of the
labels, and the student learns its soft labels on these images alone, or on all of them. Accuracies are of the student's
own head. "labels only" is the student fine-tuned from nothing on the same labels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import _bench
import numpy as np
import torch

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.data import Source, open_source
from manyviews.evaluation.features import extract
from manyviews.settings import Component
from manyviews.weights import Pretrained
from manyviews.weights.model import answers

TARGETS = ("features", "relations", "prototypes")


def scores(weights: Any, images: str) -> dict[str, float]:
    """Accuracies in percent on the test images, by protocol."""
    report = mv.evaluate(weights, images, protocols=("knn", "linear"), baselines=False)
    found = report.representations["trained"].scores
    return {protocol: round(100 * score.top1, 2) for protocol, score in found.items()}


def alone(images: str, student: str, budget: str, seed: int, out: Path) -> mv.Run:
    """SimCLR with the settings for photographs on a processor, and the student, views and batch of distillation."""
    taught, plain = mv.recipes.get("distill_cpu"), mv.recipes.get("photos_cpu_medium")
    batch = replace(plain.data, batch_size=taught.data.batch_size)
    recipe = replace(plain, backbone=Component(student), data=batch, test_size=taught.test_size)
    view = {"method.view.size": taught.method.settings["view"].size}
    return mv.pretrain(images, recipe, budget=budget, settings={**view, "seed": seed}, out=out)


def own_head(run: mv.Run, test: Source) -> float:
    """Accuracy in percent of the student and the head that learned the teacher's labels."""
    recipe = run.recipe
    how = {"test_size": recipe.test_size, "mean": recipe.data.mean, "std": recipe.data.std}
    seen = extract(run.method.online, test, **how)
    assert seen.labels is not None
    return round(100 * (seen.x.argmax(1) == seen.labels).double().mean().item(), 2)


def accuracy(model: Any, test: Source) -> float:
    """Accuracy in percent of a model on test images, whose classes have the same order."""
    assert test.labels is not None and tuple(test.classes or ()) == model.classes
    return round(100 * float((answers(model, test).ranked(1)[:, 0] == test.labels).mean()), 2)


def some(source: Source, share: float, seed: int) -> Source:
    """So much of each class, at least four images."""
    assert source.labels is not None
    rng, labels = np.random.default_rng(seed), source.labels
    classes = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    return source.subset(np.sort(np.concatenate([c[: max(4, round(share * len(c)))] for c in classes])))


def ablation(
    teacher: str, images: str, student: str, share: float, budget: str, seed: int, folder: Path
) -> dict[str, float]:
    """SimCLR v2's rows, accuracies in percent."""
    everything, test = open_source(images, split="train"), open_source(images, split="test")
    labeled = some(everything, share, seed)
    model = mv.adapt(teacher, labeled, folder / f"model{seed}", strategy="lpft", seed=seed)
    taught = mv.recipes.get("distill_cpu")
    torch.manual_seed(seed)
    nothing = Pretrained(Encoder(student).eval(), taught.data.mean, taught.data.std, taught.test_size, student)
    plain = mv.adapt(nothing, labeled, folder / f"plain{seed}", strategy="finetune", seed=seed)
    found = {"teacher": accuracy(model, test), "labels only": accuracy(plain, test)}
    for name, data in (("distilled on labeled images", labeled), ("distilled on all images", everything)):
        out, settings = folder / f"{name.replace(' ', '-')}{seed}", {"seed": seed, "data.holdout": 0}
        run = mv.distill(model, data, student, target="soft", view="same", budget=budget, settings=settings, out=out)
        found[name] = own_head(run, test)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--teacher", required=True)
    options.add_argument("--student", default="resnet18")
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--targets", nargs="*", default=TARGETS, choices=TARGETS)
    options.add_argument("--views", nargs="+", default=["clean"], choices=["clean", "same"])
    options.add_argument("--labels", type=float)
    options.add_argument("--data", type=Path, default=Path("data"))
    options.add_argument("--out", type=Path)
    asked = options.parse_args()
    images, budget = str(asked.data / "clothing10_192.zip"), f"{60 * asked.minutes:g}s"
    found = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}

    def case(name: str, compute: Callable[[], dict[str, float]]) -> None:
        if name not in found:
            found[name] = {"scores": compute(), **_bench.facts(torch.device("cpu"))}
            print(f"{name}: {found[name]['scores']}", flush=True)
            _bench.write(asked.out, found)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def taught(target: str, view: Any, seed: int) -> dict[str, float]:
            out = folder / f"{target}-{view}-{seed}"
            more: Any = {"target": target, "view": view, "budget": budget, "settings": {"seed": seed}, "out": out}
            return scores(mv.distill(asked.teacher, images, asked.student, **more).folder, images)

        def untaught(seed: int) -> dict[str, float]:
            return scores(alone(images, asked.student, budget, seed, folder / f"simclr-{seed}").folder, images)

        where = f"{asked.student}, {asked.minutes:g} minutes"
        if asked.labels is not None:
            for seed in asked.seeds:
                more = (images, asked.student, asked.labels, budget, seed, folder)
                case(f"{asked.labels:g} of the labels, {where}, seed {seed}", partial(ablation, asked.teacher, *more))
            return
        case(f"teacher {Path(asked.teacher).name}", lambda: scores(asked.teacher, images))
        for seed in asked.seeds:
            case(f"simclr, {where}, seed {seed}", partial(untaught, seed))
            for target in asked.targets:
                for view in asked.views:
                    case(f"{target}, {view}, {where}, seed {seed}", partial(taught, target, view, seed))


if __name__ == "__main__":
    main()
