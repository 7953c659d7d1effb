"""Settings as text: what `--set path=value` denotes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from typing import Any

from manyviews.errors import UserError, printable, unknown
from manyviews.settings.check import check, fits
from manyviews.settings.known import find, known
from manyviews.settings.old import renamed_path
from manyviews.settings.recipe import Component, Recipe


def override(recipe: Recipe, path: str, value: Any) -> Recipe:
    """The recipe with the setting at `path` replaced by a value, or by the value that a string denotes.

    A path steps into fields, settings, positions of tuples, and views and regularizers by name: `optimizer.lr`,
    `method.temperature`, `backbone.name`, `method.tasks.local.count`, `data.mean.0`, `regularizers.rescue.k`. A string
    is a Python literal, a schedule, view or other setting type such as `Cosine(0.99, 1.0)`, or a plain word. Paths of
    older versions are translated, with a sentence on standard error.

    Raises:
        UserError: no such setting (with the nearest name), or a value of the wrong type.
    """
    if path == "method.name":
        raise UserError("A recipe's method cannot be replaced with --set: choose a recipe of the other method.")
    path, value = renamed_path(path, value)
    new = parse(value) if isinstance(value, str) else value
    return typing.cast(Recipe, _replace(recipe, path.split("."), new, path))


def _replace(node: Any, keys: list[str], new: Any, path: str) -> Any:
    if not keys:
        return new
    key, rest = keys[0], keys[1:]
    if isinstance(node, Component) and key != "name":
        if rest and key not in node.settings:
            raise unknown(f"setting in '{path}'", key, node.settings)
        return Component(node.name, {**node.settings, key: _replace(node.settings.get(key), rest, new, path)})
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        hints = typing.get_type_hints(type(node))
        names = [f.name for f in dataclasses.fields(node)]
        if key not in names:
            raise unknown(f"setting in '{path}'", key, names)
        if rest and getattr(node, key) is None:
            whole = path.removesuffix("." + ".".join(rest))
            kinds = [a for a in typing.get_args(hints[key]) if dataclasses.is_dataclass(a)]
            advice = f'; set it as a whole, with --set "{whole}={_call(kinds[0])}"' if kinds else ""
            raise UserError(f"Setting {path}: {whole} is none in this recipe{advice}.")
        value = _replace(getattr(node, key), rest, new, path)
        if typing.get_origin(hints[key]) is tuple and fits(value, typing.get_args(hints[key])[0]):
            value = (value,)  # one where several may stand
        value = check(value, hints[key], path)
        try:
            return dataclasses.replace(node, **{key: value})
        except ValueError as e:
            raise UserError(f"Setting {path}: {e}") from e
    if isinstance(node, tuple):
        names = [str(getattr(v, "name", i)) for i, v in enumerate(node)]
        if key not in names and not (key.isdigit() and int(key) < len(node)):
            kind = next((k for name, (k, *_) in known().items() if name.lower() == key), None)
            if node or kind is None:
                raise unknown(f"part in '{path}'", key, names)
            whole = path.removesuffix("." + ".".join(keys))
            raise UserError(
                f"Setting {path}: {whole} is empty in this recipe; set it as a whole, with "
                f'--set "{whole}={_call(kind)}".'
            )
        at = names.index(key) if key in names else int(key)
        return (*node[:at], _replace(node[at], rest, new, path), *node[at + 1 :])
    raise UserError(f"Setting {path}: {node!r} has no part '{key}'.")


def _call(kind: Any) -> str:
    """A value of a type as text, with the arguments that it requires."""
    needed = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    return f"{kind.__name__}({', '.join([*(f'{p.name}=...' for p in needed), '...'])})"


def parse(text: str) -> Any:
    """The value of a Python literal, of a known setting type called with literals, or the text itself.

    The text is parsed and never run: only known dataclasses are built.
    """
    try:
        return _parse(text)
    except (RecursionError, MemoryError):  # how Python's parser and ours say that there are too many signs or brackets
        raise UserError(f"The value {printable(text, 40)} is nested too deeply.") from None


def _parse(text: str) -> Any:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return text
    words = {"true": True, "false": False, "none": None}
    if isinstance(tree, ast.Name):
        return words.get(text.strip().lower(), text.strip())

    def build(x: ast.expr) -> Any:
        if isinstance(x, (ast.Tuple, ast.List)):
            return tuple(build(e) for e in x.elts)
        if isinstance(x, ast.Dict):
            return {build(k): build(v) for k, v in zip(x.keys, x.values, strict=True) if k is not None}
        if isinstance(x, ast.Call) and isinstance(x.func, ast.Name):
            kind = find(x.func.id, "schedule or view type")
            args, settings = map(build, x.args), {str(k.arg): build(k.value) for k in x.keywords}
            try:
                given = inspect.signature(kind).bind(*args, **settings).arguments
                hints = typing.get_type_hints(kind)
                return kind(**{name: check(v, hints[name], f"{x.func.id}.{name}") for name, v in given.items()})
            except (TypeError, ValueError) as e:
                raise UserError(f"'{text}' is not a valid value: {e}.") from e
        try:
            return ast.literal_eval(x)
        except (TypeError, ValueError):
            return ast.get_source_segment(text.strip(), x)

    return build(tree)
