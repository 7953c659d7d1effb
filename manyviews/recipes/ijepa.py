"""I-JEPA's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import Cosine, Linear, Stretched, WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global


def imagenet() -> Recipe:
    """I-JEPA, ViT-B/16, 600 epochs, batch 2048 (Assran et al. 2023).

    torchrun --nnodes 2 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe ijepa_imagenet
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented

    16 A100. The rate goes from 1e-4 to 1e-3 in 15 epochs, then toward 1e-6. Expected linear top-1 on ImageNet: 72.9, by
    its authors' probe. Not run by us.
    """
    return Recipe(
        name="ijepa",
        method=Component("ijepa", {"predictor_depth": 6}),
        backbone=Component("vit_base_patch16_224", {"position": "sincos", **common.POOLED}),
        epochs=600,
        data=Data(batch_size=2048),
        optimizer=Optimizer(
            "adamw",
            lr=1.25e-4,
            weight_decay=Stretched(Cosine(0.04, 0.4)),
            schedule=Stretched(WarmupCosine(warmup=15, end=1e-3, warmup_start=0.1)),
        ),
    )


def cifar10() -> Recipe:
    """I-JEPA on 32-pixel images, ViT-Ti/4, 200 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe ijepa_cifar10

    One GPU. Not run by us.
    """
    adamw = Optimizer("adamw", lr=2.5e-4, weight_decay=Cosine(0.04, 0.4), schedule=WarmupCosine(warmup=15))
    view = Global(1, size=32, area=(0.3, 1.0), color=None)
    vit = common.pooled(common.CIFAR_VIT)
    return common.cifar10("ijepa", vit, adamw, view=view, predictor_dim=96, predictor_depth=6, predictor_heads=3)


def tiny() -> Recipe:
    """I-JEPA in seconds, for tests: `manyviews pretrain demo --recipe ijepa_tiny`."""
    vit = Component(common.TINY_VIT.name, {**common.TINY_VIT.settings, "patch_size": 4})
    return common.tiny(
        "ijepa",
        common.pooled(vit),
        view=Global(1, size=32, area=(0.3, 1.0), color=None),
        predictor_dim=32,
        predictor_depth=1,
        predictor_heads=2,
        momentum=Linear(0.9, 1.0),
    )
