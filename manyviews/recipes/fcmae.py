"""FCMAE's recipes."""

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Global

# Places of 8 pixels in the last map: 4 x 4 of them in 32 pixels.
_SMALL = {"patch_size": 1, "kernel_sizes": 3}


def imagenet() -> Recipe:
    """FCMAE, ConvNeXt V2-B, 800 epochs, batch 4096, 60 % masked (Woo et al. 2023).

    torchrun --nnodes 8 --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe fcmae_imagenet

    Expected on ImageNet: 84.6 fine-tuned. Not run by us.
    """
    return Recipe(
        name="fcmae",
        method=Component("fcmae"),
        backbone=Component("convnextv2_base"),
        epochs=800,
        data=Data(batch_size=4096),
        optimizer=Optimizer("adamw", lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, schedule=WarmupCosine(warmup=40)),
    )


def cifar10() -> Recipe:
    """FCMAE on 32-pixel images, a ConvNeXt V2 with maps of 1 to 8 pixels a place, 200 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe fcmae_cifar10

    One GPU. Not run by us.
    """
    adamw = Optimizer("adamw", lr=3e-4, betas=(0.9, 0.95), weight_decay=0.05, schedule=WarmupCosine(warmup=20))
    view = Global(1, size=32, area=(0.2, 1.0), color=None)
    net = Component("convnextv2_atto", {**_SMALL, "depths": (2, 2, 4, 2)})
    return common.cifar10("fcmae", net, adamw, view=view, decoder_dim=256)


def tiny() -> Recipe:
    """FCMAE in seconds, for tests: `manyviews pretrain demo --recipe fcmae_tiny`."""
    net = Component("convnextv2_atto", {**_SMALL, "depths": (1, 1, 1, 1), "dims": (8, 8, 16, 32)})
    return common.tiny("fcmae", net, view=Global(1, size=32, color=None), decoder_dim=32)
