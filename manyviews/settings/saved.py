"""Recipes as JSON, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from manyviews.errors import UserError
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
        where: the file, for the sentence on standard error that lists the old names.

    Raises:
        UserError: the text is not JSON, or holds an unknown type or setting.
    """

    def rich(x: Any) -> Any:
        if isinstance(x, dict) and "is" in x:
            kind = find(str(x["is"]))
            settings = {k: rich(v) for k, v in x.items() if k != "is"}
            try:
                return kind(**settings)
            except TypeError as e:
                raise UserError(
                    f"The saved recipe does not fit this version of manyviews: {kind.__name__}: {e}."
                ) from e
        if isinstance(x, dict):
            return {k: rich(v) for k, v in x.items()}
        return tuple(rich(v) for v in x) if isinstance(x, (list, tuple)) else x

    try:
        plain = json.loads(text)
    except json.JSONDecodeError as e:
        raise UserError(f"This recipe is not JSON: {e}.") from e
    return rich(renamed(plain, where))


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
