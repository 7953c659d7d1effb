"""Recipes: one file per method, one function per size; `byol_cifar10` is the function `cifar10` in `byol.py`.

A recipe's docstring gives its command, hardware, time and expected result. Recipes from outside the package are found
as well: see `manyviews.settings.outside`. A function in such a file is a recipe if it is annotated to return one.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from functools import cache

from manyviews import methods
from manyviews.backbones import Encoder
from manyviews.errors import UserError, unknown
from manyviews.settings import Recipe, complete
from manyviews.settings.outside import advice, claim, load_outside, not_a

Make = Callable[[], Recipe]


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


def _find(name: str) -> Make:
    if name not in _functions():
        raise UserError(f"{unknown('recipe', name, names())} {advice('a recipe')}")
    return _functions()[name]


def _functions() -> dict[str, Make]:
    return _own() | _outside()


@cache
def _own() -> dict[str, Make]:
    found: dict[str, Make] = {}
    for file in pkgutil.iter_modules(__path__):
        if not file.name.startswith("_"):
            module = importlib.import_module(f"{__name__}.{file.name}")
            for size, function in inspect.getmembers(module, inspect.isfunction):
                if function.__module__ == module.__name__ and not size.startswith("_"):
                    found[f"{file.name}_{size}"] = function
    return found


def _outside() -> dict[str, Make]:
    found: dict[str, Make] = {}
    for offer in load_outside("manyviews.recipes"):
        if offer.file is None and not callable(offer.value):
            raise not_a("recipe", offer)
        if offer.file is None or _makes_recipe(offer.value):
            name = offer.name if offer.file is None else f"{offer.file}_{offer.name}"
            claim(found, name, offer, "recipe", _own())
    return found


def _makes_recipe(x: object) -> bool:
    if not inspect.isfunction(x) or inspect.signature(x).parameters:
        return False
    try:
        return typing.get_type_hints(x).get("return") is Recipe
    except NameError:  # of annotations that are never evaluated
        return x.__annotations__.get("return") == "Recipe"
