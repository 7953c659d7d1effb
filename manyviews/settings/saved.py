"""Recipes as JSON, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from manyviews import schedules
from manyviews.errors import UserError, unknown
from manyviews.settings.recipe import OWN
from manyviews.views import augmentations, compose, kinds

TYPES: dict[str, type] = {
    c.__name__: c
    for module in (schedules, kinds, compose, augmentations)
    for c in [*OWN, *vars(module).values()]
    if isinstance(c, type) and dataclasses.is_dataclass(c)
}


def to_json(recipe: Any) -> str:
    """A recipe, or any part of one, as JSON text. Dataclasses carry their type's name under "is"."""

    def plain(x: Any) -> Any:
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return {"is": type(x).__name__} | {f.name: plain(getattr(x, f.name)) for f in dataclasses.fields(x)}
        if isinstance(x, Mapping):
            return {k: plain(v) for k, v in x.items()}
        return [plain(v) for v in x] if isinstance(x, (tuple, list)) else x

    return json.dumps(plain(recipe), indent=2)


def from_json(text: str) -> Any:
    """The object that `to_json` wrote. Only this module's known dataclasses are ever built."""

    def rich(x: Any) -> Any:
        if isinstance(x, dict) and "is" in x:
            name = x["is"]
            if name not in TYPES:
                raise unknown("setting type", str(name), TYPES)
            try:
                return TYPES[name](**{k: rich(v) for k, v in x.items() if k != "is"})
            except TypeError as e:
                raise UserError(f"The saved recipe does not fit this version of manyviews: {name}: {e}.") from e
        if isinstance(x, dict):
            return {k: rich(v) for k, v in x.items()}
        return tuple(rich(v) for v in x) if isinstance(x, list) else x

    try:
        return rich(json.loads(text))
    except json.JSONDecodeError as e:
        raise UserError(f"This recipe is not JSON: {e}.") from e
