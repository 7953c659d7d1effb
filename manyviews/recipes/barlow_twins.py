"""Barlow Twins' recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe, Step
from manyviews.views import Global


def imagenet() -> Recipe:
    """Barlow Twins, ResNet-50, 1000 epochs, batch 2048 (Zbontar et al. 2021).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe barlow_twins_imagenet
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn

    8 GPUs. Expected on ImageNet: linear 73.2 (its authors' probe), k-NN 66.0 (by DINO's authors, as in
    MULAN's table 3). Not run by us.
    """
    return Recipe(
        name="barlow_twins",
        method=Component("barlow_twins", {"scale": 0.024}),
        backbone=common.RESNET50,
        epochs=1000,
        data=Data(batch_size=2048),
        optimizer=Optimizer("lars", lr=0.2, weight_decay=1e-6, schedule=WarmupCosine(warmup=10, end=0.001)),
        step=Step(backward="recompute"),
    )


def cifar10() -> Recipe:
    """Barlow Twins on 32-pixel images, ResNet-18, 200 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe barlow_twins_cifar10

    One GPU. Not run by us.
    """
    lars = Optimizer("lars", lr=0.3, weight_decay=1e-4, schedule=WarmupCosine(warmup=10))
    return common.cifar10(
        "barlow_twins",
        optimizer=lars,
        view=common.small(Global(2)),
        hidden_dim=2048,
        output_dim=2048,
        scale=0.1,
    )


def tiny() -> Recipe:
    """Barlow Twins in seconds, for tests: `manyviews pretrain demo --recipe barlow_twins_tiny`."""
    return common.tiny("barlow_twins", view=common.small(Global(2)), hidden_dim=64, output_dim=64)
