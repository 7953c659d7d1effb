"""data2vec 2.0's recipes."""

from dataclasses import replace

from manyviews.recipes import _common as common
from manyviews.schedules import Linear, WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global, InverseBlocks

# Features are the mean of the patches, as the paper fine-tunes them. The class token has a small term of its own.
MEAN = {"global_pool": "avg", "fc_norm": False}


def imagenet() -> Recipe:
    """data2vec 2.0, ViT-B/16, 150 epochs, batch 512, 16 masks of each image (Baevski et al. 2023).

    torchrun --nnodes 4 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe data2vec2_imagenet

    32 GPUs in the paper, which reaches 84 % fine-tuned after three hours. Not run by us.
    """
    return Recipe(
        name="data2vec2",
        method=Component("data2vec2"),
        backbone=Component("vit_base_patch16_224", {"position": "sincos", **MEAN}),
        epochs=150,
        data=Data(batch_size=512),
        optimizer=Optimizer(
            "adamw",
            lr=1e-3,
            lr_scaling="constant",
            betas=(0.9, 0.98),
            weight_decay=0.05,
            clip=4.0,
            schedule=WarmupCosine(warmup=20),
        ),
    )


def cifar10() -> Recipe:
    """data2vec 2.0 on 32-pixel images, ViT-Ti/4, 100 epochs, batch 512, 8 masks of each image.

    manyviews pretrain cifar10/train --recipe data2vec2_cifar10

    One GPU. Not run by us.
    """
    adamw = Optimizer("adamw", lr=5e-4, betas=(0.9, 0.98), weight_decay=0.05, clip=4.0, schedule=WarmupCosine(warmup=5))
    vit = Component(common.CIFAR_VIT.name, {**common.CIFAR_VIT.settings, "position": "sincos", **MEAN})
    recipe = common.cifar10(
        "data2vec2",
        vit,
        adamw,
        view=Global(1, size=32, area=(0.2, 1.0), color=None),
        masking=InverseBlocks(0.75, block=2),
        masks=8,
        layers=8,
        decoder_dim=192,
        decoder_depth=4,
        momentum=Linear(0.996, 0.9999, epochs=50),
    )
    return replace(recipe, epochs=100)


def tiny() -> Recipe:
    """data2vec 2.0 in seconds, for tests: `manyviews pretrain demo --recipe data2vec2_tiny`."""
    return common.tiny(
        "data2vec2",
        Component(common.TINY_VIT.name, {**common.TINY_VIT.settings, **MEAN}),
        view=Global(1, size=32, color=None),
        masking=InverseBlocks(0.75, block=2),
        masks=2,
        layers=2,
        decoder_dim=32,
        decoder_depth=1,
        momentum=Linear(0.9, 1.0),
    )
