"""Recipes as JSON, and back."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from manyviews.errors import UserError, printable, unknown
from manyviews.settings.check import check
from manyviews.settings.known import find
from manyviews.settings.old import renamed
from manyviews.settings.recipe import Recipe, leaves


def to_json(recipe: Any) -> str:
    """A recipe, or any part of one, as JSON text. Dataclasses carry their type's name under "is"."""

    def plain(x: Any) -> Any:
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return {"is": type(x).__name__} | {f.name: plain(getattr(x, f.name)) for f in dataclasses.fields(x)}
        if isinstance(x, Mapping):
            return {k: plain(v) for k, v in x.items()}
        return [plain(v) for v in x] if isinstance(x, (tuple, list)) else x

    return json.dumps(plain(recipe), indent=2)


def from_json(text: str, where: str = "This recipe") -> Any:
    """The object that `to_json` wrote. Only known types of settings are ever built.

    Args:
        text: JSON, which may use the names of older versions.
        where: the file, for messages.

    Raises:
        UserError: the text is not JSON, or holds an unknown type or setting, or a value of the wrong type.
    """
    try:
        return _rich(renamed(json.loads(text), where), "", where)
    except UserError:
        raise
    except json.JSONDecodeError as e:
        raise UserError(f"{where} is not JSON: {e}.") from e
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as e:
        raise UserError(f"{where} holds no settings that a recipe may have ({type(e).__name__}: {e}).") from e


_hints = cache(typing.get_type_hints)


def _rich(x: Any, path: str, where: str) -> Any:
    """Parsed JSON as settings, checked as those of the command line are."""

    def part(name: object) -> str:
        return f"{path}.{name}" if path else str(name)

    if isinstance(x, dict) and "is" in x:
        kind = find(str(x["is"]))
        settings = {k: _rich(v, part(k), where) for k, v in x.items() if k != "is"}
        hints = _hints(kind)
        known = [f.name for f in dataclasses.fields(kind)]
        for name, value in settings.items():
            if name not in known:
                near = unknown(f"setting of {kind.__name__}", printable(name, 80), known)
                raise UserError(f"{where} does not fit this version of manyviews: {near}")
            try:
                check(value, hints[name], part(name))
            except UserError as e:
                raise UserError(f"{where}: {printable(e, 400)}") from None
        try:
            return kind(**settings)
        except TypeError as e:
            raise UserError(f"{where} does not fit this version of manyviews: {kind.__name__}: {e}.") from e
        except (UserError, ValueError) as e:
            raise UserError(f"{where}: {e}") from e
    if isinstance(x, dict):
        return {k: _rich(v, part(k), where) for k, v in x.items()}
    return tuple(_rich(v, part(i), where) for i, v in enumerate(x)) if isinstance(x, (list, tuple)) else x


def check_saved(recipe: Recipe) -> None:
    """Raises UserError, naming the setting, unless the recipe is the same after it is saved and loaded."""
    for path, value in leaves(recipe):
        try:
            again = from_json(to_json(value))
        except (TypeError, UserError) as e:
            raise UserError(f"Setting {path} cannot be saved with the run, {value!r}: {e}") from e
        if again != value:
            raise UserError(
                f"Setting {path} changes when it is saved with the run: {value!r} is read as {again!r}. Give it in "
                "that form."
            )
