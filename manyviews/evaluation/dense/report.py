"""The result of a dense evaluation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from manyviews.evaluation.metrics import Interval
from manyviews.evaluation.report import percent


@dataclass(frozen=True)
class Dense:
    """How well an encoder serves a dense task. All metrics are in [0, 1], and higher is better.

    Attributes:
        task: "segmentation", "detection" or "propagation".
        metric: name of the headline number: "mIoU", "box AP", "mask AP" or "J&F".
        value: the headline number, on the test images.
        interval: its 95 % bootstrap interval, over images or objects; None where there is no honest one.
        details: further numbers by name, in the order to show them.
        per_class: the headline metric of each class, or of each object; None for a class without items.
        baselines: the headline number of baselines that see no image, by name.
        setting: the setting, fixed in advance or chosen on the validation images.
        validation: headline number on the validation images for each setting that was tried.
        images: number of readable images for "train", "validation" and "test".
        bad: (where, reason) for everything that could not be used and was left out.
        seconds: duration.
        notes: sentences about what was assumed, with cures.
    """

    task: str
    metric: str
    value: float
    interval: Interval | None
    details: dict[str, float]
    per_class: dict[str, float | None]
    baselines: dict[str, float]
    setting: dict[str, float]
    validation: dict[str, float]
    images: dict[str, int]
    bad: tuple[tuple[str, str], ...]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        sure = "" if self.interval is None else " (95 % interval {} to {})".format(*map(percent, self.interval))
        others = "".join(f"; {percent(value)} for {name}" for name, value in self.baselines.items())
        return f"{self.metric} {percent(self.value)}{sure} on {self.images['test']} test images{others}."

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON can hold it, with the verdict."""
        return dataclasses.asdict(self) | {"verdict": self.verdict}
