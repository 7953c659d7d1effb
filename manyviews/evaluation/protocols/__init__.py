"""Protocols: a file each, or one for a close family, and the folder is the registry.

A protocol outside the package is known once its module is imported. Modules of the entry point group
"manyviews.protocols" and files in the folders of `MANYVIEWS_PATH` are imported when protocols are first looked up.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, cast, get_origin, get_type_hints

from manyviews.errors import UserError, unknown
from manyviews.evaluation.contract import FeatureProtocol, ImageProtocol, MetricProtocol, Protocol
from manyviews.settings import load_outside, override, parse

_ORDER = (FeatureProtocol, ImageProtocol, MetricProtocol)


def known() -> dict[str, type[Protocol]]:
    """All protocols by name: those that predict from features, from images, and those that measure.

    Raises:
        UserError: two protocols have one name.
    """
    _load()
    load_outside("manyviews.protocols")
    found: dict[str, type[Protocol]] = {}
    for kind in _subclasses(Protocol):  # type: ignore[type-abstract]
        if not kind.name or inspect.isabstract(kind):
            continue
        other = found.get(kind.name, kind)
        if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
            raise UserError(
                f"Two protocols are called '{kind.name}': {other.__qualname__} in {other.__module__} and "
                f"{kind.__qualname__} in {kind.__module__}. Rename one."
            )
        found[kind.name] = kind  # of a class that was defined again, the newest
    return dict(sorted(found.items(), key=lambda item: ([issubclass(item[1], k) for k in _ORDER].index(True), item[0])))


def names() -> list[str]:
    """Names of all protocols."""
    return list(known())


def get(name: str) -> type[Protocol]:
    """The protocol of this name, or of this earlier name.

    Raises:
        UserError: there is none, with the nearest name.
    """
    protocols = known()
    current = canonical(name)
    if current not in protocols:
        raise unknown("protocol", name, protocols)
    return protocols[current]


def title(name: str) -> str:
    """The name of a protocol for people. A report may hold protocols that are not installed here."""
    found = known().get(canonical(name))
    return name if found is None else found.title


def current_name(name: str) -> str:
    """`canonical`, with a warning for people who use an earlier name."""
    current = canonical(name)
    if current != name:
        warnings.warn(f"The protocol '{name}' is called '{current}' now.", stacklevel=3)
    return current


def requested(protocols: Sequence[str | Protocol], settings: Mapping[str, Any]) -> tuple[Protocol, ...]:
    """The protocols that were asked for, with their settings.

    Args:
        protocols: names, or protocols with settings of their own.
        settings: dotted paths and values, or texts of values, such as `{"finetune.epochs": 30}`.

    Raises:
        UserError: no protocol, an unknown one or two of one name; an unknown setting or a value that does not fit.
    """
    if not protocols:
        raise UserError(f"No protocol was named: choose from {', '.join(known())}.")
    made = [p if isinstance(p, Protocol) else get(current_name(p))() for p in protocols]
    chosen = {p.name: p for p in made}
    if any(chosen[p.name] != p for p in made):
        twice = next(p.name for p in made if chosen[p.name] != p)
        raise UserError(f"The protocol '{twice}' was given twice, with different settings: evaluate once for each.")
    for path, value in settings.items():
        first, _, rest = path.partition(".")
        name = current_name(first)
        if name not in chosen:
            raise UserError(f"The setting {path} is of no protocol that was asked for: {', '.join(chosen)}.")
        settable = {f.name for f in fields(chosen[name])}
        hints = {k: v for k, v in get_type_hints(type(chosen[name])).items() if k in settable}
        if not hints:
            raise UserError(f"The protocol '{name}' has no settings.")
        if rest not in hints:
            raise unknown(f"setting of {name}", rest, hints)
        value = parse(value) if isinstance(value, str) else value
        if get_origin(hints[rest]) is tuple:  # one value stands for a tuple of one
            value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        (chosen[name],) = cast(Any, override)((chosen[name],), f"{name}.{rest}", value)
    return tuple(chosen.values())


def canonical(name: str) -> str:
    """The name that a protocol has today, given that or an earlier one; unknown names stay as they are."""
    return next((k for k, kind in known().items() if name in kind.formerly), name)


def _subclasses(kind: type[Protocol]) -> Iterator[type[Protocol]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
