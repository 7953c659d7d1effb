"""dBOT's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import Repeat, WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global


def imagenet() -> Recipe:
    """dBOT, ViT-B/16, two stages of 800 epochs, batch 4096, 75 % masked (Liu et al. 2022).

    torchrun --nnodes 8 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe dbot_imagenet

    Expected on ImageNet: 84.5 fine-tuned. Not run by us.
    """
    schedule = Repeat(WarmupCosine(warmup=40), 2)
    return Recipe(
        name="dbot",
        method=Component("dbot"),
        backbone=Component("vit_base_patch16_224", {"position": "sincos", "drop_path_rate": 0.2}),
        epochs=1600,
        data=Data(batch_size=4096),
        optimizer=Optimizer("adamw", lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, schedule=schedule),
    )


def cifar10() -> Recipe:
    """dBOT on 32-pixel images, ViT-Ti/4, two stages of 100 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe dbot_cifar10

    One GPU. Not run by us.
    """
    schedule = Repeat(WarmupCosine(warmup=10), 2)
    adamw = Optimizer("adamw", lr=5e-4, betas=(0.9, 0.95), weight_decay=0.05, schedule=schedule)
    vit = common.pooled(common.CIFAR_VIT, position="sincos")
    view = Global(1, size=32, area=(0.2, 1.0), color=None)
    return common.cifar10("dbot", vit, adamw, view=view, decoder_dim=128, decoder_depth=4, decoder_heads=4)


def tiny() -> Recipe:
    """dBOT in seconds, for tests: `manyviews pretrain demo --recipe dbot_tiny`."""
    view, vit = Global(1, size=32, color=None), common.pooled(common.TINY_VIT)
    return common.tiny("dbot", vit, view=view, decoder_dim=32, decoder_depth=1, decoder_heads=2)
