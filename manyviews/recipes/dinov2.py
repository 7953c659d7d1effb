"""DINOv2's recipes."""

from dataclasses import replace

from manyviews.adaptation import Full
from manyviews.recipes import _common as common
from manyviews.regularizers import KoLeo, Rescue
from manyviews.schedules import Cosine, Linear, WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import DINO_LOCAL, DINO_PAIR, Global, Local

# On the class tokens of the two global views.
KOLEO = KoLeo(0.1, on="features", first=2)

_DEEP = {"drop_path_rate": 0.3, "drop_path_uniform": True}
# 0.004 for a batch of 1024, by the square root.
_ADAMW = Optimizer(
    "adamw",
    lr=2e-3,
    lr_scaling="sqrt",
    schedule=WarmupCosine(warmup=10, end=2.5e-4),
    weight_decay=Cosine(0.04, 0.4),
    clip=3.0,
)


def imagenet() -> Recipe:
    """DINOv2, ViT-L/16, 200 epochs, batch 2048, 2x224 + 8x96 (Oquab et al. 2024, their short configuration).

    torchrun --nnodes 4 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe dinov2_imagenet

    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_grid,knn

    32 A100. Its authors report k-NN 81.6 and linear 82.9. Not run by us.

    The configuration counts 100 epochs of 1,250 steps, which are 200 passes over ImageNet. So its warm-ups are twice as
    long here. It has one head and a center; the paper's heads and balance are `--set method.shared_head=false --set
    method.centering=sinkhorn`.
    """
    return Recipe(
        name="dinov2",
        method=Component(
            "dinov2",
            {
                "views": (
                    Global(2, area=(0.32, 1.0), color=DINO_PAIR),
                    Local(8, size=96, area=(0.05, 0.32), color=DINO_LOCAL),
                ),
                "prototypes": 65536,
                "shared_head": True,
                "centering": "center",
                "teacher_temperature": Linear(0.04, 0.07, epochs=60),
                "patch_temperature": Linear(0.04, 0.07, epochs=60),
                "momentum": Cosine(0.992, 1.0),
                "freeze_epochs": 2,
            },
        ),
        backbone=Component("vit_large_patch16_224", {**_DEEP, "init_values": 1e-5}),
        epochs=200,
        data=Data(batch_size=2048),
        optimizer=replace(_ADAMW, schedule=WarmupCosine(warmup=20, end=1.8e-4)),
        regularizers=(KOLEO,),
        adaptation=Full(layer_decay=0.9, patch_embed=0.2),
    )


def imagenet22k() -> Recipe:
    """DINOv2, ViT-L/14 with registers and SwiGLU, batch 3072, 2x224 + 8x98: the last row of its ablation.

    torchrun --nnodes 12 --nproc-per-node 8 -m manyviews pretrain imagenet22k --recipe dinov2_imagenet22k

    96 A100; 45 epochs are 625,000 steps. The paper has no registers here (Darcet et al. 2024) and reports k-NN 82.0 and
    linear 84.5. Its last phase is 10,000 steps at 518 pixels: start from this run's encoder with
    `--set backbone.pretrained=RUN --set method.views.global.size=518 --set method.views.local.size=224`. Positions are
    interpolated. Not run by us.
    """
    start = imagenet()
    vit = {"embed_dim": 1024, "depth": 24, "num_heads": 16, "img_size": 224, "reg_tokens": 4, "no_embed_class": True}
    return replace(
        start,
        method=Component("dinov2", {"bottleneck_dim": 384}),
        backbone=Component("vit_giant_patch14_dinov2", {**vit, **_DEEP, "drop_path_rate": 0.4}),
        epochs=45,
        data=Data(batch_size=3072),
        optimizer=replace(_ADAMW, lr=1e-4, weight_decay=Cosine(0.04, 0.2), schedule=WarmupCosine(warmup=7, end=5e-3)),
        adaptation=Full(patch_embed=0.2),
    )


def rescue() -> Recipe:
    """DINOv2 with rescued easy samples, ViT-L/16, 200 epochs, batch 2048: k 16, s 1 (Wang et al., figure 2).

    torchrun --nnodes 2 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe dinov2_rescue
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_grid

    The paper reports linear 83.1, 0.5 above `--set "regularizers=(KoLeo(0.1, on='features', first=2),)"`, and does not
    describe its probe. Not run by us.

    Its "100 epochs (i.e. 12500 iterations)" contradict each other. They are taken for DINOv2's own 100, of 1,250 steps
    each, with a digit lost: 200 passes over ImageNet. Weight decay is its 0.04 throughout, where DINOv2's grows from
    0.04 to 0.4. All else is DINOv2's short configuration, as the paper keeps "the same settings" where it can.
    """
    start = imagenet()
    return replace(
        start,
        optimizer=replace(start.optimizer, weight_decay=0.04),
        regularizers=(KOLEO, Rescue(scale=1.0, k=16)),
    )


def cifar10() -> Recipe:
    """DINOv2 on 32-pixel images, ViT-Ti/4 with registers, 200 epochs, batch 512, 2x32 + 4x16.

    manyviews pretrain cifar10/train --recipe dinov2_cifar10

    One GPU. Not run by us.
    """
    views = (common.small(Global(2, area=(0.32, 1.0))), common.small(Local(4, area=(0.1, 0.32)), 16))
    vit = Component(common.CIFAR_VIT.name, {**common.CIFAR_VIT.settings, "reg_tokens": 4, "init_values": 1e-5})
    start = common.cifar10("dinov2", vit, replace(_ADAMW, lr=5e-4), views=views, prototypes=4096)
    return replace(start, regularizers=(KOLEO,), adaptation=Full(patch_embed=0.2))


def tiny() -> Recipe:
    """DINOv2 on a small transformer, in seconds, for tests: `manyviews pretrain demo --recipe dinov2_tiny`."""
    views = (common.small(Global(2)), common.small(Local(2), 16))
    vit = Component(common.TINY_VIT.name, {**common.TINY_VIT.settings, "reg_tokens": 1})
    start = common.tiny(
        "dinov2",
        vit,
        views=views,
        prototypes=64,
        hidden_dim=64,
        bottleneck_dim=32,
        teacher_temperature=Linear(0.04, 0.07, epochs=1),
        momentum=Cosine(0.9, 1.0),
        freeze_epochs=0,
    )
    return replace(start, adaptation=Full(layer_decay=0.9, patch_embed=0.2))
