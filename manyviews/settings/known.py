"""Which types a setting may have: the parts of a recipe, and every imported view, augmentation, schedule and so on."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator

from manyviews.adaptation import Adaptation
from manyviews.errors import UserError, unknown
from manyviews.schedules import Schedule
from manyviews.settings.outside import advice, load_outside
from manyviews.settings.recipe import OWN, Regularizer
from manyviews.views import Augmentation, Color, Masking, View

BASES: tuple[type, ...] = (Schedule, View, Augmentation, Color, Masking, Regularizer, Adaptation)
"""Every frozen dataclass derived from one of these is a setting, wherever it is defined."""


def known() -> dict[str, list[type]]:
    """The types that settings may have, by name. Several of one name come from different places.

    A name of the package's own is never taken by a type from outside.
    """
    importlib.import_module("manyviews.regularizers")  # not above, because they stand on the settings
    load_outside()
    found: dict[str, dict[str, type]] = {}
    for kind in (*OWN, *(c for base in BASES for c in _derived(base))):
        # A class that a notebook defines again replaces its older self.
        found.setdefault(kind.__name__, {})[f"{kind.__module__}.{kind.__qualname__}"] = kind
    ours = {name: [k for k in kinds.values() if k.__module__.startswith("manyviews.")] for name, kinds in found.items()}
    return {name: ours[name] or list(kinds.values()) for name, kinds in found.items()}


def find(name: str, what: str = "setting type") -> type:
    """The setting type of that name.

    Raises:
        UserError: no type or two types have this name.
    """
    kinds = known()
    if name not in kinds:
        names = [n for n, (kind, *_) in kinds.items() if kind not in OWN]
        raise UserError(f"{unknown(what, name, names)} {advice('a type', 'import its module first, or ')}")
    if len(kinds[name]) > 1:
        places = " and ".join(sorted(inspect.getfile(kind) for kind in kinds[name]))
        raise UserError(f"Two setting types are named {name}, in {places}: rename one.")
    return kinds[name][0]


def derived_names(base: type) -> list[str]:
    """The names of the setting types that fit where `base` is wanted."""
    return sorted({kind.__name__ for kind in _derived(base)})


def _derived(base: type) -> Iterator[type]:
    if dataclasses.is_dataclass(base) and not inspect.isabstract(base) and not base.__name__.startswith("_"):
        yield base
    subclasses: list[type] = base.__subclasses__()
    for derived in subclasses:
        yield from _derived(derived)
