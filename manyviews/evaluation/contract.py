"""The contract of protocols: the problem they see, the answer they give, and the facts they declare.

A protocol is a frozen dataclass whose fields are its settings. Protocols that predict never see the labels of test
items, because neither `Task` nor `ImageTask` has them; `LabeledTask` does, and only protocols that measure get it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from manyviews.data.source import Source
from manyviews.errors import UserError
from manyviews.progress import Update

Sees = Literal["features", "images", "network", "projector"]
"""The most that a protocol looks at.

- "features": frozen features.
- "images": the images again, with any module that maps images to features.
- "network": the encoder's layers or weights, so raw pixels have no result.
- "projector": the projector of a run, so only the trained encoder has a result.
"""


def check_seed(seed: int) -> None:
    """Raises UserError: the seed is not one that every library takes."""
    if not 0 <= seed < 2**31:
        raise UserError(f"The seed must be at least 0 and less than 2**31, not {seed}.")


def check_seeds(seed: int, seeds: int) -> None:
    """Raises UserError: `check_seed`, or no number of seeds to run protocols with."""
    check_seed(seed)
    if seeds < 1:
        raise UserError(f"Protocols are run with 1 seed or more, not {seeds}.")


# -- problems ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A classification problem without the labels of its test items.

    Attributes:
        train_x, train_y: features and labels to learn from: float32, `n d`, and int64, `n`. In the protocol
            "multilabel", labels are bool, `n classes`.
        val_x, val_y: the same to choose settings with: `v d` and `v`.
        test_x: features to predict for: `m d`.
        classes: number of classes.
        names: their names.
    """

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    classes: int
    names: tuple[str, ...] = ()

    @property
    def trainval_x(self) -> Tensor:
        """Training features, then validation features."""
        return torch.cat([self.train_x, self.val_x])

    @property
    def trainval_y(self) -> Tensor:
        """Training labels, then validation labels."""
        return torch.cat([self.train_y, self.val_y])


class Projector(NamedTuple):
    """The projector of a run.

    Attributes:
        layers: `b d` to `b z`.
        inputs: images, `b 3 size size`, to the features that the projector takes, `b d`; None for the encoder's
            pooled features.
    """

    layers: nn.Sequential
    inputs: nn.Module | None = None


@dataclass(frozen=True)
class ImageTask:
    """The same problem with its images, for protocols that look at them again.

    Attributes:
        encoder: maps normalized images, `b 3 size size`, to features, `b d`; on `device`. It stays as it is: a
            protocol that trains, trains a copy.
        frozen: features of all images under `features.test_transform`, and labels; on `device`.
        trainval: the images of `frozen.train_x`, then those of `frozen.val_x`, without labels.
        test: the images of `frozen.test_x`, without labels.
        size: side of the encoder's input in pixels.
        mean: per channel, for images in [0, 1].
        std: per channel, for images in [0, 1].
        device: device to compute on.
        progress: called after each step with the steps done and their total.
        projector: the projector that was trained on the encoder, if there is one.
    """

    encoder: nn.Module
    frozen: Task
    trainval: Source
    test: Source
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    progress: Update | None = None
    projector: Projector | None = None

    def tell(self, done: int, total: int, note: str = "") -> None:
        """Report progress, if anybody listens."""
        if self.progress is not None:
            self.progress(done, total, note)


@dataclass(frozen=True, kw_only=True)
class LabeledTask(ImageTask):
    """The same problem with the labels of the test images, for protocols that measure. Nothing is chosen with them.

    Attributes:
        test_y: int64, `m`; bool, `m classes`, in the protocol "multilabel"; on `device`.
    """

    test_y: Tensor


# -- answers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """The classes that a protocol predicts for the test items.

    Attributes:
        ranked: int64, `m min(5, classes)`: the likeliest classes, best first.
        setting: the setting that predicted them.
        validation: accuracy on the validation set of each setting that was tried.
        others: int64, `m`: predictions of settings that are reported in addition.
        notes: sentences that a reader must know.
    """

    ranked: Tensor
    setting: dict[str, float]
    validation: list[tuple[dict[str, float], float]]
    others: dict[str, Tensor]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metric:
    """A number that a protocol measured, other than the accuracy of predictions.

    Attributes:
        name: name of the headline number, for people: "NMI", "mAP", "mean accuracy".
        value: the headline number; higher is better.
        interval: its 95 % interval; None where there is no honest one.
        details: further numbers by name, in the order to show them: a curve, a table, a second metric.
        setting: the setting, fixed in advance or chosen on validation images; that of the first seed.
        by_seed: the headline number for each seed, if there were several; all numbers above are means over them.
        notes: sentences that a reader must know.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    details: dict[str, float]
    setting: dict[str, float]
    by_seed: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


