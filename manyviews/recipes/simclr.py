"""SimCLR's recipes."""

from dataclasses import replace

from manyviews.recipes import _common as common
from manyviews.regularizers import Rescue
from manyviews.schedules import WarmupCosine
from manyviews.settings import CIFAR_MEAN, CIFAR_STD, Component, Data, Monitor, Optimizer, Recipe, Step
from manyviews.views import Global

# What two CPU cores learn most from in minutes: chosen on validation images (docs/log.md).
_CPU_METHOD = Component(
    "simclr",
    {"view": common.small(Global(2, area=(0.2, 1.0))), "hidden_dim": 512, "output_dim": 128, "temperature": 0.1},
)


def _muon(warmup: float) -> Optimizer:
    """5 points above AdamW after two epochs of CIFAR-10."""
    schedule = WarmupCosine(warmup=warmup)
    return Optimizer("muon", 4e-3, "sqrt", schedule, weight_decay=0.01, momentum=0.95, betas=(0.9, 0.95))


def imagenet() -> Recipe:
    """SimCLR, ResNet-50, 1000 epochs (Chen et al. 2020).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe simclr_imagenet
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn

    8 GPUs of 80 GB. Expected on ImageNet: linear 69.3 (its authors' probe; 69.1 in the paper of rescue), k-NN 60.7
    (by DINO's authors, as in MULAN's table 3). Not run by us.
    """
    return Recipe(
        name="simclr",
        method=Component("simclr", {"temperature": 0.1}),
        backbone=common.RESNET50,
        epochs=1000,
        data=Data(batch_size=4096),
        optimizer=Optimizer("lars", lr=0.3, weight_decay=1e-6, schedule=WarmupCosine(warmup=10)),
        step=Step(backward="recompute"),
    )


def v2() -> Recipe:
    """SimCLR v2's first stage: a head of three layers, ResNet-50, 800 epochs, batch 4096 (Chen et al. 2020).

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe simclr_v2 --out runs/v2
    manyviews evaluate runs/v2 --data imagenet/train --test imagenet/val --protocol linear_augmented
    manyviews adapt runs/v2 --data imagenet/train_10percent --strategy finetune --from-head-layer 1 --out models/v2
    manyviews distill models/v2 --data imagenet/train --target soft --view same --set method.temperature=1.0

    8 GPUs of 80 GB. Expected on ImageNet for a ResNet-50 without selective kernels: linear 71.7, fine-tuned on 1 % and
    10 % of the labels 57.9 and 68.4 (its table 1). Not run by us. The paper's best teacher is a ResNet-152 of three
    times the width.
    """
    return replace(
        imagenet(),
        method=Component("simclr", {"temperature": 0.1, "layers": 3}),
        epochs=800,
        optimizer=Optimizer("lars", lr=1.6, lr_scaling="sqrt", weight_decay=1e-4, schedule=WarmupCosine(warmup=40)),
    )


def rescue() -> Recipe:
    """SimCLR with rescued easy samples, ResNet-50, 1000 epochs, batch 4096 (Wang et al., figure 2): k 128, s 0.75.

    torchrun --nproc-per-node 8 -m manyviews pretrain imagenet/train --recipe simclr_rescue
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented

    Expected linear top-1 on ImageNet: 70.2, 1.1 above `--set "regularizers=()"`. Not run by us.

    The paper does not describe its probe. Its section 5 finds k 64 best, with 100 epochs; its section 4 has 128.
    """
    return replace(imagenet(), regularizers=(Rescue(scale=0.75, k=128),))


def cifar10() -> Recipe:
    """SimCLR on 32-pixel images, ResNet-18, 200 epochs, batch 512, temperature 0.5.

    manyviews pretrain cifar10/train --recipe simclr_cifar10

    One GPU. The bar is k-NN 84.8 (lightly's published 200-epoch run). Not run by us.
    """
    return common.cifar10("simclr", view=common.small(Global(2)), hidden_dim=512, temperature=0.5)


def cpu() -> Recipe:
    """SimCLR on 32-pixel images in 20 minutes on two CPU cores: a ResNet of four blocks that starts at half resolution.

    manyviews pretrain cifar10/train --recipe simclr_cpu

    CIFAR-10: k-NN 68.6 +- 0.4, linear 70.4 +- 0.1 over three seeds (docs/results.md).
    """
    return Recipe(
        name="simclr",
        method=_CPU_METHOD,
        backbone=common.CPU_RESNET,
        epochs=13,
        data=Data(canvas=32, batch_size=256, mean=CIFAR_MEAN, std=CIFAR_STD, holdout=0.02),
        optimizer=_muon(warmup=1),
        monitor=Monitor(epochs=4, steps=50),
        test_size=32,
    )


def demo() -> Recipe:
    """SimCLR on 64-pixel pictures, minutes on two CPU cores: what `manyviews demo` runs.

    manyviews pretrain demo --recipe simclr_demo
    """
    return Recipe(
        name="simclr",
        method=_CPU_METHOD,
        backbone=common.CPU_RESNET,
        epochs=60,
        data=Data(canvas=64, batch_size=128, holdout=0.1),
        optimizer=_muon(warmup=5),
        monitor=Monitor(epochs=15, steps=20),
        test_size=48,
    )


def tiny() -> Recipe:
    """SimCLR in seconds, for tests: `manyviews pretrain demo --recipe simclr_tiny`."""
    return common.tiny("simclr", view=common.small(Global(2)), hidden_dim=64, output_dim=32, temperature=0.5)
