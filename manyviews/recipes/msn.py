"""MSN's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import Cosine, WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global, Local, Random

ADAMW = Optimizer(
    "adamw",
    lr=2.5e-4,
    weight_decay=Cosine(0.04, 0.4),
    clip=3.0,
    schedule=WarmupCosine(warmup=15, end=1e-3, warmup_start=0.2),
)


def imagenet() -> Recipe:
    """MSN, ViT-S/16, 600 epochs, batch 1024, a masked and ten small anchors (Assran et al. 2022).

    torchrun --nnodes 2 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe msn_imagenet

    16 GPUs. Expected linear top-1 on ImageNet: 76.9. Not run by us.
    """
    return Recipe(
        name="msn",
        method=Component("msn"),
        backbone=Component("vit_small_patch16_224"),
        epochs=600,
        data=Data(batch_size=1024),
        optimizer=ADAMW,
    )


def imagenet_vit_b() -> Recipe:
    """MSN, ViT-B/16, 600 epochs, batch 1024, 30 % of the masked anchor dropped (Assran et al. 2022).

    torchrun --nnodes 2 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe msn_imagenet_vit_b

    16 GPUs. Made for few labels. Not run by us.
    """
    return Recipe(
        name="msn",
        method=Component("msn", {"masking": Random(0.3)}),
        backbone=Component("vit_base_patch16_224"),
        epochs=600,
        data=Data(batch_size=1024),
        optimizer=ADAMW,
    )


def cifar10() -> Recipe:
    """MSN on 32-pixel images, ViT-Ti/4, 200 epochs, batch 512, a masked and four 16-pixel anchors.

    manyviews pretrain cifar10/train --recipe msn_cifar10

    One GPU. Not run by us.
    """
    adamw = Optimizer("adamw", lr=5e-4, weight_decay=Cosine(0.04, 0.4), clip=3.0)
    views = (common.small(Global(2, area=(0.3, 1.0))), common.small(Local(4, area=(0.05, 0.3)), 16))
    return common.cifar10("msn", common.CIFAR_VIT, adamw, views=views, hidden_dim=512, prototypes=512)


def tiny() -> Recipe:
    """MSN on a small transformer, in seconds, for tests: `manyviews pretrain demo --recipe msn_tiny`."""
    views = (common.small(Global(2)), common.small(Local(2), 16))
    return common.tiny(
        "msn",
        common.TINY_VIT,
        views=views,
        masking=Random(0.25),
        hidden_dim=64,
        output_dim=32,
        prototypes=64,
        momentum=Cosine(0.9, 1.0),
    )
