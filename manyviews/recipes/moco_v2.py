"""MoCo v2's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe, Step
from manyviews.views import Global


def imagenet() -> Recipe:
    """MoCo v2, ResNet-50, 800 epochs, batch 256 (Chen et al. 2020).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe moco_v2_imagenet
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn

    8 GPUs: shuffling BatchNorm needs several. Expected on ImageNet: linear 71.1 (its authors' probe),
    k-NN 61.9 (by DINO's authors, as in MULAN's table 3). Not run by us.
    """
    return Recipe(
        name="moco_v2",
        method=Component("moco_v2"),
        backbone=common.RESNET50,
        epochs=800,
        data=Data(batch_size=256),
        optimizer=Optimizer("sgd", lr=0.03, weight_decay=1e-4, schedule=WarmupCosine(warmup=0), decay_all=True),
        step=Step(sync_batchnorm=False),
    )


def cifar10() -> Recipe:
    """MoCo v2 on 32-pixel images, ResNet-18, 200 epochs, batch 512, 4096 keys, momentum 0.99.

    manyviews pretrain cifar10/train --recipe moco_v2_cifar10

    One GPU. Not run by us.
    """
    view = common.small(Global(2, area=(0.2, 1.0)))
    return common.cifar10("moco_v2", view=view, hidden_dim=512, queue_size=4096, temperature=0.1, momentum=0.99)


def tiny() -> Recipe:
    """MoCo v2 in seconds, for tests: `manyviews pretrain demo --recipe moco_v2_tiny`."""
    view = common.small(Global(2))
    return common.tiny("moco_v2", view=view, hidden_dim=64, output_dim=32, queue_size=256, momentum=0.9)
