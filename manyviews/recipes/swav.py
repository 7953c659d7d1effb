"""SwAV's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global, Local


def imagenet() -> Recipe:
    """SwAV, ResNet-50, 800 epochs, batch 4096, 2x224 + 6x96 (Caron et al. 2020).

    torchrun --nnodes 8 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe swav_imagenet
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn

    64 V100 in the paper. Expected on ImageNet: linear 75.3 (its authors' probe), k-NN 65.7 (by DINO's authors, as in
    MULAN's table 3). Not run by us.
    """
    return Recipe(
        name="swav",
        method=Component("swav"),
        backbone=common.RESNET50,
        epochs=800,
        data=Data(batch_size=4096),
        # The authors warm up from 0.3 to 4.8.
        optimizer=Optimizer(
            "lars", lr=0.3, weight_decay=1e-6, schedule=WarmupCosine(warmup=10, warmup_start=0.0625, end=0.001)
        ),
    )


def cifar10() -> Recipe:
    """SwAV on 32-pixel images, ResNet-18, 200 epochs, batch 512, 2x32 + 4x16.

    manyviews pretrain cifar10/train --recipe swav_cifar10

    One GPU. Not run by us.
    """
    return common.cifar10(
        "swav",
        views=(common.small(Global(2, area=(0.3, 1.0))), common.small(Local(4, area=(0.1, 0.3)), 16)),
        hidden_dim=512,
        prototypes=512,
    )


def tiny() -> Recipe:
    """SwAV in seconds, for tests: `manyviews pretrain demo --recipe swav_tiny`."""
    return common.tiny(
        "swav",
        views=(common.small(Global(2)), common.small(Local(2), 16)),
        hidden_dim=64,
        output_dim=32,
        prototypes=64,
        freeze_epochs=0,
    )
