"""A probe that learned on one set of images, tried on another set."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from manyviews.data.source import Source
from manyviews.errors import UserError
from manyviews.evaluation import metrics
from manyviews.evaluation.contract import ImageTask, LabeledTask, Metric, MetricProtocol
from manyviews.evaluation.features import Features, extract
from manyviews.evaluation.protocols._probe import Classifier, Probe, in_parts, learn
from manyviews.evaluation.unlabeled.duplicates import across


@dataclass(frozen=True)
class Shifted(MetricProtocol):
    """Accuracy on another set of images of the same classes, of a probe learned on the training images.

    For sets such as ImageNet-V2, -R, -A, Sketch and ObjectNet. The probe chooses among the classes that occur in the
    other set, as the authors of those with 200 classes do; the details give the accuracy among all classes, the
    accuracy on the test images, and the difference. The interval is over images. `evaluate` makes one for each of
    `others`; it is not listed.

    Args:
        other: images with labels that number the task's classes: see `Source.with_classes`.
        probe: see `_probe.classifier`.
        doubt: whether to note which of these images are training images, and which cannot be read.

    Raises:
        UserError: the other set has no labels.
    """

    other: Source = field(hash=False)
    probe: Probe = "linear"
    doubt: bool = True

    seeded = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "name", f"shifted {self.other.name}")  # one for each set

    def run(self, task: LabeledTask, seed: int) -> Metric:
        return self.judge(task, learn(task, self.probe, seed), seed)

    def judge(self, task: LabeledTask, model: Classifier, seed: int) -> Metric:
        """The same for a classifier of the encoder's features that has learned already."""
        other = self.other
        seen = extract(
            task.encoder,
            other,
            test_size=task.size,
            mean=task.mean,
            std=task.std,
            device=task.device,
            progress=lambda done, of: task.tell(done, of, f"images of {other.name}"),
        )
        if seen.labels is None:
            raise UserError(f"{other.name} has no labels, without which no accuracy can be told: give others.")
        scores = in_parts(lambda x: model.classify(x.to(task.device)).cpu(), seen.x)
        present = seen.labels.unique()
        right = present[scores[:, present].argmax(1)] == seen.labels
        accuracy = right.double().mean().item()
        beside = {}
        if len(task.test_y):
            usual = in_parts(model.classify, task.frozen.test_x).argmax(1).cpu() == task.test_y.cpu()
            on_test = usual.double().mean().item()
            beside = {"on the test images": on_test, "difference": accuracy - on_test}
        return Metric(
            f"accuracy on {other.name}",
            accuracy,
            metrics.bootstrap(right, seed),
            {
                "among all classes": (scores.argmax(1) == seen.labels).double().mean().item(),
                **beside,
            },
            {**model.setting, "images": len(right), "classes": len(present)},
            notes=tuple(_doubts(task, other, seen)) if self.doubt else (),
        )


def _doubts(task: ImageTask, other: Source, seen: Features) -> list[str]:
    """Sentences about images of the other set that are training images, or that cannot be read."""
    doubts, learned = [], task.frozen.trainval_x.cpu()
    known = Features(learned, None, torch.arange(len(learned)), [], [])
    leaked = {j for _, j in across(task.trainval, other, known, seen)}
    if leaked:
        doubts.append(
            f"{len(leaked)} of {len(seen)} images of {other.name} are also training images (the first: "
            f"{other.where(min(leaked))}): its accuracy is too high."
        )
    if seen.bad:
        where, reason = seen.bad[0]
        count = f"{len(seen.bad)} images of {other.name}"
        doubts.append(f"{count} could not be read and were left out (the first: {where}: {reason}).")
    return doubts
