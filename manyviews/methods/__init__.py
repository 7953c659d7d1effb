"""One file per method, and the folder is the registry: a new file here is listed, run and tested.

Methods from outside the package are found as well: see `manyviews.settings.outside`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from typing import TypeGuard

from manyviews.errors import UserError, unknown
from manyviews.methods.method import Branch, Method, See, TokenBranch, depth, exactly, mean_of, paired, sum_of, visible
from manyviews.settings.outside import advice, claim, load_outside, not_a
from manyviews.views import Terms

__all__ = [
    "Branch",
    "Method",
    "See",
    "Terms",
    "TokenBranch",
    "depth",
    "describe",
    "exactly",
    "get",
    "mean_of",
    "names",
    "paired",
    "sum_of",
    "visible",
]


def names() -> list[str]:
    """The methods' names, which are their files' names; an entry point has a name of its own."""
    return sorted({*_own(), *_outside()})


def get(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        UserError: no method has this name (the message gives the nearest one), or a file from outside is broken.
    """
    if name in _own():
        return _defined_in(name)
    if name not in _outside():
        raise UserError(f"{unknown('method', name, names())} {advice('a method')}")
    return _outside()[name]


def describe(name: str) -> str:
    """The docstring of a method's file, or of its class if the file has none."""
    method = get(name)
    return inspect.getdoc(sys.modules[method.__module__]) or inspect.getdoc(method) or ""


def _own() -> list[str]:
    return [m.name for m in pkgutil.iter_modules(__path__) if m.name != "method" and not m.name.startswith("_")]


def _defined_in(name: str) -> type[Method]:
    module = importlib.import_module(f"{__name__}.{name}")
    return next(c for c in vars(module).values() if _is_method(c) and c.__module__ == module.__name__)


def _outside() -> dict[str, type[Method]]:
    found: dict[str, type[Method]] = {}
    for offer in load_outside("manyviews.methods"):
        if _is_method(offer.value):
            claim(found, offer.file or offer.name, offer, "method", _own())
        elif offer.file is None:
            raise not_a("method", offer)
    return found


def _is_method(x: object) -> TypeGuard[type[Method]]:
    return isinstance(x, type) and issubclass(x, Method)


def __getattr__(name: str) -> type[Method]:
    """`manyviews.methods.BYOL`: the class, imported when asked for."""
    for module in _own():
        if name.lower() == module.replace("_", "") and _defined_in(module).__name__ == name:
            return _defined_in(module)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
