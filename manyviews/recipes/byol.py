"""BYOL's recipes."""

from dataclasses import replace

from manyviews.recipes import _common as common
from manyviews.schedules import Cosine, WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import BYOL_PAIR, MULAN, Cutout, Global, Local, View

_ANY = (0.01, 100.0)  # of a crop's width / height: the whole image, whatever its shape


def imagenet() -> Recipe:
    """BYOL, ResNet-50, 200 epochs, batch 1024: the two-view baseline of MULAN's appendix A.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_imagenet
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    4 A100, 44 hours in the paper. Expected on ImageNet: linear 70.7, k-NN 63.1. Not run by us.
    """
    return Recipe(
        name="byol",
        method=Component("byol", {"weights": 2.0}),
        backbone=common.RESNET50,
        epochs=200,
        data=Data(batch_size=1024),
        optimizer=Optimizer("lars", lr=0.4, weight_decay=1.5e-6, schedule=WarmupCosine(warmup=10)),
    )


def imagenet1000() -> Recipe:
    """BYOL, ResNet-50, 1000 epochs, batch 4096 (Grill et al. 2020; MULAN, table 2, in gray).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_imagenet1000
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    Expected on ImageNet: linear 74.3 (its authors' probe, not this one), k-NN 68.0. Not run by us.
    """
    longer = replace(imagenet(), epochs=1000, data=Data(batch_size=4096))
    return replace(longer, optimizer=replace(longer.optimizer, lr=0.2))


def multicrop() -> Recipe:
    """BYOL with two global and four local views, a predictor for each type (MULAN, tables 1, 2, 5 and 10).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_multicrop
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    4 A100, 66 hours in the paper. Expected on ImageNet: linear 74.7, k-NN 69.5. Not run by us.
    """
    return _tasks(*common.MULTICROP_TASKS)


def naive_multicrop() -> Recipe:
    """BYOL with two global and four local views and one predictor for all: what MULAN finds unstable.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_naive_multicrop

    No number in the paper for a ResNet-50; DINO reports a drop from 71.4 to 64.8 with a ViT-S. Not run by us.
    """
    multicrop = _tasks(*common.MULTICROP_TASKS)
    return replace(multicrop, method=Component("byol", {**multicrop.method.settings, "predictor": "shared"}))


def mulan() -> Recipe:
    """BYOL with MULAN's three tasks, each with a predictor of its own; ResNet-50, 200 epochs (tables 2, 5, 9 and 10).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_mulan
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    4 A100, 72 hours in the paper. Expected on ImageNet: linear 75.6, k-NN 69.9. Not run by us.
    """
    return _tasks(*common.MULAN_TASKS)


def global4() -> Recipe:
    """BYOL with four global views (MULAN, table 5): two that are targets, and two more with a predictor of their own.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_global4
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    Expected on ImageNet: linear 71.7, k-NN 64.3. Not run by us.

    The table says "4 global" and no more, which may also be four targets of one type. As with its authors, two views
    are targets, the other two a type of their own, blurred half of the time and never solarized, and all crops are of
    25 to 100 %.
    """
    return _tasks(common.GLOBAL, Global(2, name="more", area=(0.25, 1.0), color=MULAN))


def cutout() -> Recipe:
    """BYOL with two global and two cutout views (MULAN, table 5).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_cutout
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    Expected on ImageNet: linear 73.7, k-NN 68.6. Not run by us.
    """
    return _tasks(common.GLOBAL, replace(common.CUTOUT, count=2))


def no_crop() -> Recipe:
    """BYOL without random crops: the whole image, squashed to a square as by the authors (MULAN, table 6).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_no_crop
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented

    Expected linear top-1 on ImageNet: 33.8. Not run by us.
    """
    return _alone(Global(2, area=(1.0, 1.0), ratio=_ANY, color=BYOL_PAIR))


def crop_only() -> Recipe:
    """BYOL with random crops and no other augmentation (MULAN, table 6).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_crop_only
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented

    Expected linear top-1 on ImageNet: 55.3. Not run by us.
    """
    return _alone(Global(2, color=None, flip=0.0))


def cutout_only() -> Recipe:
    """BYOL with asymmetric cutout alone: the image with a hole predicts the image (MULAN, table 6, section 4.2).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_cutout_only
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented

    Expected linear top-1 on ImageNet: 46.8, after 100 epochs. Not run by us.

    The paper does not count its views; as with its authors, one with a hole, of twice the weight.
    """
    whole = Global(1, area=(1.0, 1.0), ratio=_ANY, color=None, flip=0.0)
    holes = Cutout(1, area=(1.0, 1.0), ratio=_ANY, color=None, flip=0.0)
    return replace(_alone(whole, holes), epochs=100)


def cutout_symmetric() -> Recipe:
    """BYOL with cutout alone, of both views, which collapses (MULAN, section 4.2).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_cutout_symmetric
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented

    Expected linear top-1 on ImageNet: 3.4, after 100 epochs. Not run by us.
    """
    holes = Cutout(2, area=(1.0, 1.0), ratio=_ANY, color=None, flip=0.0, symmetric=True)
    return replace(_alone(holes), epochs=100)


