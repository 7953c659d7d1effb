"""Checks that settings have the names and types that a constructor takes."""

from __future__ import annotations

import inspect
import re
import types
import typing
from typing import Any, Literal

from manyviews.errors import UserError, unknown
from manyviews.settings.known import derived_names
from manyviews.settings.recipe import Component


def settings(build: type) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a class's constructor, with annotations resolved."""
    hints = typing.get_type_hints(build.__init__)  # type: ignore[misc]
    signature = inspect.signature(build.__init__).parameters  # type: ignore[misc]
    return {k: p.replace(annotation=hints.get(k, Any)) for k, p in signature.items() if p.kind == p.KEYWORD_ONLY}


def complete(chosen: Component, build: type, *, open_ended: bool = False) -> Component:
    """The component with every default of its constructor written out, and its names and types checked.

    Args:
        chosen: the name and the settings that differ from the defaults.
        build: the class with that name.
        open_ended: admit settings that the constructor does not name (backbones hand them on to timm).

    Raises:
        UserError: an unknown setting, or a value of the wrong type.
    """
    known = settings(build)
    for key, value in chosen.settings.items():
        if key in known:
            check(value, known[key].annotation, f"{chosen.name}.{key}")
        elif not open_ended:
            raise unknown(f"setting of {chosen.name}", key, known)
    return Component(chosen.name, {k: p.default for k, p in known.items()} | dict(chosen.settings))


def check(value: Any, annotation: Any, where: str) -> Any:
    """The value itself, or a UserError when it does not fit the annotation."""
    if not fits(value, annotation):
        raise UserError(f"Setting {where} must be {_words(annotation)}, not {value!r}.")
    return value


def _words(annotation: Any) -> str:
    """The annotation without names of modules; of an abstract type, the types that can stand for it."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        found = derived_names(annotation) if inspect.isabstract(annotation) else []
        return " | ".join(found) or annotation.__name__
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join("None" if a is type(None) else _words(a) for a in typing.get_args(annotation))
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", str(annotation))


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of the annotated type. An int fits where a float is wanted, a list never fits for a tuple."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if args[-1] is Ellipsis:
            return all(fits(v, args[0]) for v in value)
        return len(value) == len(args) and all(fits(v, a) for v, a in zip(value, args, strict=True))
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is None:
        return value is None
    return isinstance(value, origin or annotation)
