"""iBOT's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import Cosine, WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global, Local


def imagenet() -> Recipe:
    """iBOT, ViT-B/16, 400 epochs, batch 1024, 2x224 + 10x96 (Zhou et al. 2022).

    torchrun --nnodes 4 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe ibot_imagenet
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented --features cls_mean
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol knn

    32 GPUs. Expected on ImageNet: k-NN 77.1 and linear 79.5 (MULAN, table 3), by its authors' probes. The lecture's
    1600 epochs are these 400, of two global and ten local crops, counted in images of 224 pixels. Not run by us.
    """
    return Recipe(
        name="ibot",
        method=Component("ibot"),
        backbone=Component("vit_base_patch16_224", {"drop_path_rate": 0.1}),
        epochs=400,
        data=Data(batch_size=1024),
        optimizer=Optimizer(
            "adamw",
            lr=7.5e-4,
            schedule=WarmupCosine(warmup=10, end=6.7e-4),
            weight_decay=Cosine(0.04, 0.4),
            clip=3.0,
        ),
    )


def cifar10() -> Recipe:
    """iBOT on 32-pixel images, ViT-Ti/4, 200 epochs, batch 512, 2x32 + 4x16.

    manyviews pretrain cifar10/train --recipe ibot_cifar10

    One GPU. Not run by us.
    """
    adamw = Optimizer("adamw", lr=5e-4, weight_decay=Cosine(0.04, 0.4), clip=3.0)
    views = (common.small(Global(2, area=(0.3, 1.0))), common.small(Local(4, area=(0.1, 0.3)), 16))
    return common.cifar10("ibot", common.CIFAR_VIT, adamw, views=views, prototypes=4096)


def tiny() -> Recipe:
    """iBOT on a small transformer, in seconds, for tests: `manyviews pretrain demo --recipe ibot_tiny`."""
    views = (common.small(Global(2)), common.small(Local(2), 16))
    return common.tiny(
        "ibot",
        common.TINY_VIT,
        views=views,
        prototypes=64,
        hidden_dim=64,
        bottleneck_dim=32,
        momentum=Cosine(0.9, 1.0),
        freeze_epochs=0,
    )
