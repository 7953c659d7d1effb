"""SSCD's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Monitor, Optimizer, Recipe, Step
from manyviews.views import COPIED, Copied
from manyviews.views.augmentations import GaussianBlur, HorizontalFlip, ResizedCrop
from manyviews.views.tampering import Border, Lettering, Sticker

# Not a few of every batch, for a short run: each kind of edit must be met often.
_OFTEN = tuple(
    {"lettering": Lettering(p=0.2), "sticker": Sticker(p=0.2), "border": Border(p=0.3)}.get(a.name, a)
    for a in COPIED
    if not isinstance(a, GaussianBlur)
)


def imagenet() -> Recipe:
    """SSCD, ResNet-50, 100 epochs, batch 4096, 512 dimensions (Pizzi et al. 2022).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe sscd_imagenet --set test_size=288
    manyviews curate photos/ --with RUN --out list.parquet

    8 GPUs of 80 GB. The paper has mAP 86.6 on Copydays, with its own overlays. Not run by us.
    """
    return Recipe(
        name="sscd",
        method=Component("sscd"),
        backbone=common.RESNET50,
        epochs=100,
        data=Data(batch_size=4096),
        optimizer=Optimizer("lars", lr=0.3, weight_decay=1e-6, schedule=WarmupCosine(warmup=5)),
        step=Step(backward="recompute"),
    )


def cpu() -> Recipe:
    """SSCD on 64-pixel views of some thousand photographs, in minutes on two CPU cores: 128 dimensions.

    manyviews pretrain photos/ --recipe sscd_cpu --out runs/copies
    manyviews curate photos/ --with runs/copies --out list.parquet

    Not run by us.
    """
    return Recipe(
        name="sscd",
        method=Component("sscd", {"view": Copied(2, size=64, augmentations=_OFTEN), "output_dim": 128}),
        backbone=common.CPU_RESNET,
        epochs=60,
        data=Data(canvas=96, batch_size=128),
        optimizer=Optimizer("adamw", lr=2e-3, lr_scaling="sqrt", schedule=WarmupCosine(warmup=2), weight_decay=0.01),
        monitor=Monitor(epochs=15, steps=20),
        test_size=64,
    )


def tiny() -> Recipe:
    """SSCD in seconds, for tests: `manyviews pretrain demo --recipe sscd_tiny`."""
    view = Copied(2, size=32, augmentations=(ResizedCrop(), HorizontalFlip(), Sticker(p=0.3)), mix=0.3)
    return common.tiny("sscd", view=view, output_dim=16, entropy=1.0)
