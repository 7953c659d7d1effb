"""Recipes for photographs of one's own: what `--recipe auto` chooses from."""

from dataclasses import replace

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Monitor, Optimizer, Recipe
from manyviews.views import MOCO_V2, SIMCLR, Global

# A ResNet of four blocks that timm can build. Its stem of three narrow convolutions costs little: maps are a quarter of
# the image from there on, so a step at 64 pixels takes as long as one at 32 with a stem of half resolution.
_RESNET = Component(
    "resnet18",
    {
        "layers": (1, 1, 1, 1),
        "channels": (32, 64, 128, 256),
        "stem_type": "deep_tiered",
        "stem_width": 16,
        "avg_down": True,
    },
)

# Strong colors give clothes 4 points. No blur: at such sizes it takes 6 from dogs, whose fur tells the breed.
_COLOR = replace(SIMCLR, blur=0.0)


def _cpu(size: int, epochs: float) -> Recipe:
    view = Global(2, size=size, area=(0.3, 1.0), color=_COLOR)
    return Recipe(
        name="simclr",
        method=Component("simclr", {"view": view, "hidden_dim": 512, "output_dim": 128, "temperature": 0.07}),
        backbone=_RESNET,
        epochs=epochs,
        data=Data(batch_size=128),
        optimizer=Optimizer(
            "muon", 1.6e-2, "sqrt", WarmupCosine(warmup=5), weight_decay=0.01, momentum=0.95, betas=(0.9, 0.95)
        ),
        monitor=Monitor(epochs=20, steps=10),
        test_size=size,
    )


def cpu_small() -> Recipe:
    """Some hundred to some thousand photographs on a processor, in minutes: SimCLR on 48-pixel views.

    manyviews pretrain photos/ --recipe photos_cpu_small --budget 30m

    What to expect: docs/photos.md.
    """
    return _cpu(48, 100)


def cpu_medium() -> Recipe:
    """Some thousand photographs on a processor, in an hour or more: SimCLR on 64-pixel views.

    manyviews pretrain photos/ --recipe photos_cpu_medium --budget 2h

    What to expect: docs/photos.md.
    """
    return _cpu(64, 200)


def _gpu(size: int, test_size: int, epochs: float, backbone: Component) -> Recipe:
    view = Global(2, size=size, area=(0.2, 1.0), color=MOCO_V2)
    return Recipe(
        name="simclr",
        method=Component("simclr", {"view": view, "temperature": 0.1}),
        backbone=backbone,
        epochs=epochs,
        data=Data(batch_size=256),
        optimizer=Optimizer("adamw", lr=1e-3, weight_decay=0.01),
        monitor=Monitor(epochs=10),
        test_size=test_size,
    )


def gpu_thumbnails() -> Recipe:
    """Images of about 32 pixels on a GPU: SimCLR, ResNet-18 at full resolution.

    manyviews pretrain cifar10/train --recipe photos_gpu_thumbnails

    Not run by us.
    """
    recipe = common.cifar10("simclr", view=common.small(Global(2)), hidden_dim=512, temperature=0.2)
    return replace(recipe, data=Data(canvas=32, batch_size=512))


def gpu_small() -> Recipe:
    """Some thousand photographs on a GPU: SimCLR, ResNet-18, 128-pixel views, 400 epochs.

    manyviews pretrain photos/ --recipe photos_gpu_small

    Not run by us.
    """
    return _gpu(128, 160, 400, Component("resnet18"))


def gpu_medium() -> Recipe:
    """Tens of thousands of photographs on a GPU: SimCLR, ResNet-50, 224-pixel views, 200 epochs.

    manyviews pretrain photos/ --recipe photos_gpu_medium

    Not run by us.
    """
    return _gpu(224, 224, 200, common.RESNET50)