def rotation() -> Recipe:
    """BYOL with local and rotated views (MULAN, table 10).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_rotation
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    Expected on ImageNet: linear 75.1, k-NN 68.9. Not run by us.

    The paper names no angles and counts no views: any angle, and the counts of its cutout run.
    """
    return _tasks(common.GLOBAL, common.LOCAL, common.ROTATION)


def shuffle() -> Recipe:
    """BYOL with local and patch-shuffled views (MULAN, table 10).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_shuffle
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    Expected on ImageNet: linear 75.1, k-NN 69.7. Not run by us.
    """
    return _tasks(common.GLOBAL, common.LOCAL, common.SHUFFLE)


def shuffle_cutout() -> Recipe:
    """BYOL with local, patch-shuffled and cutout views (MULAN, table 10).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_shuffle_cutout
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    Expected on ImageNet: linear 75.7, k-NN 70.0. Not run by us.
    """
    return _tasks(common.GLOBAL, common.LOCAL, common.SHUFFLE, common.CUTOUT)


def cutmix() -> Recipe:
    """BYOL with local and CutMix-like views and their blended targets (MULAN, appendix F).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_cutmix

    The paper says that it degrades, without a number. Not run by us.
    """
    return _tasks(common.GLOBAL, common.LOCAL, common.CUTMIX)


def conditioned() -> Recipe:
    """BYOL with rotated and shuffled views whose predictors are told what was done: MULAN's named next step.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_conditioned

    Not run by us, nor by MULAN. Its section 6 names predictors that are told a cutout's coordinates or a crop's scale,
    and the end of its appendix F ones that are told a rotation's angle; it calls them another architecture.
    """
    told = _tasks(common.GLOBAL, common.LOCAL, common.CUTOUT, common.ROTATION, common.SHUFFLE)
    return replace(told, method=Component("byol", {**told.method.settings, "predictor": "conditioned"}))


def mulan800() -> Recipe:
    """MULAN, ResNet-50, 800 epochs (table 3).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_mulan800
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    Expected on ImageNet: linear 76.7, k-NN 70.9. Not run by us.

    The authors' published run had four local views; they recommend the two of this recipe, having seen no gain.
    """
    return replace(mulan(), epochs=800)


def mulan_vit_s() -> Recipe:
    """MULAN, ViT-S/16, 200 epochs (table 3, appendix E).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_mulan_vit_s
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented --features last4
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol knn_majority

    Expected on ImageNet: linear 74.5, k-NN 70.2. Not run by us.

    Six heads and learned positions, which the paper leaves open; MoCo v3's ViT-S, whose recipe it "mostly" follows, has
    twelve and fixed ones. The paper names the probe's features and not those of k-NN: here the class token.
    """
    return _vit("vit_small_patch16_224")


def mulan_vit_b() -> Recipe:
    """MULAN, ViT-B/16, 200 epochs (table 3, appendix E).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe byol_mulan_vit_b
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented --features cls_mean
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol knn_majority

    Expected on ImageNet: linear 78.3, k-NN 74.2. Not run by us.
    """
    return _vit("vit_base_patch16_224")


def _alone(*tasks: View) -> Recipe:
    """The two-view baseline's settings with other views; its loss is the sum over both directions."""
    return replace(imagenet(), method=Component("byol", {"tasks": tasks, "weights": 2.0}))


def _tasks(*tasks: View) -> Recipe:
    """Several tasks of equal weight, with the baseline's optimizer (MULAN, appendix A)."""
    return replace(imagenet(), method=Component("byol", {"tasks": tasks, "weights": 1.0}))


def _vit(name: str) -> Recipe:
    """MULAN on a vision transformer: MoCo v3's heads and warm-up, a trained patch projection, tamed AdamW.

    The paper's words, "mostly follow the MoCo v3 recipe and head design"; its authors' commands have neither the heads'
    last norms nor the long warm-up.
    """
    heads = {"projector_layers": 3, "output_norm": True, "momentum": Cosine(0.998, 1.0), "kept": "target"}
    return Recipe(
        name="byol",
        method=Component("byol", {"tasks": common.MULAN_TASKS, "weights": 1.0, **heads}),
        backbone=Component(name, {"drop_path_rate": 0.1}),
        epochs=200,
        data=Data(batch_size=1024),
        optimizer=Optimizer(
            "adamw", lr=3e-4, weight_decay=0.1, betas=(0.9, 0.98), clip=0.5, schedule=WarmupCosine(warmup=40)
        ),
    )


def cifar10() -> Recipe:
    """BYOL on 32-pixel images, ResNet-18, 200 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe byol_cifar10

    One GPU. The bar is k-NN 86.9 (lightly's published 200-epoch run). Not run by us.
    """
    return common.cifar10(
        "byol",
        tasks=(common.small(Global(2, area=(0.2, 1.0))),),
        weights=2.0,
        hidden_dim=1024,
        momentum=Cosine(0.99, 1.0),
    )


def tiny() -> Recipe:
    """BYOL with all three kinds of view, in seconds, for tests: `manyviews pretrain demo --recipe byol_tiny`."""
    return common.tiny(
        "byol",
        tasks=(common.small(Global(2)), common.small(Local(2), 16), common.small(Cutout(1))),
        hidden_dim=64,
        output_dim=32,
        momentum=Cosine(0.9, 1.0),
    )
