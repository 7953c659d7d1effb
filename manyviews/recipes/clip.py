"""CLIP's recipes. They need captions: see `manyviews.data.open_source`."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Caption, Global


def web() -> Recipe:
    """CLIP, ViT-B/32, 32 epochs, batch 32768 (Radford et al. 2021).

    torchrun --nnodes 32 --nproc-per-node 8 -m manyviews pretrain "s3://pairs/{00000..41455}.tar" --recipe clip_web

    256 V100 and 400 million pairs in the paper. Not run by us.
    """
    return Recipe(
        name="clip",
        method=Component("clip"),
        backbone=Component("vit_base_patch32_224"),
        epochs=32,
        data=Data(batch_size=32768),
        optimizer=Optimizer(
            "adamw",
            lr=5e-4,
            lr_scaling="constant",
            weight_decay=0.2,
            betas=(0.9, 0.98),
            schedule=WarmupCosine(warmup=0.16),
        ),
    )


def photos() -> Recipe:
    """CLIP for some thousands of captioned photographs: ResNet-18, 128-pixel views, 30 epochs, batch 256.

    manyviews pretrain photos/ --recipe clip_photos

    The folder holds a `captions.csv` with the columns path and caption. One GPU. Not run by us.
    """
    return Recipe(
        name="clip",
        method=Component(
            "clip",
            {
                "view": Global(1, size=128, area=(0.5, 1.0), color=None),
                "output_dim": 256,
                "text_dim": 256,
                "text_depth": 4,
                "text_heads": 4,
            },
        ),
        backbone=Component("resnet18"),
        epochs=30,
        data=Data(batch_size=256),
        optimizer=Optimizer("adamw", lr=5e-4, weight_decay=0.1, betas=(0.9, 0.98), schedule=WarmupCosine(warmup=3)),
        test_size=128,
    )


def tiny() -> Recipe:
    """CLIP on a small ResNet, in seconds, for tests: `manyviews pretrain captioned/ --recipe clip_tiny`."""
    return common.tiny(
        "clip",
        view=Global(1, size=32, color=None),
        caption=Caption(length=32),
        output_dim=32,
        text_dim=32,
        text_depth=1,
        text_heads=2,
    )
