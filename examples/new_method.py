"""A method outside the package: alignment and uniformity of two views (Wang and Isola 2020), in one file.

    MANYVIEWS_PATH=examples manyviews pretrain photos/ --recipe new_method_small
    MANYVIEWS_PATH=examples manyviews resume runs/...          # after a Ctrl-C
    MANYVIEWS_PATH=examples manyviews evaluate runs/... --data labeled/

The file's name is the method's; a function that returns a recipe is `<file>_<function>`.
`python examples/new_method.py` runs the contract test on it.

    L = mean |z_a - z_b|^2 + log mean_{i != j} exp(-2 |z_i - z_j|^2)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import normalize

from manyviews.backbones import Encoder
from manyviews.heads import mlp
from manyviews.methods import Branch, Method, Terms, paired
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Monitor, Optimizer, Recipe
from manyviews.types import Progress
from manyviews.views import SIMCLR, Global, View, Views


class AlignUniform(Method):
    """See the file's docstring.

    Args:
        encoder: the network that is trained and kept.
        view: the view type, two of each image.
        dim: dimensions of the sphere.
        weight: weight of the uniformity.
    """

    def __init__(self, encoder: Encoder, *, view: View = Global(2, color=SIMCLR), dim: int = 128, weight: float = 1.0):
        super().__init__()
        self.views = paired(view)
        self.online = Branch(encoder, mlp(encoder.embed_dim, 4 * dim, dim))
        self.weight = weight

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        za, zb = (normalize(z.float(), dim=1) for z in views.map(self.online))
        spread = [torch.pdist(z).square().mul(-2).exp().mean().log() for z in (za, zb)]
        yield {"alignment": (za - zb).square().sum(1).mean(), "uniformity": self.weight * (spread[0] + spread[1]) / 2}


def small() -> Recipe:
    """Alignment and uniformity on 32-pixel images, in seconds: `manyviews pretrain demo --recipe new_method_small`."""
    resnet = {"stem": "half", "layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)}
    return Recipe(
        name="new_method",
        method=Component("new_method", {"view": Global(2, size=32, area=(0.2, 1.0)), "dim": 32}),
        backbone=Component("resnet18", resnet),
        epochs=3,
        data=Data(canvas=48, batch_size=64),
        optimizer=Optimizer("adamw", lr=2e-3, lr_scaling="constant", schedule=WarmupCosine(warmup=0.5)),
        monitor=Monitor(epochs=1),
        test_size=32,
    )


if __name__ == "__main__":
    import os
    import pathlib

    os.environ["MANYVIEWS_PATH"] = str(pathlib.Path(__file__).parent)  # where the command line looks as well

    from manyviews.recipes import get
    from manyviews.testing import CHECKS

    for name, check in CHECKS.items():
        check(get("new_method_small"))
        print(f"{name}: passed")
