"""NNCLR's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe, Step
from manyviews.views import Global


def imagenet() -> Recipe:
    """NNCLR, ResNet-50, 1000 epochs, batch 4096 (Dwibedi et al. 2021).

    torchrun --nnodes 4 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe nnclr_imagenet

    32 GPUs. Expected linear top-1 on ImageNet: 75.4. Not run by us.
    """
    return Recipe(
        name="nnclr",
        method=Component("nnclr"),
        backbone=common.RESNET50,
        epochs=1000,
        data=Data(batch_size=4096),
        optimizer=Optimizer("lars", lr=0.3, weight_decay=1e-6, schedule=WarmupCosine(warmup=10)),
        step=Step(backward="recompute"),
    )


def cifar10() -> Recipe:
    """NNCLR on 32-pixel images, ResNet-18, 200 epochs, batch 512, 4096 neighbors to choose from.

    manyviews pretrain cifar10/train --recipe nnclr_cifar10

    One GPU. Not run by us.
    """
    return common.cifar10(
        "nnclr", view=common.small(Global(2)), hidden_dim=512, output_dim=128, prediction_dim=512, queue_size=4096
    )


def tiny() -> Recipe:
    """NNCLR in seconds, for tests: `manyviews pretrain demo --recipe nnclr_tiny`."""
    view = common.small(Global(2))
    return common.tiny("nnclr", view=view, hidden_dim=64, output_dim=32, prediction_dim=64, queue_size=256)
