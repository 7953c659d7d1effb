"""DINO's recipes."""

from dataclasses import replace

from manyviews.recipes import _common as common
from manyviews.regularizers import Rescue
from manyviews.schedules import Cosine, Linear, WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import DINO_LOCAL, DINO_PAIR, Global, Local

# Those of the authors' longest runs; the method's own are their code's defaults.
_CROPS = (Global(2, area=(0.25, 1.0), color=DINO_PAIR), Local(10, area=(0.05, 0.25), color=DINO_LOCAL))


def imagenet() -> Recipe:
    """DINO, ViT-S/16, 800 epochs, batch 1024, 2x224 + 10x96 (Caron et al. 2021; MULAN, table 3).

    torchrun --nnodes 2 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe dino_imagenet
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented --features last4
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol knn

    16 V100 in the paper. Expected on ImageNet: linear 77.0, k-NN 74.5, by its authors' probes. Not run by us.

    The settings are those of its authors' published run, except that in it the lengths of the last layer's weight
    vectors learned; here they are 1.
    """
    return Recipe(
        name="dino",
        method=Component("dino", {"views": _CROPS}),
        backbone=Component("vit_small_patch16_224", {"drop_path_rate": 0.1}),
        epochs=800,
        data=Data(batch_size=1024),
        optimizer=Optimizer(
            "adamw", lr=5e-4, schedule=WarmupCosine(warmup=10, end=5e-3), weight_decay=Cosine(0.04, 0.4)
        ),
    )


def vit_b() -> Recipe:
    """DINO, ViT-B/16, 400 epochs, batch 1024, 2x224 + 10x96 (Caron et al. 2021; MULAN, table 3).

    torchrun --nnodes 4 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe dino_vit_b
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented --features cls_mean
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol knn

    32 V100. Expected on ImageNet: linear 78.2, k-NN 76.1, by its authors' probes. Not run by us.

    The settings are those of its authors' published run, except that it clipped the gradient of each weight at 0.3.
    Here that of all is clipped at 3, which is about as much.
    """
    start = imagenet()
    return replace(
        start,
        method=Component(
            "dino", {"views": _CROPS, "teacher_temperature": Linear(0.04, 0.07, epochs=50), "freeze_epochs": 3}
        ),
        backbone=Component("vit_base_patch16_224", {"drop_path_rate": 0.1}),
        epochs=400,
        optimizer=replace(start.optimizer, lr=7.5e-4, schedule=WarmupCosine(warmup=10, end=6.7e-4), clip=3.0),
    )


def resnet50() -> Recipe:
    """DINO, ResNet-50, 800 epochs, batch 4080, 2x224 + 6x96 (Caron et al. 2021; MULAN, table 3).

    torchrun --nnodes 10 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe dino_resnet50
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn

    80 V100. Expected on ImageNet: linear 75.3, k-NN 67.5, by its authors' probes. Not run by us.

    The settings are those of its authors' published run, except that in it BatchNorm saw views of one size together,
    and the head's saw all views. Here it sees one view at a time.
    """
    views = (Global(2, area=(0.14, 1.0), color=DINO_PAIR), Local(6, area=(0.05, 0.14), color=DINO_LOCAL))
    return Recipe(
        name="dino",
        method=Component(
            "dino",
            {
                **{"views": views, "prototypes": 60_000, "head_norm": True},
                "teacher_temperature": Linear(0.04, 0.07, epochs=50),
            },
        ),
        backbone=common.RESNET50,
        epochs=800,
        data=Data(batch_size=4080),
        optimizer=Optimizer("lars", lr=0.3, weight_decay=1e-6, schedule=WarmupCosine(warmup=10, end=0.001)),
    )


def rescue() -> Recipe:
    """DINO with rescued easy samples, ViT-L/16, 100 epochs, batch 2048: k 16, s 1 (Wang et al.).

    torchrun --nnodes 2 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe dino_rescue

    In no paper: `dinov2_rescue` is the paper's third method. This is its rate, batch, 100 epochs, weight decay and k on
    DINO as it is, with DINO's views and momentum. Not run by us.
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
