"""Recipes: everything that decides a run, as frozen dataclasses.

A recipe prints, compares, saves as JSON and loads again as the same object; `override` changes one setting by its
dotted path. Recipes themselves are Python functions in `manyviews.recipes`.
"""

from manyviews.settings.check import check, complete, settings
from manyviews.settings.outside import load_outside
from manyviews.settings.recipe import (
    CIFAR_MEAN,
    CIFAR_STD,
    Component,
    Data,
    Monitor,
    Optimizer,
    Recipe,
    Regularizer,
    Stage,
    Step,
    differences,
)
from manyviews.settings.saved import check_saved, from_json, to_json
from manyviews.settings.stages import Part, parts
from manyviews.settings.text import override, parse

__all__ = [
    "CIFAR_MEAN",
    "CIFAR_STD",
    "Component",
    "Data",
    "Monitor",
    "Optimizer",
    "Part",
    "Recipe",
    "Regularizer",
    "Stage",
    "Step",
    "check",
    "check_saved",
    "complete",
    "differences",
    "from_json",
    "load_outside",
    "override",
    "parse",
    "parts",
    "settings",
    "to_json",
]
