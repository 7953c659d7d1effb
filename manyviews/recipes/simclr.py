"""SimCLR's recipes."""

from manyviews.recipe import Choice, Data, Optimizer, Recipe, Step
from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.views import Global


def imagenet() -> Recipe:
    """SimCLR, ResNet-50, 1000 epochs (Chen et al. 2020; lecture, section on SimCLR).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe simclr_imagenet

    8 GPUs of 80 GB. Expected linear top-1 on ImageNet: 69.3. Not run by us.
    """
    return Recipe(
        name="simclr",
        method=Choice("simclr", {"temperature": 0.1}),
        backbone=common.RESNET50,
        epochs=1000,
        data=Data(batch_size=4096),
        optimizer=Optimizer("lars", lr=0.3, weight_decay=1e-6, schedule=WarmupCosine(warmup=10)),
        step=Step(memory="constant"),
    )


def cifar10() -> Recipe:
    """SimCLR on 32-pixel images, ResNet-18, 200 epochs, batch 512, temperature 0.5.

    manyviews pretrain cifar10/train --recipe simclr_cifar10

    One GPU. The bar is k-NN 84.8 (lightly's published 200-epoch run).
    """
    return common.cifar10("simclr", view=common.small(Global(2)), hidden_dim=512, temperature=0.5)


def tiny() -> Recipe:
    """SimCLR in seconds, for tests: `manyviews pretrain demo --recipe simclr_tiny`."""
    return common.tiny("simclr", view=common.small(Global(2)), hidden_dim=64, output_dim=32, temperature=0.5)
