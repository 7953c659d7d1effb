"""Recipes of tokenizers for BEiT."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global


def imagenet() -> Recipe:
    """A tokenizer of 8,192 codes for patches of 16 pixels: ViT-S/16, 50 epochs, batch 1024.

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe dvae_imagenet --out runs/tokenizer

    8 GPUs. Not run by us.
    """
    return Recipe(
        name="dvae",
        method=Component("dvae"),
        backbone=Component("vit_small_patch16_224", {**common.POOLED, "depth": 6}),
        epochs=50,
        data=Data(batch_size=1024),
        optimizer=Optimizer("adamw", lr=2.5e-4, weight_decay=0.01, schedule=WarmupCosine(warmup=5)),
    )


def cifar10() -> Recipe:
    """A tokenizer of 512 codes for patches of 4 pixels: a transformer of 4 blocks, 50 epochs, batch 256.

    manyviews pretrain cifar10/train --recipe dvae_cifar10 --out runs/tokenizer

    One GPU. Not run by us.
    """
    vit = common.pooled(common.CIFAR_VIT, depth=4, embed_dim=128, num_heads=4)
    view = Global(1, size=32, area=(0.5, 1.0), color=None)
    return Recipe(
        name="dvae",
        method=Component("dvae", {"view": view, "codes": 512, "dim": 128, "depth": 2}),
        backbone=vit,
        epochs=50,
        data=common.CIFAR_DATA,
        optimizer=Optimizer("adamw", lr=1e-3, weight_decay=0.01, schedule=WarmupCosine(warmup=2)),
        test_size=32,
    )


def tiny() -> Recipe:
    """A tokenizer in seconds, for tests: `manyviews pretrain demo --recipe dvae_tiny`."""
    view = Global(1, size=32, color=None)
    return common.tiny("dvae", common.pooled(common.TINY_VIT), view=view, codes=32, dim=16, depth=1)
