"""Labeled noise whose mean color nearly tells the class, a tiny encoder, and the problem that they make."""

import numpy as np
import pytest
import torch

from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.evaluation import ImageTask, Task, extract
from manyviews.tuning import Balance, Problem

LOOK = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def noise(labels, seed=0, noise=60, size=16):
    labels = np.asarray(labels)
    colors = np.random.default_rng(1).uniform(60, 190, (labels.max() + 1, 3))
    pixels = colors[labels][:, None, None] + np.random.default_rng(seed).normal(0, noise, (len(labels), size, size, 3))
    names = np.array([f"class {i}" for i in range(labels.max() + 1)])
    return open_source((pixels.clip(0, 255).astype(np.uint8), names[labels]))


def resnet():
    torch.manual_seed(3)
    encoder = Encoder("resnet18", stem="small", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)).train()
    with torch.no_grad():
        for _ in range(50):  # statistics for its BatchNorm layers
            encoder(torch.rand(32, 3, 1, 1) * 4 - 2 + torch.randn(32, 3, 16, 16))
    return encoder.eval()


def vit():
    torch.manual_seed(3)
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}
    return Encoder("vit_tiny_patch16_224", **small).eval()


def problem_of(encoder, source, val, way="none", **more):
    """To learn from all images but the last `val`, and to choose with those."""
    found = extract(encoder, source, test_size=16, **LOOK)
    n, classes = len(source) - val, len(source.classes)
    x, y = found.x, found.labels
    known = Task(x[:n], y[:n], x[n:], y[n:], x[:0], classes, tuple(source.classes))
    task = ImageTask(encoder, known, source, source.subset(()), 16, LOOK["mean"], LOOK["std"], torch.device("cpu"))
    return Problem(task, Balance(way, torch.bincount(y[:n], minlength=classes)), **more)


@pytest.fixture
def looking(monkeypatch):
    """A look at the validation images after each epoch."""
    monkeypatch.setattr("manyviews.tuning.strategies._LOOK", 1)
