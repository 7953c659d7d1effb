"""Linear probes of more than the last features: of choices among the last layers, and of each layer along the depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder, by_layer, patch_features
from manyviews.errors import UserError
from manyviews.evaluation import metrics
from manyviews.evaluation.features import Chosen, extract, frozen
from manyviews.evaluation.linear import LRS, WEIGHT_DECAYS, Linear, linear_probe, linear_probes
from manyviews.evaluation.task import Answer, ImageTask, Measure, Task
from manyviews.heads.gaussian import GaussianProjector
from manyviews.heads.prototypes import DINOHead
from manyviews.methods.method import Branch, Method

LAST = (1, 2, 4)
"""How many last layers may be features together."""

IMAGES = 50_000
"""Training images of a curve, at most, and validation images: the features of all layers are in memory at once."""

_BATCH = 64  # images at a time: the maps of all layers are in memory at once
_ROWS = 4096  # features at a time that go through a part of a projector


def linear_grid(
    task: ImageTask,
    seed: int,
    *,
    lrs: tuple[float, ...] = LRS,
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS,
    last: tuple[int, ...] = LAST,
) -> Answer:
    """The probe of `linear`, with features of the last 1, 2 or 4 layers to choose from on validation images (DINOv2).

    As in Oquab et al. 2023 there is one head for each learning rate and each choice of features, all trained in one
    pass; here without augmentation. The choices are the pooled features, alone and after those of the 1 or 3 layers
    before, whichever kind of features was asked for. Of a transformer that pools by its class token, layers are blocks,
    their features are class tokens, and each choice is there with and without the mean patch token of the last block.
    Of others, layers are blocks or stages, averaged over all places. (The paper has transformers, and 1 and 4 blocks.)
    What is no `Encoder`, such as raw pixels, offers no choice.

    Args:
        task: the problem.
        seed: of the order of the minibatches.
        lrs: learning rates to try.
        weight_decays: to try: see `linear_probe`.
        last: how many last layers to try; more than there are counts as all.
    """
    known, encoder = task.frozen, _encoder(task)
    choices: list[tuple[dict[str, float], slice]] = [({}, slice(None))]
    if encoder is not None:
        beside = _Beside(encoder, lambda x: _last(encoder, x, max(last)))
        known, choices = look(beside, task), _choices(beside.columns(task), last)
    found = linear_probes(
        *(known.train_x, known.train_y, known.val_x, known.val_y, known.test_x),
        looks=[columns for _, columns in choices],
        classes=known.classes,
        lrs=lrs,
        weight_decays=weight_decays,
        seed=seed,
    )
    tried = [(s | choice, a) for (choice, _), probe in zip(choices, found, strict=True) for s, a in probe.validation]
    best = _best(found)
    ranked = found[best].logits.argsort(1, descending=True)[:, :5]
    return Answer(ranked, found[best].setting | choices[best][0], tried, {})


def layers(
    task: ImageTask, test_y: Tensor, seed: int, *, images: int = IMAGES, lrs: tuple[float, ...] = LRS
) -> Measure:
    """Linear probes of every block or stage: a curve along the depth; validation images choose the best layer.

    Each layer has its own learning rate, chosen on the validation images, without weight decay. A layer's features are
    its class tokens where the encoder pools by one, and averages over all places elsewhere; after the last layer come
    the pooled features. What is no `Encoder`, such as raw pixels, is one layer.

    Args:
        task: the problem.
        test_y: int64, `m`, labels of the test images.
        seed: of the order of the minibatches, and the interval.
        images: to learn from at most, and to choose with, from all over the set.
        lrs: learning rates to try.
    """
    task, encoder = fewer(task, images), _encoder(task)
    known, columns = task.frozen, {"features": slice(None)}
    if encoder is not None:
        beside = _Beside(encoder, lambda x: _each(encoder, x))
        known, columns = look(beside, task), beside.columns(task)
    found = linear_probes(
        *(known.train_x, known.train_y, known.val_x, known.val_y, known.test_x),
        looks=list(columns.values()),
        classes=known.classes,
        lrs=lrs,
        weight_decays=(0.0,),
        seed=seed,
    )
    return _curve(dict(zip(columns, found, strict=True)), test_y, seed)


def guillotine(
    task: ImageTask,
    test_y: Tensor,
    seed: int,
    *,
    projector: nn.Sequential,
    inputs: nn.Module | None = None,
    images: int = IMAGES,
    lrs: tuple[float, ...] = LRS,
) -> Measure:
    """The curve of `layers` inside the projector, which training adds and evaluation cuts off (Bordes et al. 2022).

    A layer is a linear layer with what follows it up to the next one: norm and activation. The first point is the
    features themselves, of the kind that was asked for.

    Args:
        task: the problem, whose encoder is the projector's.
        test_y: int64, `m`, labels of the test images.
        seed: of the order of the minibatches, and the interval.
        projector: `b d` to `b z`; see `projector_of`. It is moved to the task's device; its mode stays as it is.
        inputs: what the projector takes, of images: `b 3 size size` to `b d`. The encoder's pooled features if None.
        images: to learn from at most, and to choose with, from all over the set.
        lrs: learning rates to try.

    Raises:
        UserError: the projector takes features of another width.
    """
    task = fewer(task, images)

    def probe(known: Task) -> Linear:
        return linear_probe(
            *(known.train_x, known.train_y, known.val_x, known.val_y, known.test_x),
            classes=known.classes,
            lrs=lrs,
            weight_decays=(0.0,),
            seed=seed,
        )

    if inputs is None and isinstance(task.encoder, Chosen):
        inputs = task.encoder.encoder
    known = task.frozen if inputs is None else look(inputs, task)
    width = next((m.in_features for m in projector if isinstance(m, nn.Linear)), None)
    if width is not None and width != known.train_x.shape[1]:
        raise UserError(
            f"The projector takes {width} features, and the encoder gives {known.train_x.shape[1]}: "
            "give the projector that was trained with it."
        )
    found, parts = {"backbone": probe(task.frozen)}, _cut(projector.to(task.device))
    for i, part in enumerate(parts, 1):
        train_x, val_x, test_x = (_through(part, x) for x in (known.train_x, known.val_x, known.test_x))
        known = replace(known, train_x=train_x, val_x=val_x, test_x=test_x)
        found[f"projector {i}" if i < len(parts) else "projector output"] = probe(known)
    return _curve(found, test_y, seed)


def projector_of(method: Method) -> tuple[nn.Sequential, nn.Module | None]:
    """The projector that was trained on the encoder a method keeps, and the `inputs` that `guillotine` needs for it.

    Of DINO's head it is the layers up to the bottleneck, which is compared with prototypes; of MAST's, which takes
    places and gives a Gaussian, those that lead to its mean, after the pooling.

    Raises:
        UserError: the method has none, or one that does not map features to features.
    """
    name = type(method).__name__
    branch = next((m for m in method.modules() if isinstance(m, Branch) and m.encoder is method.kept_encoder), None)
    if branch is None:
        raise UserError(f"{name} has no projector to look into: leave out guillotine.")
    projector = branch.projector
    if isinstance(projector, DINOHead):
        return projector.mlp, None
    if isinstance(projector, GaussianProjector):
        if projector.pooling == "last":
            raise UserError(
                f"{name}'s projector pools last, and has no features of images inside: leave out guillotine."
            )
        return nn.Sequential(*projector.shared, projector.heads[0]), _Pooled(branch.encoder, projector.pools[0])
    return cast(nn.Sequential, projector), None


class _Pooled(nn.Module):
    """Features of places, pooled: `b 3 h w` to `b d`."""

    def __init__(self, encoder: Encoder, pool: nn.Module) -> None:
        super().__init__()
        self.encoder, self.pool = encoder, pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(patch_features(self.encoder, x))


class _Beside(nn.Module):
    """Several features side by side, of one forward pass: `b 3 h w` to `b d`."""

    def __init__(self, encoder: Encoder, parts: Callable[[Tensor], dict[str, Tensor]]) -> None:
        super().__init__()
        self.encoder, self.parts = encoder, parts

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(list(self.parts(x).values()), 1)

    def columns(self, task: ImageTask) -> dict[str, slice]:
        """Where each of them is."""
        with frozen(self):
            parts = self.parts(torch.zeros(1, 3, task.size, task.size, device=task.device))
        ends = torch.tensor([x.shape[1] for x in parts.values()]).cumsum(0).tolist()
        return {name: slice(a, b) for name, a, b in zip(parts, [0, *ends], ends, strict=False)}


def fewer(task: ImageTask, images: int) -> ImageTask:
    """The task with at most so many training images, and validation images, from all over the set."""
    known = task.frozen
    rows, held = (torch.arange(min(n, images)) * n // min(n, images) for n in (len(known.train_y), len(known.val_y)))
    a, b = rows.to(task.device), held.to(task.device)
    less = replace(
        known, train_x=known.train_x[a], train_y=known.train_y[a], val_x=known.val_x[b], val_y=known.val_y[b]
    )
    return replace(task, frozen=less, known=task.known.subset(torch.cat([rows, len(known.train_y) + held]).numpy()))


def look(module: nn.Module, task: ImageTask) -> Task:
    """The task's problem with the features of another module, `b 3 size size` to `b d`, on the task's device.

    Raises:
        UserError: an image can no longer be read.
    """
    found, done, total = [], 0, len(task.known) + len(task.asked)
    for source in (task.known, task.asked):

        def tell(images: int, of: int, before: int = done) -> None:
            if task.progress is not None:
                task.progress(before + images, total, "reading images")

        seen = extract(
            module,
            source,
            test_size=task.size,
            mean=task.mean,
            std=task.std,
            device=task.device,
            batch_size=_BATCH,
            progress=tell,
        )
        for where, reason in seen.bad:
            raise UserError(f"{where} could be read a moment ago, and no longer can ({reason}): try again.")
        found.append(seen.x.to(task.device))
        done += len(source)
    train_x, val_x = found[0].split([len(task.frozen.train_y), len(task.frozen.val_y)])
    return replace(task.frozen, train_x=train_x, val_x=val_x, test_x=found[1])


def _encoder(task: ImageTask) -> Encoder | None:
    whole = task.encoder.encoder if isinstance(task.encoder, Chosen) else task.encoder
    return whole if isinstance(whole, Encoder) else None


def _each(encoder: Encoder, x: Tensor) -> dict[str, Tensor]:
    """Features of each layer as the encoder pools them, and its pooled features."""
    pooled, found = by_layer(encoder, x)
    return {name: mean if token is None else token for name, (token, mean) in found.items()} | {"pooled": pooled}


def _last(encoder: Encoder, x: Tensor, most: int) -> dict[str, Tensor]:
    """Features of the last layers, of the last one the pooled ones, and the mean patch token if it has patch tokens."""
    pooled, found = by_layer(encoder, x)
    *before, (token, mean) = list(found.values())[-most:]
    parts = {f"{len(before) - i} before": m if t is None else t for i, (t, m) in enumerate(before)}
    return parts | {"pooled": pooled} | ({} if token is None else {"patches": mean})


def _choices(columns: dict[str, slice], last: Sequence[int]) -> list[tuple[dict[str, float], slice]]:
    """Settings and columns of each choice of features that `_last` offers."""
    starts = [place.start for name, place in columns.items() if name != "patches"]
    ends: list[tuple[dict[str, float], int]] = [({}, columns["pooled"].stop)]
    if "patches" in columns:
        ends = [({"patches": 0.0}, columns["pooled"].stop), ({"patches": 1.0}, columns["patches"].stop)]
    return [
        ({"layers": float(n)} | patches, slice(starts[-n], end))
        for n in sorted({min(n, len(starts)) for n in last})
        for patches, end in ends
    ]


def _cut(projector: nn.Sequential) -> list[nn.Sequential]:
    """The projector in parts, each of one linear layer."""
    parts: list[list[nn.Module]] = [[]]
    for module in projector:
        if isinstance(module, nn.Linear) and any(isinstance(m, nn.Linear) for m in parts[-1]):
            parts.append([])
        parts[-1].append(module)
    return [nn.Sequential(*part) for part in parts]


def _through(part: nn.Module, x: Tensor) -> Tensor:
    with frozen(part):
        found = [part(some.clone()) for some in x.split(_ROWS)]  # activations may be in place
    return torch.cat(found)


def _best(found: Sequence[Linear]) -> int:
    """The first with the best accuracy on the validation images."""
    held = [max(accuracy for _, accuracy in probe.validation) for probe in found]
    return held.index(max(held))


def _curve(found: dict[str, Linear], test_y: Tensor, seed: int) -> Measure:
    right = {name: probe.logits.argmax(1).cpu() == test_y.cpu() for name, probe in found.items()}
    accuracies = {name: hits.double().mean().item() for name, hits in right.items()}
    best = _best(list(found.values()))
    name = list(found)[best]
    setting = {"layer": best + 1} | found[name].setting
    return Measure(
        "accuracy of the best layer", accuracies[name], metrics.bootstrap(right[name], seed), accuracies, setting
    )
