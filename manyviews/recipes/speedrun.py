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
