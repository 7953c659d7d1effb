"""MAST's recipes."""

from __future__ import annotations

from typing import Any

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe, Step
from manyviews.views import MAST_15, MAST_19, Composed


def imagenet() -> Recipe:
    """MAST-5, ResNet-50, 1000 epochs, batch 2048, learning rate 1.6 in all (Huang et al. 2023, section 3.2).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe mast_imagenet

    For ImageNet-100 (tables 3, 4, 9): the same with --set epochs=500. The paper names no hardware; 8 GPUs of 80 GB.
    The warm-up is VICReg's. Expected linear top-1: 74.9; on ImageNet-100, 81.9. Not run by us.
    """
    return _imagenet()


def imagenet15() -> Recipe:
    """MAST-15: ten augmentations more (table 5, row 1).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe mast_imagenet15

    As `mast_imagenet`. Expected linear top-1 on ImageNet: 75.8; on ImageNet-100, 82.5. Not run by us.
    """
    return _imagenet(view=Composed(2, augmentations=MAST_15))


def imagenet19() -> Recipe:
    """MAST-19: MAST-15 and four augmentations more, which are like others (table 5, row 3).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe mast_imagenet19

    As `mast_imagenet`. Expected linear top-1 on ImageNet: 75.8. Not run by us.
    """
    return _imagenet(view=Composed(2, augmentations=MAST_19))


def handcrafted() -> Recipe:
    """MAST-5 with fixed masks, each of ones on d/K dimensions of its own (table 5, row 7).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe mast_handcrafted

    As `mast_imagenet`. Expected linear top-1 on ImageNet: 74.3. Not run by us.
    """
    return _imagenet(masks="disjoint")


def no_uncertainty() -> Recipe:
    """MAST-5 without variances: plain distances in the subspaces (table 5, row 8).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe mast_no_uncertainty

    As `mast_imagenet`. Expected linear top-1 on ImageNet: 74.1. Not run by us.
    """
    return _imagenet(uncertainty=False)


def uncertainty_only() -> Recipe:
    """MAST-5 without masks, ResNet-18, 100 epochs on a small set such as Flowers-17 or Cars (table 6).

    manyviews pretrain flowers17/train --recipe mast_uncertainty_only

    One GPU. With subspaces: --set method.masks=learned. The paper says nothing of the batch, here 256, and the rest is
    that of `mast_imagenet`. Expected linear top-1: 26.5 on Flowers-17 and 16.4 on Cars; 28.9 and 18.7 with subspaces.
    Not run by us.
    """
    return Recipe(
        name="mast",
        method=Component("mast", {"masks": "none"}),
        backbone=Component("resnet18"),
        epochs=100,
        data=Data(batch_size=256),
        optimizer=_lars(),
    )


def cifar10() -> Recipe:
    """MAST-5 on 32-pixel images, ResNet-18, 200 epochs, batch 512; with masks and variances kept in bounds.

    manyviews pretrain cifar10/train --recipe mast_cifar10

    One GPU. Not run by us.
    """
    return common.cifar10(
        "mast",
        optimizer=_lars(weight_decay=1e-4),
        view=Composed(2, size=32),
        hidden_dim=2048,
        output_dim=2048,
        mask_norm="fixed",
        prior_weight=25.0,
    )


def tiny() -> Recipe:
    """MAST-5 in seconds, for tests: `manyviews pretrain demo --recipe mast_tiny`."""
    return common.tiny("mast", view=Composed(2, size=32), hidden_dim=64, output_dim=64)


def _imagenet(**settings: Any) -> Recipe:
    return Recipe(
        name="mast",
        method=Component("mast", settings),
        backbone=common.RESNET50,
        epochs=1000,
        data=Data(batch_size=2048),
        optimizer=_lars(),
        step=Step(backward="recompute"),
    )


def _lars(weight_decay: float = 1e-6) -> Optimizer:
    return Optimizer("lars", lr=0.2, weight_decay=weight_decay, schedule=WarmupCosine(warmup=10))
