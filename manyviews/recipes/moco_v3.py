"""MoCo v3's recipes."""

from dataclasses import replace

from manyviews.recipes import _common as common
from manyviews.regularizers import Rescue
from manyviews.schedules import Cosine, WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import BYOL_PAIR, Global, Local


def imagenet() -> Recipe:
    """MoCo v3, ResNet-50, 200 epochs, batch 1024: the two-view baseline of MULAN's appendix A.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe moco_v3_imagenet
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    4 A100. Expected on ImageNet: linear 71.4, k-NN 64.5. Not run by us.
    """
    return Recipe(
        name="moco_v3",
        method=Component("moco_v3", {"weights": 2.0}),
        backbone=common.RESNET50,
        epochs=200,
        data=Data(batch_size=1024),
        optimizer=Optimizer("lars", lr=0.4, weight_decay=1.5e-6, schedule=WarmupCosine(warmup=10)),
    )


def imagenet1000() -> Recipe:
    """MoCo v3, ResNet-50, 1000 epochs, batch 4096 (Chen et al. 2021; MULAN, table 2, in gray).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe moco_v3_imagenet1000
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    Expected on ImageNet: linear 74.6 (its authors' probe, not this one), k-NN 68.9. Not run by us.
    """
    longer = replace(imagenet(), epochs=1000, data=Data(batch_size=4096))
    return replace(longer, optimizer=replace(longer.optimizer, lr=0.3))


def multicrop() -> Recipe:
    """MoCo v3 with two global and four local views, a predictor for each type (MULAN, tables 1 and 2).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe moco_v3_multicrop
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    4 A100. Expected on ImageNet: linear 75.2, k-NN 68.7. Not run by us.
    """
    return replace(imagenet(), method=Component("moco_v3", {"tasks": common.MULTICROP_TASKS, "weights": 1.0}))


def mulan() -> Recipe:
    """MoCo v3 with MULAN's three tasks, each with a predictor of its own; ResNet-50, 200 epochs.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe moco_v3_mulan
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    4 A100. Expected on ImageNet: linear 75.7, k-NN 69.2. Not run by us.
    """
    return replace(imagenet(), method=Component("moco_v3", {"tasks": common.MULAN_TASKS, "weights": 1.0}))


def vit_s() -> Recipe:
    """MoCo v3, ViT-S/16, 300 epochs, batch 4096 (Chen et al. 2021): a frozen patch projection, temperature 0.2.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe moco_v3_vit_s
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented

    Expected linear top-1 on ImageNet: 73.2, by its authors' probe; MULAN's table 3 has 73.4. Not run by us.
    """
    return _vit("vit_small_patch16_224", num_heads=12)  # theirs has twice timm's


def vit_b() -> Recipe:
    """MoCo v3, ViT-B/16, 300 epochs, batch 4096 (Chen et al. 2021).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe moco_v3_vit_b
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented

    Expected linear top-1 on ImageNet: 76.7, by its authors' probe. Not run by us.
    """
    return _vit("vit_base_patch16_224")


def rescue() -> Recipe:
    """MoCo v3 with rescued easy samples, ResNet-50, 800 epochs, batch 4096 (Wang et al., figure 2): k 64, s 0.05.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe moco_v3_rescue
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented

    Expected linear top-1 on ImageNet: 74.4, 0.6 above `--set "regularizers=()"`. Not run by us.

    The paper does not describe its probe.
    """
    longer = replace(imagenet(), epochs=800, data=Data(batch_size=4096), regularizers=(Rescue(scale=0.05, k=64),))
    return replace(longer, optimizer=replace(longer.optimizer, lr=0.3, weight_decay=1e-6))


def rescue_vit_s() -> Recipe:
    """MoCo v3 with rescued easy samples, ViT-S/16, 300 epochs (Wang et al., figure 5): k 64, s 0.025.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe moco_v3_rescue_vit_s
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented

    Above the baseline in the paper's figure. Not run by us.

    Section 5 finds 0.025 best for the ViT-S; the settings of section 4 have 0.05 for all. The sensitivity runs have 300
    epochs in section 4, and 100 in figure 5.
    """
    return replace(vit_s(), regularizers=(Rescue(scale=0.025, k=64),))


def rescue_vit_b() -> Recipe:
    """MoCo v3 with rescued easy samples, ViT-B/16, 300 epochs (Wang et al., section 5): k 64, s 0.05.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe moco_v3_rescue_vit_b
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented

    The paper has no ImageNet number of it in words; its tables 1 and 2 are transfers of this network. Not run by us.
    """
    return replace(vit_b(), regularizers=(Rescue(scale=0.05, k=64),))


def _vit(name: str, **settings_of_backbone: int) -> Recipe:
    # The authors' commands raise the crops' least area to 20 % for ResNets only.
    tasks = (Global(2, area=(0.08, 1.0), color=BYOL_PAIR),)
    settings = {
        "tasks": tasks,
        "weights": 2.0,
        "projector_layers": 3,
        "temperature": 0.2,
        "freeze_patch_embed": True,
    }
    return Recipe(
        name="moco_v3",
        method=Component("moco_v3", {**settings, "momentum": Cosine(0.99, 1.0)}),
        backbone=Component(name, {"position": "sincos", **settings_of_backbone}),
        epochs=300,
        data=Data(batch_size=4096),
        # The authors' AdamW decays biases and norms as well.
        optimizer=Optimizer("adamw", lr=1.5e-4, weight_decay=0.1, schedule=WarmupCosine(warmup=40), decay_all=True),
    )


def cifar10() -> Recipe:
    """MoCo v3 on 32-pixel images, ResNet-18, 200 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe moco_v3_cifar10

    One GPU. Not run by us.
    """
    return common.cifar10(
        "moco_v3",
        tasks=(common.small(Global(2, area=(0.2, 1.0))),),
        weights=2.0,
        hidden_dim=1024,
        temperature=0.2,
        momentum=Cosine(0.99, 1.0),
    )


def tiny() -> Recipe:
    """MoCo v3 on a small transformer, in seconds, for tests: `manyviews pretrain demo --recipe moco_v3_tiny`."""
    return common.tiny(
        "moco_v3",
        common.TINY_VIT,
        tasks=(common.small(Global(2)), common.small(Local(1), 16)),
        hidden_dim=64,
        output_dim=32,
        projector_layers=3,
        temperature=0.2,
        momentum=Cosine(0.9, 1.0),
        freeze_patch_embed=True,
    )
