"""Ways to adapt an encoder, from the cheapest to the dearest.

The ladder and its numbers are those of common practice: linear probe or small head, low-rank adaptation (Hu et al.
2022), gradual unfreezing (Howard and Ruder 2018), LP-FT (Kumar et al. 2022), and fine-tuning. Everything is chosen on
validation images: what learns stops when they no longer improve, and goes back to its best state.
"""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from manyviews.adaptation import Adaptation, Full, LastBlocks, LoRA
from manyviews.adaptation.adaptation import blocks_of
from manyviews.adaptation.groups import by_decay
from manyviews.backbones import Encoder
from manyviews.engine.precision import resolve
from manyviews.errors import require
from manyviews.evaluation.contract import Task
from manyviews.evaluation.crops import noise
from manyviews.evaluation.descent import cosine, descend, minibatches, stepping
from manyviews.evaluation.features import frozen
from manyviews.evaluation.linear import PENALTIES, Layer, Standardizer, sweep
from manyviews.heads.classify import Standardize, classifier
from manyviews.tuning.goal import Score
from manyviews.tuning.problem import Candidate, Problem

_LOOK = 10
"""Steps between two looks at the validation images, at least."""

_BATCH = 256  # features of a step of a small head


@dataclass(frozen=True)
class Strategy(ABC):
    """A way to adapt an encoder, as frozen settings.

    Attributes:
        name: the name to ask for.
    """

    name: ClassVar[str] = ""

    @abstractmethod
    def run(self, problem: Problem, before: Candidate | None = None) -> Candidate:
        """Adapt.

        Args:
            problem: what to learn.
            before: the best that there is, whose head is where this begins; None for a fresh linear one.
        """

    @abstractmethod
    def again(self, problem: Problem, found: Candidate, start: Candidate) -> Candidate:
        """The same from all images, those that chose too: with the setting that was best, and without choosing.

        Args:
            problem: what was learned.
            found: what `run` found. Its score and logits stay.
            start: where it began, learned again already.
        """

    def shortened(self, share: float) -> Strategy:
        """The same strategy in about this share of its time; heads stay as they are."""
        descent = getattr(self, "descent", None)
        return self if descent is None else replace(cast(Any, self), descent=descent.shortened(share))


# -- heads ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear(Strategy):
    """Logistic regression on frozen, standardized features, by L-BFGS; validation images choose its L2 penalty.

    Attributes:
        penalties: L2 penalties to try.
    """

    name = "linear"

    penalties: tuple[float, ...] = PENALTIES

    def run(self, problem: Problem, before: Candidate | None = None) -> Candidate:
        begun, known = time.monotonic(), problem.task.frozen
        found = sweep(
            known,
            known.train_y,
            known.classes,
            problem.goal.convex,
            lambda logits: problem.score(logits).value,
            self.penalties,
            200,
        )
        head, logits = _linear_head(found.classify), found.classify(known.val_x).cpu()
        return Candidate(
            self.name,
            problem.encoder,
            head,
            {"kind": "linear"},
            logits,
            problem.score(logits),
            sum(p.numel() for p in head.parameters()),
            found.setting,
            tuple({**setting, "validation": score} for setting, score in found.validation),
            time.monotonic() - begun,
        )

    def again(self, problem: Problem, found: Candidate, start: Candidate) -> Candidate:
        known, goal, penalty = problem.whole.task.frozen, problem.whole.goal, float(found.setting["l2"])
        layer = sweep(known, known.train_y, known.classes, goal.convex, lambda _: 0.0, (penalty,), 200).classify
        return replace(found, head=_linear_head(layer))


def _linear_head(layer: Layer) -> nn.Sequential:
    """A standardization and a linear layer, as modules."""
    head = classifier({"kind": "linear"}, *layer.weight.shape)
    with torch.no_grad():
        for p, value in zip(head.parameters(), (layer.weight.T, layer.bias), strict=True):
            p.copy_(value)
    return nn.Sequential(Standardize(layer.standard.mean, layer.standard.std), head).to(layer.weight.device).eval()


