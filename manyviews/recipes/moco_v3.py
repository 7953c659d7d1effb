"""MoCo v3's recipes."""

from dataclasses import replace

from manyviews.recipe import Choice, Data, Optimizer, Recipe
from manyviews.recipes import _common as common
from manyviews.schedules import Cosine, WarmupCosine
from manyviews.views import Global, Local


def imagenet() -> Recipe:
    """MoCo v3, ResNet-50, 200 epochs, batch 1024: the two-view baseline of MULAN's appendix A.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe moco_v3_imagenet

    4 A100. Expected linear top-1 on ImageNet: 71.4. Not run by us.
    """
    return Recipe(
        name="moco_v3",
        method=Choice("moco_v3", {"weights": 2.0}),
        backbone=common.RESNET50,
        epochs=200,
        data=Data(batch_size=1024),
        optimizer=Optimizer("lars", lr=0.4, weight_decay=1.5e-6, schedule=WarmupCosine(warmup=10)),
    )


def mulan() -> Recipe:
    """MoCo v3 with MULAN's three tasks, each with a predictor of its own; ResNet-50, 200 epochs.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe moco_v3_mulan

    4 A100. Expected on ImageNet: linear 75.7, k-NN 69.2. Not run by us.
    """
    return replace(imagenet(), method=Choice("moco_v3", {"tasks": common.MULAN_TASKS, "weights": 1.0}))


def cifar10() -> Recipe:
    """MoCo v3 on 32-pixel images, ResNet-18, 200 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe moco_v3_cifar10

    One GPU. Not run by us.
    """
    return common.cifar10(
        "moco_v3",
        tasks=(common.small(Global(2, area=(0.2, 1.0))),),
        weights=2.0,
        hidden_dim=1024,
        temperature=0.2,
        momentum=Cosine(0.99, 1.0),
    )


def tiny() -> Recipe:
    """MoCo v3 on a small transformer, in seconds, for tests: `manyviews pretrain demo --recipe moco_v3_tiny`."""
    return common.tiny(
        "moco_v3",
        common.TINY_VIT,
        tasks=(common.small(Global(2)), common.small(Local(1), 16)),
        hidden_dim=64,
        output_dim=32,
        projector_layers=3,
        temperature=0.2,
        momentum=Cosine(0.9, 1.0),
        freeze_patch_embed=True,
    )
