"""The shortest recipes to an accuracy on CIFAR-10: the leaderboard is docs/speedrun.md."""

from dataclasses import replace

from manyviews.recipe import Recipe
from manyviews.recipes import simclr


def knn65() -> Recipe:
    """SimCLR to 65 % k-NN accuracy on CIFAR-10 in 9 minutes on two CPU cores: `simclr_cpu`, shortened.

    manyviews pretrain cifar10/train --recipe speedrun_knn65

    CIFAR-10: k-NN 65.1 with seed 0, the only one run (docs/speedrun.md).
    """
    recipe = simclr.cpu()
    return replace(recipe, epochs=6, data=replace(recipe.data, holdout=0), observe=replace(recipe.observe, epochs=0))


def knn75() -> Recipe:
    """SimCLR towards 75 % k-NN accuracy on CIFAR-10 in 75 minutes on two CPU cores: four times Muon's rate, 56 epochs.

    manyviews pretrain cifar10/train --recipe speedrun_knn75

    Not measured yet.
    """
    recipe = knn65()
    method = replace(recipe.method, settings={**recipe.method.settings, "temperature": 0.07})
    return replace(recipe, epochs=56, method=method, optimizer=replace(recipe.optimizer, lr=1.6e-2))
