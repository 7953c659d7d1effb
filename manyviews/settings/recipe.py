"""What a recipe is: everything that decides a run except the images, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from manyviews.adaptation import Adaptation, Full
from manyviews.data.reading import MAX_PIXELS, Reading
from manyviews.errors import require
from manyviews.schedules import Schedule, WarmupCosine
from manyviews.types import Backward
from manyviews.views import IMAGENET_MEAN, IMAGENET_STD

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Component:
    """A method or a backbone, by name, with the keyword arguments of its constructor.

    Attributes:
        name: name of the method or backbone.
        settings: keyword arguments; all others keep the constructor's defaults.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """How images reach the step.

    Attributes:
        canvas: longest short side, in pixels, of a canvas, as which an image is kept in its own proportions; None for
            as many pixels as the largest view can use.
        channels: 3 for RGB, 1 for gray, another number for files of so many bands, or the bands to take, from 0.
        range: black and white of files of more than 8 bits. "type" takes the whole range of their type, and measures it
            on a sample if the type has none (floats, signed and 32-bit integers); "auto" always measures it; or two
            numbers. A run records what was measured.
        frames: which picture of a file that holds several.
        max_pixels: images of more pixels are left out.
        batch_size: images per optimizer step, over all ranks and accumulated parts.
        mean: per-channel mean of the inputs, in [0, 1]. For other than three channels, measured if not given.
        std: per-channel standard deviation of the inputs, in [0, 1], likewise.
        holdout: fraction of the images that is monitored and not trained on; at most 1,000 images are.
        memory_gb: canvases stay in memory if they take at most this much, and at most half of the free memory.
            Otherwise they are decoded in each epoch.
    """

    canvas: int | None = None
    batch_size: int = 256
    channels: int | tuple[int, ...] = 3
    range: Literal["type", "auto"] | tuple[float, float] = "type"
    frames: Literal["first", "middle", "all"] = "first"
    max_pixels: int = MAX_PIXELS
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    holdout: float = 0.05
    memory_gb: float = 6.0

    def __post_init__(self) -> None:
        require(self.canvas is None or self.canvas >= 1, self, "canvas", "1 or more")
        require(self.batch_size >= 1, self, "batch_size", "1 or more")
        require(len(self.std) > 0 and min(self.std) > 0, self, "std", "positive")
        _ = self.reading  # checks the rest
        require(0 <= self.holdout < 1, self, "holdout", "at least 0 and less than 1")

    @property
    def reading(self) -> Reading:
        """How image files become pixels, as far as the settings say."""
        black_white = self.range if isinstance(self.range, tuple) else None
        return Reading(self.channels, black_white, self.frames, self.max_pixels)


@dataclass(frozen=True)
class Optimizer:
    """How weights follow gradients.

    Attributes:
        name: the update rule.
        lr: base learning rate, for a batch of 256 unless `lr_scaling` is "constant".
        lr_scaling: the peak rate is `lr * batch/256` ("linear"), `lr * sqrt(batch/256)` ("sqrt") or `lr` ("constant").
        schedule: factor on the peak rate.
        weight_decay: decoupled for adamw and muon, added to the gradient for sgd and lars. Biases and norms have none
            unless `decay_all`.
        momentum: momentum of sgd, lars and muon.
        betas: betas of adamw, and of muon for biases and norms.
        clip: largest norm of the whole gradient; None for no limit.
        decay_all: whether biases and norms decay too.
    """

    name: Literal["adamw", "muon", "sgd", "lars"] = "adamw"
    lr: float = 1e-3
    lr_scaling: Literal["linear", "sqrt", "constant"] = "linear"
    schedule: Schedule = WarmupCosine()
    weight_decay: Schedule | float = 0.05
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    decay_all: bool = False

    def __post_init__(self) -> None:
        require(self.lr >= 0, self, "lr", "0 or more")
        require(0 <= self.momentum < 1, self, "momentum", "at least 0 and less than 1")
        require(all(0 <= b < 1 for b in self.betas), self, "betas", "at least 0 and less than 1")
        require(self.clip is None or self.clip > 0, self, "clip", "positive")


@dataclass(frozen=True)
class Step:
    """How a step is executed.

    Only `accumulate` and `sync_batchnorm` change the weights that are learned. The others change rounding and the draws
    of dropout.

    Attributes:
        precision: "auto" uses bfloat16 where the device computes faster in it, and float16 with loss scaling on NVIDIA
            GPUs that have only that; see `MANYVIEWS_PRECISION`.
        backward: "per_view" backpropagates each loss term as it is yielded, small views in groups that have fewer
            pixels than the largest view. "recompute" also recomputes every branch in the backward pass, for methods
            that couple the views. "joint" keeps everything until the end, and packs views of all sizes into one pass
            of a vision transformer.
        accumulate: number of parts of a rank's batch; statistics over the batch then see one part at a time.
        sync_batchnorm: whether ranks share their BatchNorm statistics.
        compile: whether the encoder is compiled.
        not_finite: what to do when the loss or its gradient is no longer finite. "stop" ends the run. "rollback" goes
            back to the last good checkpoint and leaves out the batch at which it happened and the one before it, ten
            batches in a run at most.
        recompute_blocks: whether each block of the encoder keeps its input alone and is computed again in the backward
            pass. It takes a fifth to a third more time and a fraction of the memory, and gives the same gradient.
        shard: whether weights, gradients and optimizer state are spread over the ranks (PyTorch's FSDP2), for networks
            that no single one holds with all of these.
    """

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    backward: Backward = "per_view"
    accumulate: int = 1
    sync_batchnorm: bool = True
    compile: bool = False
    not_finite: Literal["stop", "rollback"] = "stop"
    recompute_blocks: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        require(self.accumulate >= 1, self, "accumulate", "1 or more")


@dataclass(frozen=True)
class Monitor:
    """What is monitored while training, and how often.

    Attributes:
        epochs: epochs between measurements on held-out images; 0 for the start and the end only.
        steps: steps between log lines.
        checkpoint_minutes: minutes between checkpoints. One is also written at the end and after an interruption.
        classes: whether the images' folders are the classes of the k-NN and linear accuracies; "auto" where they look
            like classes. Labels of other kinds always are.
        loggers: programs that receive the numbers, in addition to the run folder's log.
    """

    epochs: float = 5
    steps: int = 20
    checkpoint_minutes: float = 10
    classes: Literal["auto", "yes", "no"] = "auto"
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()

    def __post_init__(self) -> None:
        require(self.epochs >= 0, self, "epochs", "0 or more")
        require(self.steps >= 1, self, "steps", "1 or more")
        require(self.checkpoint_minutes >= 0, self, "checkpoint_minutes", "0 or more")


@dataclass(frozen=True)
class Regularizer(ABC):
    """A term that is added to a method's loss, as a frozen setting: see `manyviews.regularizers`."""

    @property
    def name(self) -> str:
        """The class's name in lower case, by which a dotted path finds it: `regularizers.rescue.k`."""
        return type(self).__name__.lower()

    @abstractmethod
    def check(self, method: Any) -> None:
        """Raises UserError when the method lacks something that the term needs."""

    def check_batch(self, batch: int, shares: int) -> None:  # noqa: B027  # most terms take any batch
        """Raises UserError when a batch, in equal shares of processes and accumulated parts, does not suit the term."""

    def fewer(self, images: int) -> Regularizer:
        """The same term for a few images, with which the time of a step of a whole batch is measured."""
        return self

    @abstractmethod
    def terms(self, method: Any, views: Any, heard: Any, parts: int) -> dict[str, Any]:
        """Named scalar terms for the method's terms of the moment: see `manyviews.regularizers.Regularized`."""

    def views(self, method: Any) -> tuple[Any, ...]:
        """Further view types that the term is computed from."""
        return ()


@dataclass(frozen=True)
class Stage:
    """A later part of a run, with settings of its own: larger views at the end (FixRes, Touvron et al. 2019; DINOv2).

    Schedules run over each part of a run anew, shortened to its epochs, as in DINOv2's last phase (Oquab et al. 2023).

    Attributes:
        epochs: passes over the images.
        settings: dotted paths and new values, on top of those of the part before, such as
            `{"method.view.size": 224, "test_size": 224, "optimizer.lr": 1e-4}`.
        optimizer: whether the optimizer's state (momentum, second moments) is carried over, or begins fresh.
    """

    epochs: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Literal["carried", "fresh"] = "carried"

    def __post_init__(self) -> None:
        require(0 < self.epochs < float("inf"), self, "epochs", "more than 0 and finite")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run except the images.

    Attributes:
        name: name of the recipe it started from.
        method: a method's name, with the settings that differ from the paper's defaults.
        backbone: a timm name, with `Encoder`'s settings.
        epochs: passes over the images.
        budget: seconds in which the run ends, whatever the machine does; `epochs` is then what is expected. None for
            all epochs.
        regularizers: terms that are added to the method's loss.
        adaptation: which parts of the encoder learn, and how fast: see `manyviews.adaptation`.
        stages: parts of the run after its `epochs`, each with settings of its own.
        test_size: side in pixels at which the encoder is evaluated.
        seed: seed of the initial weights, the order of the images and the views.
    """

    name: str
    method: Component
    backbone: Component
    epochs: float
    budget: float | None = None
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    step: Step = Step()
    monitor: Monitor = Monitor()
    regularizers: tuple[Regularizer, ...] = ()
    adaptation: Adaptation = Full()
    stages: tuple[Stage, ...] = ()
    test_size: int = 224
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.epochs < float("inf"), self, "epochs", "more than 0 and finite")
        require(self.budget is None or 0 < self.budget < float("inf"), self, "budget", "more than 0 and finite")
        require(self.test_size >= 1, self, "test_size", "1 or more")
        require(0 <= self.seed < 2**31, self, "seed", "at least 0 and less than 2**31")

    @property
    def all_epochs(self) -> float:
        """Passes over the images in all parts of the run."""
        return self.epochs + sum(stage.epochs for stage in self.stages)


OWN = (Component, Data, Optimizer, Step, Monitor, Stage, Recipe)
"""The parts of a recipe."""


def differences(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """The settings in which two recipes differ: dotted path, value in `a`, value in `b`."""
    old, new = dict(leaves(a)), dict(leaves(b))
    keys = [*old, *(k for k in new if k not in old)]
    return [(k, old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)]


def leaves(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a recipe, or of a part of one, with its dotted path."""
    if isinstance(part, Component):
        inner: Iterable[tuple[str, Any]] = [("name", part.name), *part.settings.items()]
    elif isinstance(part, OWN):
        inner = [(f.name, getattr(part, f.name)) for f in dataclasses.fields(part)]
    else:
        yield path, part
        return
    for name, value in inner:
        yield from leaves(value, f"{path}.{name}" if path else name)
