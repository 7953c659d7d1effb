"""One batch of small random pictures for every method."""

import pytest
import torch

from manyviews.types import Batch
from manyviews.views import CutMix, Cutout, Global, Local, Rotation, Shuffle

TASKS = (
    Global(2, 32, (0.25, 1.0)),
    Local(2, 16),
    Cutout(1, 32),
    Rotation(1, 32),
    Shuffle(1, 32),
    CutMix(1, 32),
)
"""Every spatial transformation as a task."""


def canvases(n: int = 8, size: int = 32, seed: int = 0) -> Batch:
    """Smooth random pictures, so that views of one resemble each other."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=draw)
    pixels = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return Batch.of((pixels * 255).byte(), torch.full((n, 2), size), torch.arange(n))


@pytest.fixture
def batch() -> Batch:
    return canvases()
