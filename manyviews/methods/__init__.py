"""One file per method, and the folder is the registry: a new file here is listed, run and tested."""

from __future__ import annotations

import importlib
import pkgutil

from manyviews.errors import unknown
from manyviews.methods.method import Branch, Method, exactly, mean_of, paired, sum_of
from manyviews.views import Terms

__all__ = ["Branch", "Method", "Terms", "exactly", "get", "mean_of", "names", "paired", "sum_of"]


def names() -> list[str]:
    """The methods' names, which are their files' names."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "method")


def get(name: str) -> type[Method]:
    """The method class in `methods/<name>.py`. Raises UserError, with the nearest name, when there is none."""
    if name not in names():
        raise unknown("method", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Method) and c.__module__ == module.__name__
    )


def __getattr__(name: str) -> type[Method]:
    """`manyviews.methods.BYOL`: the class, imported when asked for."""
    for module in names():
        if name.lower() == module.replace("_", "") and get(module).__name__ == name:
            return get(module)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
