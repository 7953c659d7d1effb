"""VICReg's recipes."""

from manyviews.recipe import Choice, Data, Optimizer, Recipe, Step
from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.views import Global


def imagenet() -> Recipe:
    """VICReg, ResNet-50, 1000 epochs, batch 2048 (Bardes et al. 2022; lecture, section on VICReg).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe vicreg_imagenet

    8 GPUs. Expected linear top-1 on ImageNet: 73.2. Not run by us.
    """
    return Recipe(
        name="vicreg",
        method=Choice("vicreg"),
        backbone=common.RESNET50,
        epochs=1000,
        data=Data(batch_size=2048),
        optimizer=Optimizer("lars", lr=0.3, weight_decay=1e-6, schedule=WarmupCosine(warmup=10)),
        step=Step(memory="constant"),
    )


def cifar10() -> Recipe:
    """VICReg on 32-pixel images, ResNet-18, 200 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe vicreg_cifar10

    One GPU. Not run by us.
    """
    lars = Optimizer("lars", lr=0.3, weight_decay=1e-4, schedule=WarmupCosine(warmup=10))
    return common.cifar10("vicreg", optimizer=lars, view=common.small(Global(2)), hidden_dim=2048, output_dim=2048)


def tiny() -> Recipe:
    """VICReg in seconds, for tests: `manyviews pretrain demo --recipe vicreg_tiny`."""
    return common.tiny("vicreg", view=common.small(Global(2)), hidden_dim=64, output_dim=64)
