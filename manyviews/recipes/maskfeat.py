"""MaskFeat's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global


def imagenet() -> Recipe:
    """MaskFeat, ViT-B/16, 1600 epochs, batch 2048, 40 % masked (Wei et al. 2022).

    torchrun --nnodes 4 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe maskfeat_imagenet

    Expected on ImageNet: 84.0 fine-tuned. Not run by us.
    """
    return Recipe(
        name="maskfeat",
        method=Component("maskfeat"),
        backbone=Component("vit_base_patch16_224", common.POOLED),
        epochs=1600,
        data=Data(batch_size=2048),
        optimizer=Optimizer("adamw", lr=2e-4, weight_decay=0.05, schedule=WarmupCosine(warmup=30), clip=0.02),
    )


def cifar10() -> Recipe:
    """MaskFeat on 32-pixel images, ViT-Ti/4, 200 epochs, batch 512, cells of 4 pixels.

    manyviews pretrain cifar10/train --recipe maskfeat_cifar10

    One GPU. Not run by us.
    """
    adamw = Optimizer("adamw", lr=5e-4, weight_decay=0.05, schedule=WarmupCosine(warmup=20), clip=1.0)
    view = Global(1, size=32, area=(0.5, 1.0), color=None)
    return common.cifar10("maskfeat", common.pooled(common.CIFAR_VIT), adamw, view=view, cell=4)


def tiny() -> Recipe:
    """MaskFeat in seconds, for tests: `manyviews pretrain demo --recipe maskfeat_tiny`."""
    return common.tiny("maskfeat", common.pooled(common.TINY_VIT), view=Global(1, size=32, color=None))
