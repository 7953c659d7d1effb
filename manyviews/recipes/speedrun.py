"""The shortest recipes to an accuracy on CIFAR-10: the leaderboard is docs/speedrun.md."""

from dataclasses import replace

from manyviews.recipes import simclr
from manyviews.settings import Recipe


def knn65() -> Recipe:
    """SimCLR to 65 % k-NN accuracy on CIFAR-10 in 6 minutes on two CPU cores: `simclr_cpu`, shortened, at a high rate.

    manyviews pretrain cifar10/train --recipe speedrun_knn65

    CIFAR-10: k-NN 65.0 +- 0.2 over three seeds (docs/speedrun.md).
    """
    recipe = simclr.cpu()
    return replace(
        recipe,
        method=replace(recipe.method, settings={**recipe.method.settings, "temperature": 0.07}),
        epochs=4.5,
        data=replace(recipe.data, holdout=0),
        optimizer=replace(recipe.optimizer, lr=1.6e-2),
        monitor=replace(recipe.monitor, epochs=0),
    )


def knn75() -> Recipe:
    """SimCLR to 75 % k-NN accuracy on CIFAR-10 in two to three hours on two CPU cores: `speedrun_knn65`, longer.

    manyviews pretrain cifar10/train --recipe speedrun_knn75

    CIFAR-10: k-NN 75.7 with seed 0, the only one run (docs/speedrun.md).
    """
    # At 48 pixels objects are as large as in the crops of training (Touvron et al. 2019).
    return replace(knn65(), epochs=80, test_size=48)
