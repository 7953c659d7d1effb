"""MAE's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global, Uniform


def imagenet() -> Recipe:
    """MAE, ViT-B/16, 800 epochs, batch 4096, 75 % masked (He et al. 2022).

    torchrun --nnodes 8 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe mae_imagenet
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol finetune_vit
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    64 GPUs in the paper. Expected on ImageNet after 1600 epochs (`--epochs 1600`): 83.6 fine-tuned, linear 68.0, k-NN
    27.1 (the last two as in MULAN's table 3). Not run by us.
    """
    return Recipe(
        name="mae",
        method=Component("mae"),
        backbone=Component("vit_base_patch16_224", {"position": "sincos"}),
        epochs=800,
        data=Data(batch_size=4096),
        optimizer=Optimizer("adamw", lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, schedule=WarmupCosine(warmup=40)),
    )


def cifar10() -> Recipe:
    """MAE on 32-pixel images, ViT-Ti/4, 200 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe mae_cifar10

    One GPU. Not run by us.
    """
    adamw = Optimizer("adamw", lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, schedule=WarmupCosine(warmup=20))
    vit = Component(common.CIFAR_VIT.name, {**common.CIFAR_VIT.settings, "position": "sincos"})
    view = Global(1, size=32, area=(0.2, 1.0), color=None)
    return common.cifar10("mae", vit, adamw, view=view, decoder_dim=128, decoder_depth=4, decoder_heads=4)


def tiny() -> Recipe:
    """MAE in seconds, for tests: `manyviews pretrain demo --recipe mae_tiny`."""
    view = Global(1, size=32, color=None)
    return common.tiny("mae", common.TINY_VIT, view=view, decoder_dim=32, decoder_depth=1, decoder_heads=2)


def swin_imagenet() -> Recipe:
    """MAE with uniform masking on a Swin-T, 200 epochs, batch 4096, views of 256 pixels (Li et al. 2022).

    torchrun --nnodes 4 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe mae_swin_imagenet

    The paper's unit of hiding is 16 pixels, this one's a place of the last map, 32. Not run by us.
    """
    swin = {"img_size": 256, "strict_img_size": False, "drop_path_rate": 0.0}
    return Recipe(
        name="mae",
        method=Component("mae", {"view": Global(1, size=256, area=(0.2, 1.0), color=None), "masking": Uniform(0.25)}),
        backbone=Component("swin_tiny_patch4_window7_224", swin),
        epochs=200,
        data=Data(batch_size=4096),
        optimizer=Optimizer("adamw", lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, schedule=WarmupCosine(warmup=10)),
        test_size=256,
    )


def swin_tiny() -> Recipe:
    """MAE on a small Swin, in seconds, for tests: `manyviews pretrain demo --recipe mae_swin_tiny`."""
    return common.tiny(
        "mae",
        common.TINY_SWIN,
        view=Global(1, size=32, color=None),
        masking=Uniform(0.25),
        decoder_dim=32,
        decoder_depth=1,
        decoder_heads=2,
    )
