"""DINOv3's recipes."""

from dataclasses import replace

from manyviews.adaptation import Full
from manyviews.recipes import _common as common
from manyviews.recipes.dinov2 import KOLEO
from manyviews.schedules import Linear, WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global, Local

# Class tokens as features; positions that are stretched or squeezed by up to 2 while training.
_ROPE = {"global_pool": "token", "rope_rescale_coords": 2.0}


def lvd() -> Recipe:
    """DINOv3, ViT-7B/16, batch 4096, 2x256 + 8x112, constant rates after the warm-up (Simeoni et al. 2025).

    torchrun --nnodes 32 --nproc-per-node 8 -m manyviews pretrain lvd1689m --recipe dinov3_lvd

    256 H100. For a set of 41 million images, an epoch has the 10,000 steps of which the paper anchors patches after a
    hundred. Smaller networks: `--set backbone.name=vit_large_patch16_dinov3`. Not run by us.
    """
    return Recipe(
        name="dinov3",
        method=Component("dinov3", {"gram_size": 512}),
        backbone=Component("vit_7b_patch16_dinov3", {**_ROPE, "drop_path_rate": 0.4, "drop_path_uniform": True}),
        epochs=103,
        data=Data(batch_size=4096, canvas=896),
        optimizer=Optimizer(
            "adamw",
            lr=4e-4,
            lr_scaling="constant",
            schedule=WarmupCosine(warmup=10, end=1.0),
            weight_decay=0.04,
            clip=3.0,
        ),
        regularizers=(KOLEO,),
        adaptation=Full(patch_embed=0.2),
        test_size=256,
    )


def cifar10() -> Recipe:
    """DINOv3 on 32-pixel images, a small rotary ViT/4, 200 epochs, batch 512, 2x32 + 4x16; anchored from epoch 100 on.

    manyviews pretrain cifar10/train --recipe dinov3_cifar10

    One GPU. Not run by us.
    """
    views = (common.small(Global(2, area=(0.32, 1.0))), common.small(Local(4, area=(0.1, 0.32)), 16))
    vit = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "num_heads": 3, **_ROPE}
    adamw = Optimizer("adamw", lr=5e-4, lr_scaling="sqrt", schedule=WarmupCosine(warmup=10, end=1.0), clip=3.0)
    start = common.cifar10(
        "dinov3",
        Component("vit_small_patch16_dinov3", vit),
        replace(adamw, weight_decay=0.04),
        views=views,
        prototypes=4096,
        patch_prototypes=4096,
        hidden_dim=2048,
        bottleneck_dim=256,
        momentum=0.996,
        gram_start=100,
        gram_copies=(40, 120, 140, 160),
        gram_size=64,
    )
    return replace(start, regularizers=(KOLEO,), adaptation=Full(patch_embed=0.2))


def tiny() -> Recipe:
    """DINOv3 on a small rotary transformer, in seconds, for tests: `manyviews pretrain demo --recipe dinov3_tiny`."""
    views = (common.small(Global(2)), common.small(Local(2), 16))
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "global_pool": "token"}
    start = common.tiny(
        "dinov3",
        Component("vit_small_patch16_dinov3", {**vit, "init_values": 1.0}),
        views=views,
        prototypes=64,
        patch_prototypes=48,
        hidden_dim=64,
        bottleneck_dim=32,
        teacher_temperature=Linear(0.04, 0.07, epochs=1),
        momentum=0.9,
        freeze_epochs=0,
        gram_start=0,
        gram_copies=(0, 0.2, 0.6),
        gram_size=48,
    )
    return replace(start, adaptation=Full(patch_embed=0.2))
