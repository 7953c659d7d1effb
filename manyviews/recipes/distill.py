"""Distillation's recipes. `manyviews distill TEACHER` chooses one for the device, and sets teacher and student."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Monitor, Optimizer, Recipe
from manyviews.views import MOCO_V2, Global


def imagenet() -> Recipe:
    """SEED: a ResNet-18 learns relations from a self-supervised teacher, 200 epochs, batch 256 (Fang et al. 2021).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe distill_imagenet \\
        --set method.teacher=runs/teacher

    8 GPUs. Expected linear top-1 on ImageNet from MoCo v2's ResNet-50: 57.6. Not run by us.
    """
    return Recipe(
        name="distill",
        method=Component("distill", {"view": Global(1, area=(0.2, 1.0), color=MOCO_V2), "target": "relations"}),
        backbone=Component("resnet18"),
        epochs=200,
        data=Data(batch_size=256),
        optimizer=Optimizer("sgd", lr=0.03, lr_scaling="constant", weight_decay=1e-4, schedule=WarmupCosine(warmup=0)),
    )


def cpu() -> Recipe:
    """Photographs on a processor, in minutes: features of clean images, 64-pixel views, ResNet-18.

    manyviews distill timm:resnet50.a1_in1k --data photos/ --budget 30m

    `distill` takes `distill_cpu` where there is no GPU. Not run by us.
    """
    return _photos(64, 100, 128, lr=1e-3)


def gpu() -> Recipe:
    """Photographs on a GPU: features of clean images, 160-pixel views, ResNet-18, 200 epochs.

    manyviews distill timm:vit_base_patch14_dinov2.lvd142m --data photos/

    `distill` takes `distill_gpu` where there is a GPU. Not run by us.
    """
    return _photos(160, 200, 256, lr=1e-3)


def tiny() -> Recipe:
    """Relations to a random teacher in seconds, for tests: `manyviews pretrain demo --recipe distill_tiny`."""
    return common.tiny("distill", view=Global(1, size=32, color=None), target="relations", queue_size=64)


def _photos(size: int, epochs: float, batch: int, lr: float) -> Recipe:
    view = Global(1, size=size, area=(0.3, 1.0), color=None)
    return Recipe(
        name="distill",
        method=Component("distill", {"view": view, "teacher_view": "clean", "prototypes": 256, "queue_size": 4096}),
        backbone=Component("resnet18"),
        epochs=epochs,
        data=Data(batch_size=batch),
        optimizer=Optimizer("adamw", lr=lr, weight_decay=0.01, schedule=WarmupCosine(warmup=5)),
        monitor=Monitor(epochs=20, steps=10),
        test_size=size,
    )
