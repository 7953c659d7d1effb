"""data2vec's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import Linear, WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import DATA2VEC, Global


def imagenet() -> Recipe:
    """data2vec, ViT-B/16, 800 epochs, batch 2048, 60 % masked (Baevski et al. 2022).

    torchrun --nnodes 2 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe data2vec_imagenet

    16 GPUs. Expected on ImageNet: 84.2 fine-tuned. Not run by us.
    """
    return Recipe(
        name="data2vec",
        method=Component("data2vec"),
        backbone=common.pooled(Component("vit_base_patch16_224", {"drop_path_rate": 0.2})),
        epochs=800,
        data=Data(batch_size=2048),
        optimizer=Optimizer(
            "adamw", lr=2e-3, lr_scaling="constant", weight_decay=0.05, clip=3.0, schedule=WarmupCosine(warmup=40)
        ),
    )


def cifar10() -> Recipe:
    """data2vec on 32-pixel images, ViT-Ti/4, 200 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe data2vec_cifar10

    One GPU. Not run by us.
    """
    adamw = Optimizer("adamw", lr=5e-4, weight_decay=0.05, clip=3.0, schedule=WarmupCosine(warmup=10))
    view = Global(1, size=32, area=(0.3, 1.0), color=DATA2VEC)
    momentum = Linear(0.996, 0.9998, epochs=100)
    return common.cifar10("data2vec", common.pooled(common.CIFAR_VIT), adamw, view=view, momentum=momentum)


def tiny() -> Recipe:
    """data2vec in seconds, for tests: `manyviews pretrain demo --recipe data2vec_tiny`."""
    view = Global(1, size=32, area=(0.3, 1.0), color=None)
    momentum = Linear(0.9, 1.0)
    return common.tiny("data2vec", common.pooled(common.TINY_VIT), view=view, layers=2, momentum=momentum)
