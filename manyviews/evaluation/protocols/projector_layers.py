"""Linear probes inside the projector, which training adds and evaluation cuts off."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder, patch_features
from manyviews.errors import UserError
from manyviews.evaluation.contract import Count, LabeledTask, LearningRates, Metric, MetricProtocol, Projector, Task
from manyviews.evaluation.features import Chosen, frozen
from manyviews.evaluation.linear import LRS, Linear, linear_probe
from manyviews.evaluation.protocols._images import IMAGES, fewer, reencoded
from manyviews.evaluation.protocols.layers import curve
from manyviews.heads.gaussian import GaussianProjector
from manyviews.heads.prototypes import DINOHead
from manyviews.methods.method import Branch, Method

_ROWS = 4096  # features at a time that go through a part of a projector


@dataclass(frozen=True)
class ProjectorLayers(MetricProtocol):
    """The curve of `layers` inside the projector, which training adds and evaluation cuts off (Bordes et al. 2022).

    The paper calls it guillotine regularization. A layer is a linear layer with the norm and activation that follow it.
    The first point is the features themselves, of the kind that was asked for.

    Args:
        images: largest number of training images, and of validation images, from all over the set.
        lrs: learning rates to try.

    Raises:
        UserError: the projector takes features of another width.
    """

    name = "projector_layers"
    title = "projector, layer by layer"
    formerly = ("guillotine",)
    sees = "projector"
    seeded = True

    images: Count = IMAGES
    lrs: LearningRates = LRS

    def run(self, task: LabeledTask, seed: int) -> Metric:
        task = fewer(task, self.images)
        assert task.projector is not None  # see `evaluate`
        layers, inputs = task.projector

        def probe(known: Task) -> Linear:
            return linear_probe(known, lrs=self.lrs, weight_decays=(0.0,), seed=seed)

        if inputs is None and isinstance(task.encoder, Chosen):
            inputs = task.encoder.encoder
        known = task.frozen if inputs is None else reencoded(inputs, task)
        width = next((m.in_features for m in layers if isinstance(m, nn.Linear)), None)
        if width is not None and width != known.train_x.shape[1]:
            raise UserError(
                f"The projector takes {width} features, and the encoder gives {known.train_x.shape[1]}: "
                "give the projector that was trained with it."
            )
        found, parts = {"backbone": probe(task.frozen)}, cut(layers.to(task.device))
        for i, part in enumerate(parts, 1):
            train_x, val_x, test_x = (_through(part, x) for x in (known.train_x, known.val_x, known.test_x))
            known = replace(known, train_x=train_x, val_x=val_x, test_x=test_x)
            found[f"projector {i}" if i < len(parts) else "projector output"] = probe(known)
        return curve(found, task.test_y, seed)


def projector_of(method: Method) -> Projector:
    """The projector that was trained on the encoder that a method keeps.

    For DINO's head it is the layers up to the bottleneck, which is compared with prototypes. For MAST's, which maps
    patches to a Gaussian, it is the layers after the pooling that lead to the mean.

    Raises:
        UserError: the method has none, or one that does not map features to features.
    """
    name = type(method).__name__
    branch = next((m for m in method.modules() if isinstance(m, Branch) and m.encoder is method.kept_encoder), None)
    if branch is None:
        raise UserError(f"{name} has no projector to look into: leave out projector_layers.")
    projector = branch.projector
    if isinstance(projector, DINOHead):
        return Projector(projector.mlp)
    if isinstance(projector, GaussianProjector):
        if projector.pooling == "last":
            raise UserError(
                f"{name}'s projector pools last, and has no features of images inside: leave out projector_layers."
            )
        layers = nn.Sequential(*projector.shared, projector.heads[0])
        return Projector(layers, _Pooled(branch.encoder, projector.pools[0]))
    return Projector(cast(nn.Sequential, projector))


class _Pooled(nn.Module):
    """Pooled features of patches: `b 3 h w` to `b d`."""

    def __init__(self, encoder: Encoder, pool: nn.Module) -> None:
        super().__init__()
        self.encoder, self.pool = encoder, pool

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(patch_features(self.encoder, x))
        return pooled


def cut(projector: nn.Sequential) -> list[nn.Sequential]:
    """The projector in parts with one linear layer each."""
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
