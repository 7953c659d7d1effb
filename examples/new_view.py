"""A kind of view outside the package: each image seen through horizontal blinds, and what it predicts.

    MANYVIEWS_PATH=examples manyviews pretrain photos/ --recipe byol_cifar10 \
        --set "method.tasks=(Global(2,size=32),Blinds(1,size=32,slats=6))"

`python examples/new_view.py [FOLDER OF IMAGES]` draws some into blinds.png.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from manyviews.views import Crop, Draws


@dataclass(frozen=True)
class Blinds(Crop):
    """A crop of which every other stripe is covered with the mean color, from a random phase.

    Attributes:
        slats: covered stripes.
    """

    slats: int = 4

    def transform(self, x: Tensor, draws: Draws) -> Tensor:
        """Cover the stripes of the normalized views, `b 3 size size`; zero is the mean color."""
        rows = torch.arange(self.size, device=x.device) / self.size
        covered = ((rows + draws.uniform("phase", 1)) * 2 * self.slats).long() % 2 == 0
        return x.masked_fill_(covered[:, None, :, None], 0)

    def parameters(self, draws: Draws) -> Tensor:
        """The phase, for predictors that are told of the view: float32, `b 1`."""
        return draws.uniform("phase", 1)


if __name__ == "__main__":
    import manyviews as mv
    from manyviews.reporting import plots

    source = mv.data.open_source(sys.argv[1] if len(sys.argv) > 1 else "demo")
    batch = next(mv.data.Loader(source, size=96, batch=6).batches(0))
    views = mv.views.Views(batch, (Blinds(3, size=96, slats=6),))
    pictures = [(f"blinds {i + 1}", x) for i, x in enumerate(views.all("blinds"))]
    print(plots.views(pictures, Path("blinds.png"), views.mean, views.std))