# -- protocols ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """The range of a setting, or of each item of a tuple: `lr: Annotated[float, POSITIVE] = 0.1`.

    Attributes:
        holds: whether a value is in the range.
        words: the range for people; completes "must be".
    """

    holds: Callable[[Any], bool]
    words: str


POSITIVE = Range(lambda v: 0 < v < math.inf, "positive and finite")
POSITIVE_OR_NONE = Range(lambda v: v is None or 0 < v < math.inf, "positive and finite, or none")
NOT_NEGATIVE = Range(lambda v: 0 <= v < math.inf, "at least 0 and finite")
SHARE = Range(lambda v: 0 < v <= 1, "more than 0 and at most 1")
BELOW_ONE = Range(lambda v: 0 <= v < 1, "at least 0 and less than 1")

LearningRates = Annotated[tuple[float, ...], POSITIVE]
WeightDecays = Annotated[tuple[float, ...], NOT_NEGATIVE]
Count = Annotated[int, POSITIVE]


@dataclass(frozen=True)
class Protocol(ABC):
    """A way to judge an encoder. Its fields are its settings, the first line of its docstring says what it does.

    Subclass one of `FeatureProtocol`, `ImageProtocol` and `MetricProtocol`, as a frozen dataclass. `Annotated` fields
    with a `Range` are checked. A subclass that was imported is known by its name: see `manyviews.evaluation.protocols`.

    Attributes:
        name: the name to ask for, and the key in a report; a class without one is not listed.
        title: the name in tables.
        formerly: earlier names, which are still understood.
        sees: the most that it looks at.
        in_color: whether it changes images in ways that only RGB has.
        seeded: whether the result depends on the seed. Such protocols are repeated with several seeds.
        passes: passes over all images, for the time left; 0 for none. See `forwards`, and `products` for work on
            features.

    Raises:
        UserError: a setting is out of its range.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    formerly: ClassVar[tuple[str, ...]] = ()
    sees: ClassVar[Sees] = "images"
    seeded: ClassVar[bool] = False
    in_color: ClassVar[bool] = False
    passes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for name in (f.name for f in fields(self)):
            if get_origin(hints[name]) is not Annotated:
                continue
            value = getattr(self, name)
            for limit in (extra for extra in get_args(hints[name])[1:] if isinstance(extra, Range)):
                if value == () or not all(map(limit.holds, value if isinstance(value, tuple) else (value,))):
                    raise UserError(f"The setting {self.name}.{name} must be {limit.words}, not {value}.")

    def forwards(self, rows: int) -> float:
        """About how many images a run sends through the encoder, for the time left.

        Args:
            rows: training images. One that the encoder itself learns from counts three times.
        """
        return float(self.passes * rows)

    def products(self, rows: int, tests: int, dims: int, classes: int) -> float:
        """About how many multiplications a run takes with features, for the time left; 0 for next to nothing.

        Args:
            rows: training features.
            tests: test features.
            dims: their dimensions.
            classes: number of classes.
        """
        return 0.0

    @abstractmethod
    def run(self, task: Any, seed: int) -> Prediction | Metric:
        """Judge an encoder on a task."""


@dataclass(frozen=True)
class FeatureProtocol(Protocol):
    """A protocol that predicts from frozen features."""

    sees: ClassVar[Sees] = "features"
    passes: ClassVar[int] = 0

    @abstractmethod
    def run(self, task: Task, seed: int) -> Prediction:
        """Predict the classes of the test items."""


@dataclass(frozen=True)
class ImageProtocol(Protocol):
    """A protocol that predicts from images."""

    passes: ClassVar[int] = 100

    @abstractmethod
    def run(self, task: ImageTask, seed: int) -> Prediction:
        """Predict the classes of the test images."""


@dataclass(frozen=True)
class MetricProtocol(Protocol):
    """A protocol that measures, with the labels of the test images, with which it chooses nothing."""

    @abstractmethod
    def run(self, task: LabeledTask, seed: int) -> Metric:
        """Measure the encoder. The labels of the test images are `task.test_y`."""
