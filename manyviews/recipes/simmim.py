"""SimMIM's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global, Random


def imagenet() -> Recipe:
    """SimMIM, ViT-B/16, 800 epochs, batch 2048, 60 % masked in squares of 32 pixels (Xie et al. 2022).

    torchrun --nnodes 4 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe simmim_imagenet
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol finetune_vit
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    Expected on ImageNet: 83.8 fine-tuned, linear 56.7, k-NN 16.1 (the last two as in MULAN's table 3). Not run by us.
    """
    vit = Component("vit_base_patch16_224", {**common.POOLED, "drop_path_rate": 0.1, "init_values": 0.1})
    return Recipe(
        name="simmim",
        method=Component("simmim"),
        backbone=vit,
        epochs=800,
        data=Data(batch_size=2048),
        optimizer=Optimizer("adamw", lr=1e-4, weight_decay=0.05, schedule=WarmupCosine(warmup=20), clip=5.0),
    )


def swin_imagenet() -> Recipe:
    """SimMIM, Swin-B, 800 epochs, batch 2048, views of 192 pixels (Xie et al. 2022).

    torchrun --nnodes 4 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe simmim_swin_imagenet

    Expected on ImageNet: 84.0 fine-tuned at 192 pixels after 100 epochs. Not run by us.
    """
    view = Global(1, size=192, area=(0.67, 1.0), color=None)
    swin = Component("swin_base_patch4_window7_224", {"img_size": 192, "window_size": 6, "drop_path_rate": 0.0})
    return Recipe(
        name="simmim",
        method=Component("simmim", {"view": view, "masking": Random(0.6)}),
        backbone=swin,
        epochs=800,
        data=Data(batch_size=2048),
        optimizer=Optimizer("adamw", lr=1e-4, weight_decay=0.05, schedule=WarmupCosine(warmup=20), clip=5.0),
        test_size=192,
    )


def cifar10() -> Recipe:
    """SimMIM on 32-pixel images, ViT-Ti/4, 200 epochs, batch 512, squares of 8 pixels.

    manyviews pretrain cifar10/train --recipe simmim_cifar10

    One GPU. Not run by us.
    """
    adamw = Optimizer("adamw", lr=5e-4, weight_decay=0.05, schedule=WarmupCosine(warmup=20), clip=5.0)
    view = Global(1, size=32, area=(0.67, 1.0), color=None)
    return common.cifar10("simmim", common.pooled(common.CIFAR_VIT), adamw, view=view)


def tiny() -> Recipe:
    """SimMIM in seconds, for tests: `manyviews pretrain demo --recipe simmim_tiny`."""
    view = Global(1, size=32, color=None)
    return common.tiny("simmim", common.pooled(common.TINY_VIT), view=view)


def swin_tiny() -> Recipe:
    """SimMIM on a small Swin, in seconds, for tests: `manyviews pretrain demo --recipe simmim_swin_tiny`."""
    return common.tiny("simmim", common.TINY_SWIN, view=Global(1, size=32, color=None), masking=Random(0.6))
