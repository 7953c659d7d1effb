import numpy as np
import pytest
import torch

from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.evaluation import linear, probes


@pytest.fixture
def encoder():
    """A ResNet of a few thousand weights, whose features of different images differ."""
    torch.manual_seed(7)
    net = Encoder("resnet18", stem="small", channels=(4, 4, 8, 8)).train()
    with torch.no_grad():
        for _ in range(50):  # statistics for its BatchNorm layers
            net(torch.rand(32, 3, 1, 1) * 4 + torch.randn(32, 3, 12, 12))
    return net.eval()


@pytest.fixture
def learner():
    """An untrained ResNet that can learn."""
    return Encoder("resnet18", stem="small", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)).eval()


@pytest.fixture
def pictures():
    """Makes labeled noise of 12 pixels, whose mean color nearly tells the class."""

    def make(count, classes=3, seed=0, noise=60):
        rng = np.random.default_rng(seed)
        labels = np.arange(count) % classes
        colors = np.random.default_rng(1).uniform(60, 190, (classes, 3))
        pixels = colors[labels][:, None, None] + rng.normal(0, noise, (count, 12, 12, 3))
        return open_source(
            (pixels.clip(0, 255).astype(np.uint8), np.array([f"class {i}" for i in range(classes)])[labels])
        )

    return make


@pytest.fixture
def few_steps(monkeypatch):
    """Probes that learn for a moment: where it matters that they run, and not how well."""
    monkeypatch.setattr(linear, "_STEPS", 60)
    monkeypatch.setattr(probes, "_STEPS", 60)


QUICK = {
    "linear_augmented.epochs": 2,
    **{
        f"{p}.{k}": v
        for p in ("semi_1", "semi_10", "finetune", "finetune_vit")
        for k, v in (("lrs", (0.02, 0.1)), ("epochs", 1))
    },
}
"""Settings with which protocols that train on images take a moment."""
