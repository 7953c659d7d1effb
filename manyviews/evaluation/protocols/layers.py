"""Linear probes of the encoder's layers: of choices among the last ones, and of each along the depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder, by_layer
from manyviews.evaluation import metrics
from manyviews.evaluation.contract import (
    POSITIVE,
    Count,
    ImageProtocol,
    ImageTask,
    LabeledTask,
    LearningRates,
    Metric,
    MetricProtocol,
    Prediction,
    WeightDecays,
)
from manyviews.evaluation.features import frozen, whole
from manyviews.evaluation.linear import LRS, WEIGHT_DECAYS, Linear, linear_probes
from manyviews.evaluation.protocols._images import IMAGES, fewer, reencoded


@dataclass(frozen=True)
class LinearGrid(ImageProtocol):
    """The probe of `linear`, with features of the last 1, 2 or 4 layers to choose from on validation images (DINOv2).

    As in Oquab et al. 2023 there is one head for each learning rate and each choice of features, all trained in one
    pass; here without augmentation. The choices are the pooled features, alone and after those of the 1 or 3 layers
    before, whichever kind of features was asked for. In a transformer that pools by its class token, layers are blocks,
    their features are class tokens, and each choice comes with and without the mean patch token of the last block. In
    other networks, layers are blocks or stages, averaged over all positions. (The paper has transformers, and 1 and 4
    blocks.) A module that is no `Encoder`, such as raw pixels, offers no choice.

    Args:
        lrs: learning rates to try.
        weight_decays: weight decays to try: see `linear_probe`.
        last: numbers of last layers to try; a number beyond the depth counts as all.
    """

    name = "linear_grid"
    title = "linear probe, features chosen"
    seeded = True
    passes = 1

    lrs: LearningRates = LRS
    weight_decays: WeightDecays = WEIGHT_DECAYS
    last: Annotated[tuple[int, ...], POSITIVE] = (1, 2, 4)

    def run(self, task: ImageTask, seed: int) -> Prediction:
        known, encoder = task.frozen, whole(task.encoder)
        choices: list[tuple[dict[str, float], slice]] = [({}, slice(None))]
        if encoder is not None:
            parts = _Parts(encoder, lambda x: _last(encoder, x, max(self.last)))
            known, choices = reencoded(parts, task), _choices(parts.columns(task), self.last)
        found = linear_probes(
            known, [columns for _, columns in choices], lrs=self.lrs, weight_decays=self.weight_decays, seed=seed
        )
        tried = [(s | choice, a) for (choice, _), p in zip(choices, found, strict=True) for s, a in p.validation]
        best = _best(found)
        return Prediction(found[best].ranked, found[best].setting | choices[best][0], tried, {})


@dataclass(frozen=True)
class Layers(MetricProtocol):
    """Linear probes of every block or stage: a curve along the depth; validation images choose the best layer.

    Each layer has its own learning rate, chosen on the validation images, without weight decay. A layer's features are
    its class tokens where the encoder pools by one, and averages over all positions elsewhere; after the last layer
    come the pooled features. A module that is no `Encoder` is one layer.

    Args:
        images: largest number of training images, and of validation images, from all over the set.
        lrs: learning rates to try.
    """

    name = "layers"
    title = "layer by layer"
    sees = "network"
    seeded = True

    images: Count = IMAGES
    lrs: LearningRates = LRS

    def run(self, task: LabeledTask, seed: int) -> Metric:
        task = fewer(task, self.images)
        encoder = whole(task.encoder)
        known, columns = task.frozen, {"features": slice(None)}
        if encoder is not None:
            parts = _Parts(encoder, lambda x: _each(encoder, x))
            known, columns = reencoded(parts, task), parts.columns(task)
        found = linear_probes(known, list(columns.values()), lrs=self.lrs, weight_decays=(0.0,), seed=seed)
        return curve(dict(zip(columns, found, strict=True)), task.test_y, seed)


def curve(found: Mapping[str, Linear], test_y: Tensor, seed: int) -> Metric:
    """Test accuracy of each of these probes; the value is that of the best on the validation images."""
    right = {name: probe.logits.argmax(1).cpu() == test_y.cpu() for name, probe in found.items()}
    accuracies = {name: hits.double().mean().item() for name, hits in right.items()}
    best = _best(list(found.values()))
    name = list(found)[best]
    setting = {"layer": best + 1} | found[name].setting
    interval = metrics.bootstrap(right[name], seed)
    return Metric("accuracy of the best layer", accuracies[name], interval, accuracies, setting)


class _Parts(nn.Module):
    """Several features of one forward pass, next to each other: `b c h w` to `b d`."""

    def __init__(self, encoder: Encoder, parts: Callable[[Tensor], dict[str, Tensor]]) -> None:
        super().__init__()
        self.encoder, self.parts = encoder, parts

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(list(self.parts(x).values()), 1)

    def columns(self, task: ImageTask) -> dict[str, slice]:
        """Columns of each."""
        with frozen(self):
            parts = self.parts(torch.zeros(1, self.encoder.channels, task.size, task.size, device=task.device))
        ends = torch.tensor([x.shape[1] for x in parts.values()]).cumsum(0).tolist()
        return {name: slice(a, b) for name, a, b in zip(parts, [0, *ends], ends, strict=False)}


def _each(encoder: Encoder, x: Tensor) -> dict[str, Tensor]:
    """Features of each layer as the encoder pools them, and its pooled features."""
    pooled, found = by_layer(encoder, x)
    return {name: mean if token is None else token for name, (token, mean) in found.items()} | {"pooled": pooled}


def _last(encoder: Encoder, x: Tensor, most: int) -> dict[str, Tensor]:
    """Features of the last layers: pooled ones for the last, and the mean patch token if there are patch tokens."""
    pooled, found = by_layer(encoder, x)
    *before, (token, mean) = list(found.values())[-most:]
    parts = {f"{len(before) - i} before": m if t is None else t for i, (t, m) in enumerate(before)}
    return parts | {"pooled": pooled} | ({} if token is None else {"patches": mean})


def _choices(columns: dict[str, slice], last: Sequence[int]) -> list[tuple[dict[str, float], slice]]:
    """Settings and columns of each choice of features that `_last` offers."""
    starts = [part.start for name, part in columns.items() if name != "patches"]
    ends: list[tuple[dict[str, float], int]] = [({}, columns["pooled"].stop)]
    if "patches" in columns:
        ends = [({"patches": 0.0}, columns["pooled"].stop), ({"patches": 1.0}, columns["patches"].stop)]
    return [
        ({"layers": float(n)} | patches, slice(starts[-n], end))
        for n in sorted({min(n, len(starts)) for n in last})
        for patches, end in ends
    ]


def _best(found: Sequence[Linear]) -> int:
    """The first with the best accuracy on the validation images."""
    held = [max(accuracy for _, accuracy in probe.validation) for probe in found]
    return held.index(max(held))
