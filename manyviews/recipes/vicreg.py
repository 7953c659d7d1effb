"""VICReg's recipes."""

from dataclasses import replace

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe, Step
from manyviews.views import MAST_15, Composed, Global


def imagenet() -> Recipe:
    """VICReg, ResNet-50, 1000 epochs, batch 2048 (Bardes et al. 2022).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe vicreg_imagenet

    8 GPUs. Expected linear top-1 on ImageNet: 73.2. Not run by us. Its rate is 1.6 in all, and 0.002 at the end.
    """
    return Recipe(
        name="vicreg",
        method=Component("vicreg"),
        backbone=common.RESNET50,
        epochs=1000,
        data=Data(batch_size=2048),
        optimizer=Optimizer("lars", lr=0.2, weight_decay=1e-6, schedule=WarmupCosine(warmup=10, end=0.002 / 1.6)),
        step=Step(backward="recompute"),
    )


def composed15() -> Recipe:
    """VICReg with MAST's 15 augmentations composed at once (MAST, table 5, row 2).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe vicreg_composed15

    Expected linear top-1 on ImageNet: 73.1, 0.1 below its own five. Not run by us.
    """
    view = Composed(2, augmentations=MAST_15, staged=False)
    return replace(imagenet(), method=Component("vicreg", {"view": view}))


def staged() -> Recipe:
    """VICReg with MAST's five augmentations, one at a time first and then composed (MAST, table 5, row 6).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe vicreg_staged

    Expected linear top-1 on ImageNet: 73.4. Not run by us.
    """
    return replace(imagenet(), method=Component("vicreg", {"view": Composed(2)}))


def staged15() -> Recipe:
    """VICReg with MAST's 15 augmentations, one at a time first and then composed: the control of `mast_imagenet15`.

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe vicreg_staged15

    The paper has no such row. Not run by us.
    """
    return replace(imagenet(), method=Component("vicreg", {"view": Composed(2, augmentations=MAST_15)}))


def cifar10_staged() -> Recipe:
    """VICReg with `mast_cifar10`'s views, optimizer and widths: its control.

    manyviews pretrain cifar10/train --recipe vicreg_cifar10_staged

    One GPU. Not run by us.
    """
    lars = Optimizer("lars", lr=0.2, weight_decay=1e-4, schedule=WarmupCosine(warmup=10, end=0.002 / 1.6))
    return common.cifar10("vicreg", optimizer=lars, view=Composed(2, size=32), hidden_dim=2048, output_dim=2048)


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
