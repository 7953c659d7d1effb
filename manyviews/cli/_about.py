"""Everything about one recipe, method, view, protocol or backbone, as `manyviews list KIND NAME` prints it."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable
from typing import Any

from manyviews.cli._parser import meanings

_WIDTH = 100

About = tuple[list[str], dict[str, Any]]
"""Lines to print, and the same as JSON can hold it."""


def about(kind: str, name: str) -> About:
    """What there is to know of one name of `manyviews list KIND`. Raises UserError with the nearest name."""
    found: About = {
        "recipes": _recipe,
        "methods": _method,
        "views": _view,
        "protocols": _protocol,
        "backbones": _backbone,
    }[kind](name)
    return found


def _recipe(name: str) -> About:
    from manyviews import recipes
    from manyviews.reporting import summary

    recipe, text = recipes.get(name), recipes.describe(name)
    settings = {path: str(value) for path, value in summary.settings(recipe)}
    lines = [name, "", text, "", "Settings, of which --set PATH=VALUE changes one:"]
    lines += [f"  {path}={value}" for path, value in settings.items()]
    lines += _type(f"manyviews pretrain DATA --recipe {name} --out runs/mine")
    lines += [f"  manyviews list methods {recipe.method.name}"]
    return lines, {"name": name, "text": text, "settings": settings}


def _method(name: str) -> About:
    from manyviews import methods, recipes

    kind, text = methods.get(name), methods.describe(name)
    own = {n: p.default for n, p in inspect.signature(kind).parameters.items() if p.kind is p.KEYWORD_ONLY}
    using = [n for n in recipes.names() if recipes.get(n).method.name == name]
    words = {f"method.{n}": said for n, said in _inherited(kind).items()}
    settings = {f"method.{n}": _default(value) for n, value in own.items()}
    lines = [name, "", text, *_settings(settings, words), "", "Recipes:"]
    lines += [f"  {n:24} {recipes.describe(n).splitlines()[0]}" for n in using]
    sizes = ("_photos", "_cpu_small", "_cpu", "_demo", "_cifar10", "")  # what most people can run comes first
    example = next((n for size in sizes for n in using if n.endswith(size)), "NAME")
    lines += _type(f"manyviews pretrain DATA --recipe {example}", f"manyviews list recipes {example}")
    return lines, {"name": name, "text": text, "settings": settings, "recipes": using}


def _view(name: str) -> About:
    from manyviews.errors import unknown
    from manyviews.settings.known import derived_names, find
    from manyviews.views import View

    if name not in derived_names(View):
        raise unknown("view", name, derived_names(View))
    kind = find(name)
    settings = {n: _default(p.default) for n, p in inspect.signature(kind).parameters.items()}
    text = _before_arguments(kind)
    lines = [name, "", text, *_settings(settings, _inherited(kind))]
    lines += _type(f'manyviews pretrain DATA --recipe simclr_cpu --set "method.view={name}()"')
    return lines, {"name": name, "text": text, "settings": settings}


def _protocol(name: str) -> About:
    from manyviews.evaluation import protocols

    kind = protocols.get(name)
    known = {n: p.default for n, p in inspect.signature(kind).parameters.items()}
    settings = {f"{kind.name}.{n}": _default(value) for n, value in known.items()}
    text = _before_arguments(kind)
    lines = [kind.name, "", text, *_settings(settings, {f"{kind.name}.{n}": w for n, w in _inherited(kind).items()})]
    change = f" --set {next(iter(settings))}=VALUE" if settings else ""
    lines += _type(f"manyviews evaluate RUN_OR_WEIGHTS --data LABELED --protocol {kind.name}{change}")
    return lines, {"name": kind.name, "text": text, "settings": settings}


def _backbone(name: str) -> About:
    from manyviews import backbones
    from manyviews.errors import unknown

    if name not in backbones.names("*"):
        raise unknown("backbone", name, backbones.names("*"))
    import timm

    tags = timm.list_pretrained(f"{name}.*")
    lines = [name, "", "A network of timm."]
    lines += (
        ["", "Weights in timm:", *(f"  timm:{tag}" for tag in tags)] if tags else ["", "timm has no weights for it."]
    )
    lines += _type(f"manyviews pretrain DATA --recipe NAME --set backbone.name={name}")
    if tags:
        lines += [
            f"  manyviews pretrain DATA --recipe NAME --init timm:{tags[0]}",
            f"  manyviews evaluate timm:{tags[0]} --data LABELED",
        ]
    return lines, {"name": name, "weights": tags}


def _type(*commands: str) -> list[str]:
    return ["", "What to type:", *(f"  {command}" for command in commands)]


def _settings(settings: dict[str, str], words: dict[str, str]) -> list[str]:
    """A line for each setting with its default, and what it means below it."""
    lines = ["", "Settings and their defaults:"] if settings else []
    for path, value in settings.items():
        lines.append(f"  {path}={value}" if value else f"  {path}")
        lines += textwrap.wrap(words.get(path, ""), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _inherited(kind: type) -> dict[str, str]:
    """What the docstrings of a class and of those above it say of its settings."""
    found: dict[str, str] = {}
    for base in reversed(inspect.getmro(kind)):
        found |= meanings(base)
    return found


def _default(value: Any) -> str:
    return "" if value is inspect.Parameter.empty else str(value)


def _before_arguments(kind: type) -> str:
    """The docstring of a class without what it says of its settings."""
    lines: Iterable[str] = (inspect.getdoc(kind) or "").splitlines()
    kept = []
    for line in lines:
        if line in ("Args:", "Attributes:"):
            break
        kept.append(line)
    return "\n".join(kept).strip()
