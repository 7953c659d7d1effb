"""DINO's recipes."""

from manyviews.recipes import _common as common
from manyviews.regularizers import Rescue
from manyviews.schedules import Cosine, WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global, Local


def imagenet() -> Recipe:
    """DINO, ViT-S/16, 800 epochs, batch 1024, 2x224 + 8x96 (Caron et al. 2021).

    torchrun --nnodes 2 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe dino_imagenet

    16 V100 in the paper, whose best run, with ten local crops, has linear 77.0 and k-NN 74.5. Not run by us.
    """
    return Recipe(
        name="dino",
        method=Component("dino"),
        backbone=Component("vit_small_patch16_224", {"drop_path_rate": 0.1}),
        epochs=800,
        data=Data(batch_size=1024),
        optimizer=Optimizer(
            "adamw",
            lr=5e-4,
            schedule=WarmupCosine(warmup=10, end=5e-4),
            weight_decay=Cosine(0.04, 0.4),
            clip=3.0,
        ),
    )


def rescue() -> Recipe:
    """DINO with rescued easy samples, ViT-L/16, 100 epochs, batch 2048: k 16, s 1 (Wang et al.).

    torchrun --nnodes 2 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe dino_rescue

    The paper's is DINOv2 (linear 83.1, 0.5 above none), which has masked patch prediction and KoLeo besides; these are
    its settings on DINO. Not run by us.
    """
    return Recipe(
        name="dino",
        method=Component("dino"),
        backbone=Component("vit_large_patch16_224", {"drop_path_rate": 0.3}),
        epochs=100,
        data=Data(batch_size=2048),
        # DINOv2 scales 0.004 by the square root of batch / 1024: half of it for a batch of 256.
        optimizer=Optimizer(
            "adamw",
            lr=2e-3,
            lr_scaling="sqrt",
            schedule=WarmupCosine(warmup=10, end=5e-4),
            weight_decay=0.04,
            clip=3.0,
        ),
        regularizers=(Rescue(scale=1.0, k=16),),
    )


def cifar10() -> Recipe:
    """DINO on 32-pixel images, ViT-Ti/4, 200 epochs, batch 512, 2x32 + 4x16.

    manyviews pretrain cifar10/train --recipe dino_cifar10

    One GPU. Not run by us.
    """
    adamw = Optimizer("adamw", lr=5e-4, weight_decay=Cosine(0.04, 0.4), clip=3.0)
    return common.cifar10(
        "dino",
        common.CIFAR_VIT,
        adamw,
        views=(common.small(Global(2, area=(0.3, 1.0))), common.small(Local(4, area=(0.1, 0.3)), 16)),
        prototypes=4096,
    )


def tiny() -> Recipe:
    """DINO on a small ResNet, in seconds, for tests: `manyviews pretrain demo --recipe dino_tiny`."""
    return common.tiny(
        "dino",
        views=(common.small(Global(2)), common.small(Local(2), 16)),
        prototypes=128,
        hidden_dim=64,
        bottleneck_dim=32,
        momentum=Cosine(0.9, 1.0),
        freeze_epochs=0,
    )
