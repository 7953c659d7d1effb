"""What a row of a paper's table is made of: a training, what follows it, and the numbers that the paper prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Literal

Printed = Mapping[str, float | None]
"""The paper's numbers as printed, by where ours is found; None where it has a picture, or words. Accuracies and
average precisions are in percent."""

Settings = Mapping[str, str]
"""Dotted paths and values, as one types them after `--set`."""


@dataclass(frozen=True)
class Training:
    """A run, which several rows may share.

    Attributes:
        recipe: its name.
        data: name of the set of images: see `sets`.
        epochs: passes over the images; the recipe's if None.
        settings: settings of the recipe that the row changes.
    """

    recipe: str
    data: str = "imagenet"
    epochs: float | None = None
    settings: Settings = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A name for its folder, which says all but the settings: of these it has a hash."""
        words = [self.recipe, *([] if self.data == "imagenet" else [self.data])]
        words += [] if self.epochs is None else [f"{self.epochs:g}ep"]
        return "-".join([*words, *([hashed(self.settings)] if self.settings else [])])


@dataclass(frozen=True)
class Evaluate:
    """`evaluate` with the protocols that the numbers name: "knn_majority", or "linear_augmented.top5" for a field.

    Attributes:
        printed: the numbers.
        data: name of the set of images.
        features: features of a vision transformer.
        settings: settings of the protocols.
        lists: settings that are files, by their names in the folder of the set.
    """

    printed: Printed
    data: str = "imagenet"
    features: Literal["pooled", "last4", "cls_mean"] = "pooled"
    settings: Settings = field(default_factory=dict)
    lists: Settings = field(default_factory=dict)

    @property
    def protocols(self) -> list[str]:
        return list(dict.fromkeys(key.partition(".")[0] for key in self.printed))


LISTS: Settings = {"semi_1.subset": "1percent.txt", "semi_10.subset": "10percent.txt"}
"""SimCLR's lists of images, for `Evaluate.lists`."""


@dataclass(frozen=True)
class Transfer:
    """`transfer` to a folder of sets, whose names and protocols the numbers name: "pets.logistic.mean_per_class".

    A number of a set whose images have several labels has the name of one of its measures, such as
    "voc2007.multilabel.mAP of 11 points".
    """

    printed: Printed
    data: str = "suite"
    settings: Settings = field(default_factory=dict)

    @property
    def protocols(self) -> list[str]:
        return list(dict.fromkeys(key.split(".")[1] for key in self.printed))


@dataclass(frozen=True)
class Detect:
    """`detect`, whose numbers have COCO's names: "box AP50", "mask AP"."""

    printed: Printed
    data: str
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)


COCO_1X: Mapping[str, str | int | float | bool] = {"preset": "coco_1x", "masks": True}
"""Boxes and masks in COCO, for `Detect.options`."""

VOC_24K: Mapping[str, str | int | float | bool] = {"preset": "voc_24k"}
"""Boxes in VOC, by a ResNet."""


@dataclass(frozen=True)
class Diagnose:
    """`diagnose` of published weights: the numbers are "cosine" of two views, and "strong" of a view and a strong one.

    Attributes:
        printed: the numbers.
        weights: as `manyviews.load` takes them.
        data: name of the set of images.
    """

    printed: Printed
    weights: str
    data: str = "imagenet"


@dataclass(frozen=True)
class Subspaces:
    """`subspaces` of a MAST run; the numbers are "accuracy.embedding" and "accuracy.ensemble"."""

    printed: Printed = field(default_factory=dict)
    data: str = "imagenet"


@dataclass(frozen=True)
class Sweep:
    """`sweep` over values of settings, of trainings of its own. The number is the value that the paper finds best.

    Attributes:
        printed: by setting, the best value.
        training: what all its trainings share.
        vary: settings and their values.
        baseline: settings of the trainings that the others are compared with.
        seeds: trainings of each value.
    """

    printed: Printed
    training: Training
    vary: Mapping[str, tuple[str, ...]]
    baseline: Settings = field(default_factory=dict)
    seeds: int = 3

    @property
    def data(self) -> str:
        return self.training.data

    @property
    def runs(self) -> int:
        """How many trainings it takes."""
        return self.seeds * (sum(map(len, self.vary.values())) + bool(self.baseline))

    @property
    def name(self) -> str:
        """A name for its folder."""
        return f"{self.training.name}-{hashed({**{k: ','.join(v) for k, v in self.vary.items()}, **self.baseline})}"


Step = Evaluate | Transfer | Detect | Diagnose | Subspaces | Sweep


@dataclass(frozen=True)
class Row:
    """A row of a table, or of a figure that has numbers.

    Attributes:
        words: what it is.
        run: its training; None for a sweep, which has its own, for published weights, and for a row that cannot be run.
        steps: what follows, with the paper's numbers.
        hours: hours of training that the paper prints.
        absent: why it cannot be run here; empty if it can.
        notes: in which respects this is not what the paper did, beyond what the recipe says.
        name: such as "mulan.table2.byol".
        where: where the paper has it, such as "table 2, row 2".
    """

    words: str
    run: Training | None
    steps: tuple[Step, ...]
    hours: float | None = None
    absent: str = ""
    notes: tuple[str, ...] = ()
    name: str = ""
    where: str = ""

    @property
    def data(self) -> list[str]:
        """Names of the sets of images that it needs."""
        found = [*([] if self.run is None else [self.run.data]), *(step.data for step in self.steps)]
        return list(dict.fromkeys(found))


def row(words: str, run: Training | None, *steps: Step, hours: float | None = None, notes: Iterable[str] = ()) -> Row:
    """A row that can be run."""
    return Row(words, run, steps, hours, notes=tuple(notes))


def absent(words: str, why: str, *steps: Step) -> Row:
    """A row that cannot be run here, with the paper's numbers."""
    return Row(words, None, steps, absent=why)


def table(name: str, where: str, rows: Mapping[str, Row]) -> tuple[Row, ...]:
    """Rows with their names and places, in the paper's order."""
    return tuple(
        replace(found, name=f"{name}.{key}", where=f"{where}, row {i}")
        for i, (key, found) in enumerate(rows.items(), start=1)
    )


def hashed(settings: Settings) -> str:
    """Six hexadecimal digits of a hash of settings in any order."""
    text = "\n".join(f"{path}={value}" for path, value in sorted(settings.items()))
    return blake2b(text.encode(), digest_size=3).hexdigest()
