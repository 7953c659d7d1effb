"""Numbers of a model on labeled images: those that chose, test images, and images under other conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manyviews.data.source import unlabeled
from manyviews.evaluation import metrics
from manyviews.evaluation.contract import ImageTask, LabeledTask
from manyviews.evaluation.corrupt import KINDS, SEVERITIES, corrupt
from manyviews.evaluation.features import Features, check_finite, encode, extract, read_again
from manyviews.evaluation.protocols._probe import Classifier
from manyviews.evaluation.protocols.corruptions import Corruptions
from manyviews.evaluation.protocols.shifted import Shifted
from manyviews.evaluation.unlabeled.duplicates import across
from manyviews.progress import Update, progress
from manyviews.tuning.calibration import calibration_error
from manyviews.tuning.targets import explained
from manyviews.verbs._common import preprocessing
from manyviews.verbs._labels import Labeled
from manyviews.weights.model import Model, answered

_BATCH = 128  # images that are corrupted at a time
_MOST = 2000  # test images that are corrupted


def judged(
    task: str, outputs: Tensor, y: Tensor, names: Sequence[str], temperature: float, thresholds: Sequence[float]
) -> dict[str, Any]:
    """How good a head's outputs are, `m outputs`, with a 95 % interval.

    Args:
        task: what the labels are.
        outputs: on the CPU.
        y: the labels: int64 `m`, bool `m classes`, or float32 `m columns` in their own units.
        names: names of the classes, or of the numbers.
        temperature: of the probabilities.
        thresholds: with "several", from which probability on an image has a class.
    """
    found = answered(outputs, task, temperature)
    if task == "classes":
        before = calibration_error(outputs.softmax(1), y)
        return {**_classes(found, y), "calibration_error": calibration_error(found, y), "uncalibrated": before}
    return _several(found, y, names, thresholds) if task == "several" else _numbers(found, y, names)


def _classes(probability: Tensor, y: Tensor) -> dict[str, Any]:
    right = probability.argmax(1) == y
    each = metrics.per_class(right, y, probability.shape[1])
    present = [a for a in each if a is not None]
    sure = probability.double().gather(1, y[:, None]).clamp(min=1e-12).log()
    return {
        "accuracy": right.double().mean().item(),
        "interval": metrics.bootstrap(right),
        "mean_per_class": float(np.mean(present)),
        "per_class": each,
        "cross_entropy": -sure.mean().item(),
    }


def _several(probability: Tensor, y: Tensor, names: Sequence[str], thresholds: Sequence[float]) -> dict[str, Any]:
    ranking = metrics.Ranking.of(probability, y)
    each = ranking.average_precision()
    there = probability >= torch.tensor(thresholds)
    f1 = 2 * (there & y).sum(0).double() / (there.sum(0) + y.sum(0)).clamp(min=1)
    some = y.any(0)
    return {
        "mAP": float(np.nanmean(each)) if some.any() else 0.0,
        "interval": ranking.bootstrap() if some.any() else (0.0, 1.0),
        "f1": f1[some].mean().item() if some.any() else 0.0,
        "all_right": (there == y).all(1).double().mean().item(),
        "average_precision": {n: None if np.isnan(v) else float(v) for n, v in zip(names, each, strict=True)},
    }


def _numbers(found: Tensor, y: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """The mean absolute error with its interval, and R², for each number; the mean R² of several."""
    off, shares = (found - y).abs().double(), explained(found, y)
    each = {
        name: {"mae": off[:, k].mean().item(), "interval": metrics.bootstrap(off[:, k]), "r2": shares[k]}
        for k, name in enumerate(names)
    }
    alone = each[names[0]] if len(names) == 1 else {}
    return {**alone, "r2": sum(shares) / len(shares), "numbers": each}


@dataclass(frozen=True, eq=False)
class Judge:
    """What models are tested on.

    Attributes:
        learned: the images that were learned from, to find test images among them.
        held: test images.
        others: images under other conditions.
        corruptions: whether to test on corrupted test images.
        seed: seed of corruptions and intervals.
    """

    learned: ImageTask
    held: Labeled | None
    others: tuple[Labeled, ...]
    corruptions: bool
    seed: int

    def all(self, model: Model, known: Tensor | None) -> dict[str, Any]:
        """The numbers of a model.

        Args:
            model: the model.
            known: its features of the images that were learned from; None not to look for test images among them.
        """
        found: dict[str, Any] = {}
        if self.held is None and not self.others:
            return found
        seen = None
        if self.held is not None:
            seen = self._seen(model, self.held, "test")
            found["test"] = {**self._numbers(model, self.held, seen), "unreadable": len(seen.bad)}
            if known is not None:  # the images themselves are read only where features cannot tell them apart
                before = Features(known, None, torch.arange(len(known)), [], [])
                twice = across(self.learned.trainval, self.held.source, before, seen)
                near = model.kept.distance(seen.x) <= model.kept.threshold
                found["test"]["known"] = near.double().mean().item()
                found["test"]["learned_from"] = len({j for _, j in twice})
        if model.task == "classes":
            return found | self._of_classes(model, seen)
        if self.corruptions and seen is not None:
            with progress("corruptions") as update:
                found["corruptions"] = self._corrupted(model, seen, update)
        for other in self.others:
            looked = self._seen(model, other, other.source.name)
            found.setdefault("shifted", {})[other.source.name] = self._numbers(model, other, looked)
        return found

    def _seen(self, model: Model, part: Labeled, title: str) -> Features:
        with progress(title) as update:
            seen = extract(model.encoder, part.source, progress=update, **preprocessing(model))
        check_finite(seen.x)
        return seen

    def _numbers(self, model: Model, part: Labeled, seen: Features) -> dict[str, Any]:
        found = self._judged(model, seen.x, self._labels(part, seen))
        found.pop("uncalibrated", None)
        return {"data": part.source.name, "images": len(seen), **found}

    @staticmethod
    def _labels(part: Labeled, seen: Features) -> Tensor:
        assert part.y is not None
        return part.y[seen.index]

    @staticmethod
    def _judged(model: Model, x: Tensor, y: Tensor) -> dict[str, Any]:
        with torch.no_grad():
            outputs = model.head(x.to(next(model.head.parameters()).device)).float().cpu()
        return judged(model.task, outputs, y, model.classes, model.temperature, model.thresholds)

    def _of_classes(self, model: Model, seen: Features | None) -> dict[str, Any]:
        """Corruptions and shifted sets, as `evaluate` measures them."""
        look, known, found = preprocessing(model), self.learned.frozen, dict[str, Any]()
        x, y, images = known.train_x[:0], known.train_y[:0], self.learned.test
        if self.held is not None and seen is not None:
            x, y = seen.x.to(look["device"]), self._labels(self.held, seen).to(look["device"])
            images = replace(self.held.source.subset(seen.index.numpy()), annotate=unlabeled)
        how = model.test_size, tuple(model.mean), tuple(model.std), look["device"]
        task = LabeledTask(model.encoder, replace(known, test_x=x), self.learned.trainval, images, *how, test_y=y)

        def logits(x: Tensor) -> Tensor:
            with torch.no_grad():
                answer: Tensor = model.head(x).float()
            return answer

        judge = Classifier(logits, {})
        if self.corruptions:
            with progress("corruptions") as update:
                measured = Corruptions().judge(replace(task, progress=update), judge, self.seed)
            found["corruptions"] = {"accuracy": measured.value, "interval": measured.interval, **measured.details}
        for other in self.others:
            name = other.source.name
            with progress(name) as update:
                measured = Shifted(other.source, doubt=False).judge(replace(task, progress=update), judge, self.seed)
            numbers = {"accuracy": measured.value, "interval": measured.interval, **measured.details}
            found.setdefault("shifted", {})[name] = numbers
        return found

    def _corrupted(self, model: Model, seen: Features, update: Update) -> dict[str, Any]:
        """The mean over kinds and severities of the number that counts, and of each kind."""
        assert self.held is not None
        look = {k: v for k, v in preprocessing(model).items() if k != "test_size"}
        rows = torch.linspace(0, len(seen) - 1, min(_MOST, len(seen))).long()
        y, metric = self._labels(self.held, seen)[rows], "mAP" if model.task == "several" else "r2"
        images = self.held.source.subset(seen.index[rows].numpy())
        x: dict[tuple[str, int], list[Tensor]] = {(kind, s): [] for kind in KINDS for s in SEVERITIES}
        done = 0
        for pixels in read_again(images, model.test_size, _BATCH):
            part = rows[done : done + len(pixels)]
            for kind, severity in x:
                changed = corrupt(pixels.to(look["device"]), kind, severity, part, self.seed)
                x[kind, severity].append(encode(model.encoder, changed, **look).cpu())
            done += len(pixels)
            update(done, len(rows))
        values = {k: self._judged(model, torch.cat(v), y)[metric] for k, v in x.items()}
        each = {kind: float(np.mean([values[kind, s] for s in SEVERITIES])) for kind in KINDS}
        clean = self._judged(model, seen.x[rows], y)[metric]
        return {metric: float(np.mean(list(values.values()))), "clean": clean, **each}
