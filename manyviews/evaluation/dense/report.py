"""What a dense evaluation found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from manyviews.evaluation.metrics import Interval
from manyviews.evaluation.report import percent


@dataclass(frozen=True)
class Dense:
    """How well an encoder serves a dense task. All measures are in [0, 1], and higher is better.

    Attributes:
        task: "segmentation", "detection" or "propagation".
        metric: what the headline number is: "mIoU", "box AP", "mask AP" or "J&F".
        value: the headline number, on the test images.
        interval: its 95 % bootstrap interval, over images or objects; None where there is no honest one.
        details: further numbers by name, in the order in which to show them.
        per_class: the headline measure of each class, or of each object; None for a class of which there is nothing.
        baselines: the headline number of what looks at no image, by its name.
        setting: with which setting: fixed in advance, or chosen on the validation images.
        validation: headline number on the validation images of each setting that was tried.
        images: how many readable ones served for "train", "validation" and "test".
        bad: (where, reason) for everything that could not be used and was left out.
        seconds: that it took.
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

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        sure = "" if self.interval is None else " (95 % interval {} to {})".format(*map(percent, self.interval))
        others = "".join(f"; {percent(value)} for {name}" for name, value in self.baselines.items())
        return f"{self.metric} {percent(self.value)}{sure} on {self.images['test']} test images{others}."

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the verdict."""
        return dataclasses.asdict(self) | {"verdict": self.verdict}
