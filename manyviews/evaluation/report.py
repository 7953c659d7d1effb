"""The result of an evaluation: numbers that survive a trip through JSON, and their meaning in words."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from manyviews.errors import UserError
from manyviews.evaluation.contract import Metric
from manyviews.evaluation.metrics import Interval
from manyviews.evaluation.protocols import canonical, title

NAMES = {"trained": "this encoder", "untrained": "untrained encoder", "pixels": "raw pixels"}
"""Names of the representations for people."""

COLLAPSED_SPREAD, COLLAPSED_RANK = 0.05, 3.0


@dataclass(frozen=True)
class Score:
    """How well one protocol classifies the test images from one representation. Accuracies are in [0, 1].

    Attributes:
        top1: accuracy.
        interval: its 95 % bootstrap interval over the test images.
        top5: how often the label is among the five likeliest classes; None with five classes or fewer.
        per_class: accuracy for each class, None for a class without test images.
        setting: the setting, fixed in advance or chosen on the validation images.
        validation: accuracy on the validation images for each setting that was tried.
        others: test accuracy of further settings; nothing is chosen from them.
        by_seed: accuracy with each seed; `top1` is their mean.
    """

    top1: float
    interval: Interval
    top5: float | None
    per_class: tuple[float | None, ...]
    setting: dict[str, float]
    validation: dict[str, float]
    others: dict[str, float]
    by_seed: tuple[float, ...] = ()


@dataclass(frozen=True)
class Representation:
    """The spectrum of a representation, on up to 10,000 training images, and its scores.

    Attributes:
        dim: dimensions of a feature vector.
        rankme: effective rank, in [1, dim].
        spread: 1 when features are uniform on the sphere, 0 when they are one point.
        singular_values: descending.
        scores: by protocol; raw pixels have none where the encoder is tuned.
        measures: metrics by protocol, for those that do not predict each test item.
    """

    dim: int
    rankme: float
    spread: float
    singular_values: tuple[float, ...]
    scores: dict[str, Score]
    measures: dict[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True)
class Gain:
    """How much better the encoder is than a baseline: a difference of accuracies, and its paired 95 % interval."""

    difference: float
    interval: Interval


@dataclass(frozen=True)
class Nearest:
    """A test image and the training images nearest to it, as positions in their sources, with cosine similarities."""

    query: int
    items: tuple[int, ...]
    similarity: tuple[float, ...]


@dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes:
        source: name of the data.
        test: name of the test data; None when it was split off from the source.
        classes: their names.
        images: number of readable images for "train", "validation" and "test".
        test_size: side of the encoder's input in pixels.
        seed: seed of the untrained encoder, the protocols' draws, and the intervals.
        representations: "trained" and, with baselines, "untrained" and, if a protocol takes them, "pixels".
        gains: gains of the trained encoder, by baseline and protocol.
        nearest: nearest training images of a few test images.
        bad: (where, reason) for each image that could not be read and was left out.
        seconds: duration of the evaluation.
        features: kind of features: see `backbones.represent`.
        notes: sentences that a reader must know: test images that are training images, for example.
    """

    source: str
    test: str | None
    classes: tuple[str, ...]
    images: dict[str, int]
    test_size: int
    seed: int
    representations: dict[str, Representation]
    gains: dict[str, dict[str, Gain]]
    nearest: tuple[Nearest, ...]
    bad: tuple[tuple[str, str], ...]
    seconds: float
    features: str = "pooled"
    notes: tuple[str, ...] = ()

    @property
    def protocols(self) -> list[str]:
        """Names of the protocols that classify, in the order of the request."""
        return list(self.representations["trained"].scores)

    @property
    def measures(self) -> list[str]:
        """Names of the protocols that measure."""
        return list(self.representations["trained"].measures)

    @property
    def headline(self) -> str | None:
        """The protocol of the verdict: k-NN, which has nothing to tune, if it is there."""
        return "knn" if "knn" in self.protocols else next(iter(self.protocols), None)

    @property
    def verdict(self) -> str:
        """Whether the features are good, in one or two sentences."""
        trained = self.representations["trained"]
        if self.headline is None:
            return self._measured()
        score = trained.scores[self.headline]
        result = f"{title(self.headline)} {percent(score.top1)}"
        gains = {name: found[self.headline] for name, found in self.gains.items() if self.headline in found}
        if not gains:
            low, high = score.interval
            return f"{result} (95 % interval {percent(low)} to {percent(high)}), with no baseline to compare it with."
        theirs = {name: self.representations[name].scores[self.headline].top1 for name in gains}
        against = " and ".join(f"{percent(top1)} for {_article(name)}" for name, top1 in theirs.items())
        unbeaten = [name for name, gain in gains.items() if gain.interval[0] <= 0]
        if not unbeaten:
            least = min(gains.values(), key=lambda g: g.interval[0])
            low, high = least.interval
            clear = "well outside the interval" if low > high - low else "just outside the interval"
            return f"The features are {'good' if low > high - low else 'better'}: {result} against {against}, {clear}."
        if trained.spread < COLLAPSED_SPREAD or trained.rankme < COLLAPSED_RANK:
            return (
                f"The features have collapsed (RankMe {trained.rankme:.1f} of {trained.dim}): {result} against "
                f"{against}. Lower the learning rate, or enlarge the batch."
            )
        names = " or ".join(_article(name) for name in unbeaten)
        return (
            f"The features are not better than {names}: {result} against {against}. "
            "Train longer, on more images, or with augmentations that suit them."
        )

    def _measured(self) -> str:
        """The first metric in words, where nothing was classified."""
        first = self.measures[0]
        found = {name: r.measures[first] for name, r in self.representations.items() if first in r.measures}
        ours = found.pop("trained")
        against = " and ".join(f"{m.value:.3f} for {_article(name)}" for name, m in found.items())
        against = f" against {against}" if against else ""
        return f"{title(first)}: {ours.name} {ours.value:.3f}{against}."

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it, with the verdict."""
        return dataclasses.asdict(self) | {"verdict": self.verdict}

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote.

        Raises:
            UserError: the text is not a report.
        """
        try:
            facts = json.loads(text)
            facts.pop("verdict", None)
            return cls(
                **facts
                | {
                    "classes": tuple(facts["classes"]),
                    "representations": {k: _representation(v) for k, v in facts["representations"].items()},
                    "gains": {
                        baseline: {p: Gain(g["difference"], _pair(g["interval"])) for p, g in gains.items()}
                        for baseline, gains in facts["gains"].items()
                    },
                    "nearest": tuple(
                        Nearest(n["query"], tuple(n["items"]), tuple(n["similarity"])) for n in facts["nearest"]
                    ),
                    "bad": tuple(_pair(b) for b in facts["bad"]),
                    "notes": tuple(facts.get("notes", ())),
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"This is not an evaluation's report ({type(error).__name__}: {error}).") from None


def percent(accuracy: float) -> str:
    """0.712 as "71.2 %"."""
    return f"{100 * accuracy:.1f} %"


def _article(name: str) -> str:
    return "an untrained encoder" if name == "untrained" else NAMES.get(name, name)


def _pair(values: Any) -> Any:
    first, second = values
    return first, second


def _representation(facts: dict[str, Any]) -> Representation:
    scores = {
        name: Score(
            **s
            | {
                "interval": _pair(s["interval"]),
                "per_class": tuple(s["per_class"]),
                "by_seed": tuple(s.get("by_seed", ())),
            }
        )
        for name, s in facts["scores"].items()
    }
    measures = {
        canonical(name): Metric(
            **m
            | {
                "interval": None if m["interval"] is None else _pair(m["interval"]),
                "by_seed": tuple(m.get("by_seed", ())),
                "notes": tuple(m.get("notes", ())),
            }
        )
        for name, m in facts.get("measures", {}).items()
    }
    spectrum = tuple(facts["singular_values"])
    return Representation(**facts | {"singular_values": spectrum, "scores": scores, "measures": measures})
