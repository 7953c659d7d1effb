import dataclasses

import numpy as np
import pytest
import torch

from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.evaluation import ImageTask, LabeledTask, linear
from manyviews.evaluation.protocols import mlp


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
    monkeypatch.setattr(mlp, "_STEPS", 60)


def features_task(frozen, ids=None):
    """A task on features alone; its images have names at most."""
    source = (
        None
        if ids is None
        else dataclasses.replace(open_source(np.zeros((len(ids), 2, 2, 3), np.uint8)), identify=lambda: ids)
    )
    half = (0.5,) * 3
    return ImageTask(torch.nn.Identity(), frozen, source, source, 8, half, half, torch.device("cpu"))


def measured(protocol, task, test_y, seed=0):
    """A metric of a task, given the labels of its test images."""
    return protocol.run(LabeledTask(**vars(task), test_y=test_y), seed)


QUICK = {
    "linear_augmented.epochs": 2,
    "linear_moco.epochs": 2,
    "finetune_a3.train_size": 12,
    "corruptions.images": 20,
    "corruptions.kinds": ("contrast", "jpeg"),
    "corruptions.severities": (1, 5),
    "copy_detection.copies": 10,
    "clustering.runs": 1,
    "few_shot_5.draws": 2,
    "few_shot_10.draws": 2,
    **{
        f"{p}.{k}": v
        for p in ("semi_1", "semi_10", "finetune", "finetune_vit", "finetune_a3")
        for k, v in (("lrs", (0.02, 0.1)), ("epochs", 1))
    },
}
"""Settings with which protocols that train on images take a moment."""


def quick(*names):
    """Those of `QUICK` for these protocols."""
    return {k: v for k, v in QUICK.items() if k.partition(".")[0] in names}
