"""A probe that learned on clean images, tried on corrupted ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from manyviews.errors import unknown
from manyviews.evaluation import metrics
from manyviews.evaluation.contract import Count, LabeledTask, Metric, MetricProtocol, Range
from manyviews.evaluation.corrupt import KINDS, SEVERITIES, corrupt
from manyviews.evaluation.features import encode, read_again
from manyviews.evaluation.protocols._probe import Classifier, Probe, in_parts, learn
from manyviews.views import Draws

_BATCH = 128  # images that are corrupted at a time
_SEVERITY = Range(lambda v: v in SEVERITIES, "from 1 to 5")


@dataclass(frozen=True)
class Corruptions(MetricProtocol):
    """Mean accuracy on corrupted test images (noise, blur, weather, compression) of a probe learned on clean ones.

    The mean is over kinds and severities. The details are the accuracy on the same images when they are clean, and
    the accuracy for each kind and each severity. The interval is over images.

    Args:
        kinds: names of corruptions: see `corrupt.KINDS`.
        severities: severities from 1 to 5.
        images: largest number of test images; the encoder sees each `len(kinds) * len(severities)` times.
        probe: see `_probe.classifier`.

    Raises:
        UserError: an unknown kind, severity or probe.
    """

    name = "corruptions"
    title = "corrupted images"
    seeded = True
    in_color = True

    kinds: tuple[str, ...] = KINDS
    severities: Annotated[tuple[int, ...], _SEVERITY] = SEVERITIES
    images: Count = 2000
    probe: Probe = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in self.kinds:
            if kind not in KINDS:
                raise unknown("corruption", kind, KINDS)

    def run(self, task: LabeledTask, seed: int) -> Metric:
        return self.judge(task, learn(task, self.probe, seed), seed)

    def judge(self, task: LabeledTask, model: Classifier, seed: int) -> Metric:
        """The same for a classifier of the encoder's features that has learned already."""
        kinds, severities = self.kinds, self.severities
        m = len(task.test_y)
        rows = Draws(seed, 0, torch.arange(m)).bits("images", 1)[:, 0].argsort()[: self.images].sort()[0]
        y, n = task.test_y.cpu()[rows], len(rows)
        right = torch.zeros(len(kinds), len(severities), n, dtype=torch.bool)
        done = 0
        for pixels in read_again(task.test.subset(rows.numpy()), task.size, _BATCH):
            part, pixels = slice(done, done + len(pixels)), pixels.to(task.device)
            x = []
            for i, kind in enumerate(kinds):
                for severity in severities:
                    changed = corrupt(pixels, kind, severity, rows[part], seed)
                    x.append(encode(task.encoder, changed, mean=task.mean, std=task.std, device=task.device))
                task.tell(done * len(kinds) + len(pixels) * (i + 1), n * len(kinds), kind.replace("_", " "))
            guess = in_parts(model.classify, torch.cat(x)).argmax(1).cpu()
            right[..., part] = guess.view(len(kinds), len(severities), -1) == y[part]
            done += len(pixels)
        clean = in_parts(model.classify, task.frozen.test_x[rows.to(task.device)]).argmax(1).cpu() == y
        found = right.double()
        return Metric(
            "accuracy on corrupted images",
            found.mean().item(),
            metrics.bootstrap(found.mean((0, 1)), seed),
            {
                "clean": clean.double().mean().item(),
                **dict(zip(kinds, found.mean((1, 2)).tolist(), strict=True)),
                **{f"severity {s}": v for s, v in zip(severities, found.mean((0, 2)).tolist(), strict=True)},
            },
            {**model.setting, "images": n},
        )