@dataclass(frozen=True)
class MLP(Strategy):
    """A hidden layer on frozen, standardized features of light crops, by AdamW, stopped early.

    The hidden layer is twice as wide as the features, with layer norm, GELU and dropout. The encoder sees each image
    whole and in a few crops, once.

    Attributes:
        crops: crops of each image besides the whole one.
        area: range of a crop's share of the image.
        dropout: share of the hidden units that is left out in training.
        lr: learning rate, to zero by a cosine.
        weight_decay: weight decay of the matrices.
        epochs: passes over the features.
        fewest: steps, at least.
        patience: looks at the validation images without a better score, after which it stops.
    """

    name = "mlp"

    crops: int = 4
    area: tuple[float, float] = (0.35, 1.0)
    dropout: float = 0.2
    lr: float = 1e-3
    weight_decay: float = 1e-4
    epochs: int = 60
    fewest: int = 200
    patience: int = 15

    def run(self, problem: Problem, before: Candidate | None = None) -> Candidate:
        begun, known = time.monotonic(), problem.task.frozen
        head, steps, every = self._fresh(problem)
        best = _Best(problem, problem.encoder, head, self.patience)
        for done in self._descend(problem, head, steps, steps):
            if done % max(every, _LOOK) == 0 or done == steps:
                with torch.no_grad():
                    logits = head.eval()(known.val_x).cpu()
                if best.look(logits, done) or problem.left <= 0:
                    break
        setting = {"steps": done, "of": steps}
        return best.candidate(self.name, problem.encoder, head, self._spec(known), head[1].parameters(), begun, setting)

    def again(self, problem: Problem, found: Candidate, start: Candidate) -> Candidate:
        """As many passes as were best, at the same rates."""
        whole = problem.whole
        more = len(whole.task.frozen.train_y) / len(problem.task.frozen.train_y)
        head, _, _ = self._fresh(whole)
        steps, of = (max(1, round(int(found.setting[k]) * more)) for k in ("steps", "of"))
        for _ in self._descend(whole, head, steps, of):
            pass
        return replace(found, head=head.eval())

    def _spec(self, known: Task) -> dict[str, Any]:
        return {"kind": "mlp", "hidden": 2 * known.train_x.shape[1], "dropout": self.dropout}

    def _fresh(self, problem: Problem) -> tuple[nn.Sequential, int, int]:
        """A head before it learns, and the steps of the whole training and of one pass over the images."""
        known = problem.task.frozen
        standard = Standardizer.of(known.train_x)
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(problem.seed)
            made = classifier(self._spec(known), known.train_x.shape[1], known.classes)
        n = len(problem.goal.rows(known.train_y, problem.seed)) * (1 + self.crops)
        every = math.ceil(n / min(_BATCH, n))
        head = nn.Sequential(Standardize(standard.mean, standard.std), made).to(problem.task.device)
        return head, max(self.epochs * every, self.fewest), every

    def _descend(self, problem: Problem, head: nn.Sequential, steps: int, of: int) -> Iterator[int]:
        """The first `steps` of `of`; yields the steps done, after each."""
        x, y = self._features(problem)
        device = problem.task.device
        parameters = by_decay(head[1].named_parameters(), {}, self.weight_decay)
        optimizer = torch.optim.AdamW(parameters, fused=device.type in ("cpu", "cuda"))

        def backward(rows: Tensor) -> None:
            rows = rows.to(device)
            (problem.goal.loss(head.train()(x[rows]), y[rows]) / len(rows)).backward()

        batches = islice(minibatches(len(x), min(_BATCH, len(x)), torch.Generator().manual_seed(problem.seed)), steps)
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(problem.seed)
            yield from descend(batches, stepping(optimizer, backward), lambda step: self.lr * cosine(step, of))

    def _features(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Features of the whole images and of crops, and labels, on the device."""
        task, rows = problem.task, problem.goal.rows(problem.task.frozen.train_y, problem.seed)
        rows = rows.to(task.device)
        x, y = [task.frozen.train_x[rows]], [task.frozen.train_y[rows]]
        if self.crops:
            source = problem.crops(self.area, 256)
            for number in range(self.crops):
                for images, labels in source.epoch(number):
                    with frozen(problem.encoder):
                        found = problem.encoder(images.contiguous(memory_format=torch.channels_last)).float()
                    x.append(found.clone())
                    y.append(labels)
                problem.tell(number + 1, self.crops, f"{self.name}: crops")
        return torch.cat(x), torch.cat(y)


# -- encoders ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Descent:
    """How an encoder and its head learn from crops, by AdamW.

    Attributes:
        lr: learning rate of the encoder.
        head_lr: learning rate of the head.
        epochs: passes over the images.
        fewest: steps, at least: few images are seen in more epochs.
        batch: largest number of images per step.
        warmup: epochs in which the rates grow linearly; then they fall to zero by a cosine.
        weight_decay: weight decay of matrices and kernels.
        clip: largest norm of the whole gradient.
        patience: looks at the validation images without a better score, after which it stops.
        area: range of a crop's share of the image.
    """

    lr: float
    head_lr: float = 1e-4
    epochs: int = 12
    fewest: int = 200
    batch: int = 64
    warmup: float = 0.0
    weight_decay: float = 1e-5
    clip: float = 1.0
    patience: int = 6
    area: tuple[float, float] = (0.35, 1.0)

    def __post_init__(self) -> None:
        for name in ("lr", "head_lr", "clip"):
            require(getattr(self, name) > 0, self, name, "more than 0")
        for name in ("epochs", "fewest", "batch", "patience"):
            require(getattr(self, name) >= 1, self, name, "1 or more")
        require(self.warmup >= 0, self, "warmup", "0 or more")
        require(0 < self.area[0] <= self.area[1] <= 1, self, "area", "an increasing pair in (0, 1]")

    def shortened(self, share: float) -> Descent:
        """The same in so much of the epochs and steps."""
        share = min(1.0, share)
        epochs, fewest = (max(1, math.floor(n * share)) for n in (self.epochs, self.fewest))
        return replace(self, epochs=epochs, fewest=fewest)


class Tuned(Strategy):
    """A strategy whose encoder learns in one go.

    Attributes:
        fresh: whether the head begins at zero, and not where the best head is.
        descent: how it learns.
    """

    fresh: ClassVar[bool] = False
    descent: Descent

    @abstractmethod
    def adaptation(self, encoder: Encoder) -> Adaptation:
        """What of an encoder learns."""

    def run(self, problem: Problem, before: Candidate | None = None) -> Candidate:
        begun, start = time.monotonic(), _start(problem, None if self.fresh else before, self.fresh)
        return tune(problem, start, self.adaptation(problem.encoder), self.descent, self.name, begun)

    def again(self, problem: Problem, found: Candidate, start: Candidate) -> Candidate:
        whole, begun = problem.whole, time.monotonic()
        start = _zeroed(start, problem) if self.fresh else start
        how = self.adaptation(problem.encoder)
        made = tune(whole, start, how, self.descent, self.name, begun, chosen=found.setting)
        return replace(found, encoder=made.encoder, head=made.head, head_spec=made.head_spec)


@dataclass(frozen=True)
class LowRank(Tuned):
    """LoRA: narrow matrices beside the layers of an encoder that stays; merged into them in the end.

    Attributes:
        rank: width of the matrices.
        alpha: scale of their product, times rank.
        dropout: probability that an input of the matrices is dropped; 0.05 to 0.1 for ranks from 16 on.
        layers: "attention", or "all" layers: see `manyviews.adaptation.LoRA`. Networks without attention take "all".
        descent: how they learn.
    """

    name = "lora"
    magnitude: ClassVar[bool] = False

    rank: int = 8
    alpha: int = 8
    dropout: float = 0.0
    layers: str = "attention"
    descent: Descent = Descent(lr=3e-4, head_lr=1e-4)

    def adaptation(self, encoder: Encoder) -> Adaptation:
        layers: Any = self.layers if encoder.is_transformer else "all"
        return LoRA(self.rank, self.alpha, self.dropout, layers, self.magnitude)


@dataclass(frozen=True)
class DoRA(LowRank):
    """LoRA with a learned length of each output's weights (Liu et al. 2024).

    See `LowRank`.
    """

    name = "dora"
    magnitude = True


@dataclass(frozen=True)
class Unfreeze(Strategy):
    """Block after block learns, from the top; block i from the top at `lr gamma ** i`. Back to the best stage.

    Each stage begins with the best one before it. The first stage that makes nothing better is the last. BatchNorm
    keeps its statistics.

    Attributes:
        blocks: largest number of blocks or stages that learn.
        gamma: factor on the learning rate from each block to the one below it; 0.7 to 0.95 are usual.
        descent: how each stage learns.
    """

    name = "unfreeze"

    blocks: int = 4
    gamma: float = 0.8
    descent: Descent = Descent(lr=2e-4, head_lr=2e-4, epochs=5, fewest=100, patience=4)

    def __post_init__(self) -> None:
        require(self.blocks >= 1, self, "blocks", "1 or more")
        require(0 < self.gamma <= 1, self, "gamma", "more than 0, and at most 1")

    def run(self, problem: Problem, before: Candidate | None = None) -> Candidate:
        begun, best = time.monotonic(), _start(problem, before)
        stages = min(self.blocks, len(blocks_of(problem.encoder)))
        history: list[Any] = []
        for k in range(1, stages + 1):
            how = self._stage(k)
            found = tune(problem, best, how, self.descent, f"{self.name}, {k} of {stages} blocks", begun)
            ran = {name: found.setting[name] for name in ("steps", "of", "epochs")}
            history.append({"blocks": k, **ran, **problem.noted(found.score)})
            if found.score <= best.score:
                break
            best = replace(found, setting={**found.setting, "blocks": k})
            if problem.left <= 0:
                break
        return replace(best, strategy=self.name, history=tuple(history), seconds=time.monotonic() - begun)

    def again(self, problem: Problem, found: Candidate, start: Candidate) -> Candidate:
        """The stages up to the best, each as long as was best."""
        whole, best, begun = problem.whole, start, time.monotonic()
        for stage in found.history[: int(found.setting.get("blocks", 0))]:
            k = int(stage["blocks"])
            best = tune(whole, best, self._stage(k), self.descent, self.name, begun, chosen=stage)
        return replace(found, encoder=best.encoder, head=best.head, head_spec=best.head_spec)

    def _stage(self, k: int) -> Adaptation:
        return LastBlocks(k, decay=self.gamma, keep_statistics=True)


@dataclass(frozen=True)
class WarmStart(Tuned):
    """LP-FT: the head on the frozen encoder first, until it has converged; then everything, slowly.

    The first phase is the head of `linear` or `mlp`. BatchNorm keeps its statistics.

    Attributes:
        layer_decay: factor on the learning rate from each layer to the one below it.
        descent: how everything learns.
    """

    name = "lpft"

    layer_decay: float = 0.9
    descent: Descent = Descent(lr=5e-5, head_lr=5e-5, warmup=3)

    def adaptation(self, encoder: Encoder) -> Adaptation:
        return Full(self.layer_decay, keep_statistics=True)


@dataclass(frozen=True)
class FineTune(Tuned):
    """Everything learns at once, BatchNorm's statistics too, from small crops and with a fresh linear head.

    Attributes:
        layer_decay: factor on the learning rate from each layer of a transformer to the one below it.
        descent: how everything learns.
    """

    name = "finetune"
    fresh = True

    layer_decay: float = 0.75
    descent: Descent = Descent(
        lr=5e-4, head_lr=1e-3, epochs=20, warmup=2, weight_decay=0.05, patience=8, area=(0.2, 1.0)
    )

    def adaptation(self, encoder: Encoder) -> Adaptation:
        return Full(self.layer_decay if encoder.is_transformer else 1.0)


STRATEGIES: dict[str, type[Strategy]] = {
    kind.name: kind for kind in (Linear, MLP, LowRank, DoRA, Unfreeze, WarmStart, FineTune)
}
"""The strategies by name."""


def _start(problem: Problem, before: Candidate | None, fresh: bool = False) -> Candidate:
    """Where a strategy begins: the encoder as it came, with the best head that was learned on it."""
    if before is None or before.encoder is not problem.encoder:
        before = Linear().run(problem)
    return _zeroed(before, problem) if fresh else before


def _zeroed(before: Candidate, problem: Problem) -> Candidate:
    """The same with a linear head of zeros."""
    spec, known = {"kind": "linear"}, problem.task.frozen
    head = nn.Sequential(copy.deepcopy(before.head[0]), classifier(spec, known.train_x.shape[1], known.classes))
    head = head.to(problem.task.device)
    for p in head.parameters():
        nn.init.zeros_(p)
    logits = torch.zeros_like(before.logits)
    return replace(before, head=head, head_spec=spec, logits=logits, score=problem.score(logits))


def copied(head: nn.Sequential) -> nn.Sequential:
    """A copy of a head, whose parameters may learn."""
    return copy.deepcopy(head).requires_grad_(True)


def tune(
    problem: Problem,
    start: Candidate,
    adaptation: Adaptation,
    descent: Descent,
    name: str,
    begun: float,
    chosen: Mapping[str, Any] | None = None,
) -> Candidate:
    """Learn from crops, stop early, and go back to the best state; the state before the first step is one of them.

    Args:
        problem: what to learn.
        start: encoder and head to begin with; they stay as they are.
        adaptation: what of the encoder learns.
        descent: how.
        name: of the result, and in the progress.
        begun: when the strategy began, on the monotonic clock.
        chosen: the setting that was best with fewer images: as many passes as that, of as many, and no look at
            validation images; None to choose.

    Raises:
        Late: the deadline came before the end of what was chosen.
    """
    task = problem.task
    encoder, head = problem.copied(start.encoder), copied(start.head)
    with noise(f"{problem.seed} begin", task.device):  # low-rank matrices are drawn
        encoder = adaptation.begin(encoder).to(task.device)
    net = nn.Sequential(encoder, head).train()
    crops = problem.crops(descent.area, min(descent.batch, len(problem.images)))
    epochs = max(descent.epochs, math.ceil(descent.fewest / crops.steps_per_epoch))
    if problem.goal.way == "sampling":  # as many steps as without it
        longer = crops.steps_per_epoch * crops.batch / len(problem.images)
        epochs = max(math.ceil(descent.fewest / crops.steps_per_epoch), round(descent.epochs / longer))
    if chosen is not None:
        epochs = int(chosen["epochs"])
    scales = {id(p): g["lr_scale"] for g in adaptation.groups(encoder) for p in g["params"]}
    groups = by_decay(encoder.named_parameters(), scales, descent.weight_decay)
    groups += by_decay(head.named_parameters(), {}, descent.weight_decay, scale=descent.head_lr / descent.lr)
    learning = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=descent.lr, fused=task.device.type in ("cpu", "cuda"))
    low = torch.autocast(task.device.type, torch.bfloat16, enabled=resolve("auto", task.device) == "bfloat16")

    def logits(x: Tensor) -> Tensor:
        with low:
            found: Tensor = encoder(x)
        made: Tensor = head(found.float())
        return made

    steps = crops.descend(
        logits,
        optimizer,
        lr=descent.lr,
        epochs=epochs,
        warmup=descent.warmup,
        loss=problem.goal.loss,
        clip=descent.clip,
    )
    every = crops.steps_per_epoch * math.ceil(_LOOK / crops.steps_per_epoch)
    total = epochs * crops.steps_per_epoch
    if chosen is not None:
        last = round(total * int(chosen["steps"]) / int(chosen["of"]))
        for done in islice(steps, last):
            problem.tell(done, last, f"{name}: all images")
            if problem.left <= 0 and done < last:
                raise Late
        return replace(start, encoder=adaptation.finish(encoder).eval(), head=head.eval())
    best = _Best(problem, encoder, head, descent.patience)
    best.look(start.logits, 0)
    for done in steps:
        problem.tell(done, total, f"{name}: {problem.goal.metric} {100 * best.score.value:.1f} % at best")
        late = problem.left <= 0
        if done % every == 0 or done == total or late:
            found = problem.validate(encoder, head)
            net.train()
            if best.look(found, done) or late:
                break
    setting = {"steps": best.step, "of": total, "epochs": epochs, "lr": descent.lr, "head_lr": descent.head_lr}
    kept = best.candidate(name, encoder, head, start.head_spec, learning, begun, setting)
    return replace(kept, encoder=adaptation.finish(encoder).eval())


class Late(Exception):
    """The deadline came before the end."""


class _Best:
    """The best state so far of an encoder and a head, by their score on validation images."""

    def __init__(self, problem: Problem, encoder: Encoder, head: nn.Sequential, patience: int) -> None:
        self._problem, self._patience, self._worse = problem, patience, 0
        self._parts = [head] if encoder is problem.encoder else [encoder, head]
        self.score, self.step = Score(-math.inf, -math.inf), 0
        self._logits = torch.empty(0)
        self._state: list[dict[str, Tensor]] = []
        self._history: list[dict[str, Any]] = []

    def look(self, logits: Tensor, step: int) -> bool:
        """Take the state if it is better; says whether it is time to stop."""
        score = self._problem.score(logits)
        self._history.append({"step": step, **self._problem.noted(score)})
        if score > self.score:
            self.score, self.step, self._logits, self._worse = score, step, logits, 0
            self._state = [{k: v.detach().clone() for k, v in part.state_dict().items()} for part in self._parts]
        else:
            self._worse += 1
        return self._worse >= self._patience

    def candidate(
        self,
        name: str,
        encoder: Encoder,
        head: nn.Sequential,
        spec: Mapping[str, Any],
        learning: Iterable[nn.Parameter],
        begun: float,
        setting: dict[str, Any],
    ) -> Candidate:
        """The best state, put back."""
        for part, state in zip(self._parts, self._state, strict=True):
            part.load_state_dict(state)
        learned = sum(p.numel() for p in learning)
        return Candidate(
            name,
            encoder.eval(),
            head.eval(),
            spec,
            self._logits,
            self.score,
            learned,
            {**setting, "steps": self.step},
            tuple(self._history),
            time.monotonic() - begun,
        )
