"""PMSN's recipes: MSN with a power law as the prior of its prototypes."""

from dataclasses import replace

from manyviews.recipes import msn
from manyviews.settings import Component, Recipe, override


def inat18() -> Recipe:
    """PMSN, ViT-S/16, for sets of classes of unequal size, such as iNaturalist 2018 (Assran et al. 2023).

    torchrun --nnodes 2 --nproc-per-node 8 -m manyviews pretrain inat18/train --recipe pmsn_inat18

    16 GPUs. Expected: above MSN where classes are unbalanced, below it on ImageNet. Not run by us.
    """
    prior = Component("msn", {"iterations": 0, "exponent": 0.25})
    return replace(msn.imagenet(), name="pmsn", method=prior, epochs=300)


def cifar10() -> Recipe:
    """PMSN on 32-pixel images of unbalanced classes, ViT-Ti/4, 200 epochs, batch 512.

    manyviews pretrain cifar10/train --recipe pmsn_cifar10

    One GPU. Not run by us.
    """
    return replace(override(override(msn.cifar10(), "method.iterations", 0), "method.exponent", 0.25), name="pmsn")
