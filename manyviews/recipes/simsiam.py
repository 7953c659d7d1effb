"""SimSiam's recipes."""

from dataclasses import replace

from manyviews.recipes import _common as common
from manyviews.schedules import WarmupCosine
from manyviews.settings import Component, Data, Optimizer, Recipe
from manyviews.views import Cutout, Global, Local, View


def imagenet() -> Recipe:
    """SimSiam, ResNet-50, 200 epochs, batch 512: the two-view baseline of MULAN's appendix A.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe simsiam_imagenet
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    4 A100. Expected on ImageNet: linear 69.9, k-NN 60.2. Not run by us.
    """
    return Recipe(
        name="simsiam",
        method=Component("simsiam"),
        backbone=common.RESNET50,
        epochs=200,
        data=Data(batch_size=512),
        optimizer=Optimizer(
            "sgd", lr=0.05, weight_decay=1e-4, schedule=WarmupCosine(warmup=0, per_epoch=True), decay_all=True
        ),
    )


def imagenet800() -> Recipe:
    """SimSiam, ResNet-50, 800 epochs (Chen and He 2021; MULAN, table 2, in gray).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe simsiam_imagenet800
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented

    Expected linear top-1 on ImageNet: 71.3, by its authors' probe (LARS, batch 4096). Not run by us.
    """
    return replace(imagenet(), epochs=800)


def multicrop() -> Recipe:
    """SimSiam with two global and four local views, a predictor for each type (MULAN, tables 1 and 2).

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe simsiam_multicrop
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    4 A100. Expected on ImageNet: linear 73.9, k-NN 65.3. Not run by us.

    Each of the two tasks weighs a half, so that the loss has the baseline's scale. With SGD and weight decay the scale
    is a learning rate, and the paper compares under one. Neither the paper nor its authors name weights here.
    """
    return _tasks(common.MULTICROP_TASKS)


def mulan() -> Recipe:
    """SimSiam with MULAN's three tasks, each with a predictor of its own; ResNet-50, 200 epochs.

    torchrun --nproc-per-node 4 -m manyviews pretrain imagenet/train --recipe simsiam_mulan
    manyviews evaluate RUN --data imagenet/train --test imagenet/val --protocol linear_augmented,knn_majority

    4 A100. Expected on ImageNet: linear 74.7, k-NN 66.5. Not run by us.

    Each of the three tasks weighs a third, as with the authors; the paper has no weights.
    """
    return _tasks(common.MULAN_TASKS)


def _tasks(tasks: tuple[View, ...]) -> Recipe:
    """Several tasks of equal weight, with a loss of the baseline's scale."""
    return replace(imagenet(), method=Component("simsiam", {"tasks": tasks, "weights": 1 / len(tasks)}))


def cifar10() -> Recipe:
    """SimSiam on 32-pixel images, ResNet-18, 200 epochs, batch 512 (the paper's appendix D: base rate 0.03).

    manyviews pretrain cifar10/train --recipe simsiam_cifar10

    One GPU. The paper has a linear 91.8 after 800 epochs. Not run by us.
    """
    sgd = Optimizer("sgd", lr=0.03, weight_decay=5e-4, schedule=WarmupCosine(warmup=0))
    tasks = (common.small(Global(2, area=(0.2, 1.0))),)
    return common.cifar10("simsiam", optimizer=sgd, tasks=tasks, output_dim=2048)


def tiny() -> Recipe:
    """SimSiam with all three kinds of view, in seconds, for tests: `manyviews pretrain demo --recipe simsiam_tiny`."""
    return common.tiny(
        "simsiam",
        tasks=(common.small(Global(2)), common.small(Local(1), 16), common.small(Cutout(1))),
        hidden_dim=64,
        output_dim=64,
        bottleneck_dim=32,
    )
