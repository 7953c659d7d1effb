"""BEiT's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global


def imagenet() -> Recipe:
    """BEiT, ViT-B/16, 800 epochs, batch 2048, 40 % masked in blocks (Bao et al. 2022).

    torchrun --nnodes 2 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe beit_imagenet \\
        --set method.tokenizer=runs/tokenizer

    16 V100, five days. Expected on ImageNet with the authors' tokenizer: 83.2 fine-tuned. Not run by us.
    """
    vit = Component("vit_base_patch16_224", {**common.POOLED, "drop_path_rate": 0.1, "init_values": 0.1})
    return Recipe(
        name="beit",
        method=Component("beit"),
        backbone=vit,
        epochs=800,
        data=Data(batch_size=2048),
        optimizer=Optimizer("adamw", lr=1.875e-4, weight_decay=0.05, schedule=WarmupCosine(warmup=10), clip=3.0),
    )


def cifar10() -> Recipe:
    """BEiT on 32-pixel images, ViT-Ti/4, 200 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe beit_cifar10 --set method.tokenizer=runs/tokenizer

    One GPU. Not run by us.
    """
    adamw = Optimizer("adamw", lr=5e-4, weight_decay=0.05, schedule=WarmupCosine(warmup=20), clip=3.0)
    view = Global(1, size=32, area=(0.3, 1.0), color=None)
    return common.cifar10("beit", common.pooled(common.CIFAR_VIT), adamw, view=view, codes=512)


def tiny() -> Recipe:
    """BEiT with a random tokenizer, in seconds, for tests: `manyviews pretrain demo --recipe beit_tiny`."""
    return common.tiny("beit", common.pooled(common.TINY_VIT), view=Global(1, size=32, color=None), codes=32)
