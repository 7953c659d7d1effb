"""BYOL's recipes."""

from dataclasses import replace

from manyviews.recipe import Choice, Data, Optimizer, Recipe
from manyviews.recipes import _common as common
from manyviews.schedules import Cosine, WarmupCosine
from manyviews.views import Cutout, Global, Local


def imagenet() -> Recipe:
    """BYOL, ResNet-50, 200 epochs, batch 1024: the two-view baseline of MULAN's appendix A.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_imagenet

    4 A100, 44 hours in the paper. Expected linear top-1 on ImageNet: 70.7. Not run by us.
    """
    return Recipe(
        name="byol",
        method=Choice("byol", {"weights": 2.0}),
        backbone=common.RESNET50,
        epochs=200,
        data=Data(batch_size=1024),
        optimizer=Optimizer("lars", lr=0.4, weight_decay=1.5e-6, schedule=WarmupCosine(warmup=10)),
    )


def mulan() -> Recipe:
    """BYOL with MULAN's three tasks, each with a predictor of its own; ResNet-50, 200 epochs.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_mulan

    4 A100. Expected on ImageNet: linear 75.6, k-NN 69.9. Not run by us.
    """
    return replace(imagenet(), method=Choice("byol", {"tasks": common.MULAN_TASKS, "weights": 1.0}))


def cifar10() -> Recipe:
    """BYOL on 32-pixel images, ResNet-18, 200 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe byol_cifar10

    One GPU. The bar is k-NN 86.9 (lightly's published 200-epoch run). Not run by us.
    """
    return common.cifar10(
        "byol",
        tasks=(common.small(Global(2, area=(0.2, 1.0))),),
        weights=2.0,
        hidden_dim=1024,
        momentum=Cosine(0.99, 1.0),
    )


def tiny() -> Recipe:
    """BYOL with all three kinds of view, in seconds, for tests: `manyviews pretrain demo --recipe byol_tiny`."""
    return common.tiny(
        "byol",
        tasks=(common.small(Global(2)), common.small(Local(2), 16), common.small(Cutout(1))),
        hidden_dim=64,
        output_dim=32,
        momentum=Cosine(0.9, 1.0),
    )
