"""Recipes: one file per method, one function per size; `byol_cifar10` is the function `cifar10` in `byol.py`.

A recipe's docstring says its command, its hardware and time, and what to expect.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from types import ModuleType

from manyviews import methods
from manyviews.backbones import Encoder
from manyviews.errors import unknown
from manyviews.settings import Recipe, complete


@cache
def _functions() -> dict[str, Callable[[], Recipe]]:
    def own(module: ModuleType) -> list[tuple[str, Callable[[], Recipe]]]:
        public = inspect.getmembers(module, inspect.isfunction)
        return [(k, f) for k, f in public if f.__module__ == module.__name__ and not k.startswith("_")]

    found = {}
    for file in pkgutil.iter_modules(__path__):
        if not file.name.startswith("_"):
            for size, function in own(importlib.import_module(f"{__name__}.{file.name}")):
                found[f"{file.name}_{size}"] = function
    return found


def names() -> list[str]:
    """The names of all recipes."""
    return sorted(_functions())


def describe(name: str) -> str:
    """The recipe's docstring."""
    return inspect.cleandoc(_find(name).__doc__ or "")


def get(name: str) -> Recipe:
    """The recipe of that name, with every setting written out. Raises UserError with the nearest name."""
    return resolve(dataclasses.replace(_find(name)(), name=name))


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with the defaults of its method and backbone written out, and their settings checked."""
    return dataclasses.replace(
        recipe,
        method=complete(recipe.method, methods.get(recipe.method.name)),
        backbone=complete(recipe.backbone, Encoder, open_ended=True),
    )


def _find(name: str) -> Callable[[], Recipe]:
    if name not in _functions():
        raise unknown("recipe", name, names())
    return _functions()[name]
