"""What several recipes share."""

from __future__ import annotations

from dataclasses import replace

from manyviews.schedules import WarmupCosine
from manyviews.settings import CIFAR_MEAN, CIFAR_STD, Component, Data, Monitor, Optimizer, Recipe
from manyviews.views import BYOL_PAIR, MULAN, Color, Crop, CutMix, Cutout, Global, Local, Rotation, Shuffle

RESNET50 = Component("resnet50")

# MULAN's view types (appendix A and F), with the crops of its runs with several tasks. The paper does not say when the
# hole is cut; its authors cut it before colors and blur.
GLOBAL = Global(2, area=(0.25, 1.0), color=BYOL_PAIR)
LOCAL = Local(2, area=(0.08, 0.25), color=MULAN)
CUTOUT = Cutout(1, area=(0.25, 1.0), color=MULAN, cut="first")
ROTATION = Rotation(1, area=(0.25, 1.0), color=MULAN)
SHUFFLE = Shuffle(1, area=(0.25, 1.0), color=MULAN)
CUTMIX = CutMix(1, area=(0.25, 1.0), color=MULAN)

MULTICROP_TASKS = (GLOBAL, replace(LOCAL, count=4))
# Its three tasks, at the cost of multi-crop: a view of 224 pixels for two of 96.
MULAN_TASKS = (GLOBAL, LOCAL, CUTOUT)

CIFAR_DATA = Data(canvas=32, batch_size=512, mean=CIFAR_MEAN, std=CIFAR_STD)
CIFAR_RESNET = Component("resnet18", {"stem": "small"})
CIFAR_VIT = Component("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4})
# The literature's settings at 32 pixels (lightly's CIFAR-10 benchmark): 0.06 for a batch of 128.
CIFAR_SGD = Optimizer("sgd", lr=0.12, weight_decay=5e-4, schedule=WarmupCosine(warmup=10))

# Four residual blocks, the first at 16x16 of a 32-pixel image: what a CPU can train in minutes.
CPU_RESNET = Component(
    "resnet18", {"stem": "half", "layers": (1, 1, 1, 1), "channels": (32, 64, 128, 256), "avg_down": True}
)

# The average of the patches in the place of a class token, which nothing would train. The final norm is theirs.
POOLED = {"class_token": False, "global_pool": "avg", "fc_norm": False}

TINY_DATA = Data(canvas=32, batch_size=32, mean=CIFAR_MEAN, std=CIFAR_STD)
TINY_RESNET = Component("resnet18", {"stem": "small", "channels": (8, 8, 16, 16)})
TINY_VIT = Component(
    "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
)

# Two maps, of 4 and 8 pixels a place, that take images of any size.
TINY_SWIN = Component(
    "swin_tiny_patch4_window7_224",
    {
        **{"img_size": 32, "strict_img_size": False, "window_size": 2, "embed_dim": 16},
        **{"depths": (1, 1), "num_heads": (2, 2), "drop_path_rate": 0.0},
    },
)

# SimCLR appendix B.9: half the color distortion and no blur on 32-pixel images.
SMALL_COLOR = Color(0.4, 0.4, 0.4, 0.1, blur=0.0)


def small(view: Crop, size: int = 32, **changes: object) -> Crop:
    """The view type for 32-pixel images: its own geometry, half-strength color, no blur."""
    return replace(view, size=size, **{"color": SMALL_COLOR, **changes})  # type: ignore[arg-type]


def pooled(vit: Component, **settings: object) -> Component:
    """The transformer without a class token, for methods that train patches alone: its features are their mean."""
    return Component(vit.name, {**vit.settings, **POOLED, **settings})


def cifar10(
    method: str, backbone: Component = CIFAR_RESNET, optimizer: Optimizer = CIFAR_SGD, **settings: object
) -> Recipe:
    """200 epochs at 32 pixels."""
    return Recipe(
        name=method,
        method=Component(method, settings),
        backbone=backbone,
        epochs=200,
        data=CIFAR_DATA,
        optimizer=optimizer,
        monitor=Monitor(epochs=10),
        test_size=32,
    )


def tiny(method: str, backbone: Component = TINY_RESNET, **settings: object) -> Recipe:
    """Two epochs of a very small network, in seconds."""
    return Recipe(
        name=method,
        method=Component(method, settings),
        backbone=backbone,
        epochs=2,
        data=TINY_DATA,
        optimizer=Optimizer(
            "adamw", lr=2e-3, lr_scaling="constant", schedule=WarmupCosine(warmup=0.5), weight_decay=0.01
        ),
        monitor=Monitor(epochs=1, steps=5),
        test_size=32,
    )
