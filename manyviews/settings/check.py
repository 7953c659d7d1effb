"""Whether settings have the names and types that a constructor takes."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any, Literal

from manyviews.errors import UserError, unknown
from manyviews.settings.recipe import Component


def settings(build: type) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a class's constructor, with annotations resolved."""
    hints = typing.get_type_hints(build.__init__)  # type: ignore[misc]
    signature = inspect.signature(build.__init__).parameters  # type: ignore[misc]
    return {k: p.replace(annotation=hints.get(k, Any)) for k, p in signature.items() if p.kind == p.KEYWORD_ONLY}


def complete(choice: Component, build: type, *, open_ended: bool = False) -> Component:
    """The choice with every default of its constructor written out, and its names and types checked.

    `open_ended` admits settings the constructor does not name (backbones hand them on to timm).
    """
    known = settings(build)
    for key, value in choice.settings.items():
        if key in known:
            check(value, known[key].annotation, f"{choice.name}.{key}")
        elif not open_ended:
            raise unknown(f"setting of {choice.name}", key, known)
    return Component(choice.name, {k: p.default for k, p in known.items()} | dict(choice.settings))


def check(value: Any, annotation: Any, where: str) -> Any:
    """The value itself, or a UserError when it does not fit the annotation."""
    if not _fits(value, annotation):
        wanted = getattr(annotation, "__name__", None) if isinstance(annotation, type) else str(annotation)
        wanted = str(wanted).replace("manyviews.schedules.", "").replace("manyviews.views.kinds.", "")
        raise UserError(f"Setting {where} must be {wanted.replace('typing.', '')}, not {value!r}.")
    return value


def _fits(value: Any, annotation: Any) -> bool:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_fits(v, args[0]) for v in value)
        return len(value) == len(args) and all(_fits(v, a) for v, a in zip(value, args, strict=True))
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is None:
        return value is None
    return isinstance(value, origin or annotation)
