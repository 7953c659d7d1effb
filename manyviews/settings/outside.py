"""Doors for code that lives outside the package: entry points, and the folders of the variable MANYVIEWS_PATH.

A file in such a folder may define methods, recipes, views, protocols and other settings, as the package's own files
do. It is imported once, under a private name; `from .other import x` reaches another file of its folder. Files whose
names begin with an underscore are only imported by others. Nothing else is ever imported because a file names it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from manyviews.errors import UserError, printable

VARIABLE = "MANYVIEWS_PATH"
GROUPS = ("manyviews.methods", "manyviews.recipes", "manyviews.protocols")


@dataclass(frozen=True)
class Found:
    """Something that an outside file or an entry point offers.

    Attributes:
        file: the file's name without ".py"; None for an entry point.
        name: the name in the file, or the entry point's.
        value: the object.
        where: the file or the installed package, for messages.
    """

    file: str | None
    name: str
    value: Any
    where: str


_files: dict[Path, list[Found]] = {}
_packages: dict[Path, str] = {}
_loading = False


def load_outside(group: str | None = None) -> list[Found]:
    """Import everything behind the doors, once, and list it: public objects of each file, and the group's entry points.

    Args:
        group: "manyviews.methods", "manyviews.recipes" or "manyviews.protocols"; None lists the files' objects only.

    Raises:
        UserError: a folder does not exist, or a file or an entry point cannot be imported.
    """
    global _loading
    if _loading:  # an outside file asks for a recipe or a type while it is imported
        return [x for found in _files.values() for x in found]
    _loading = True
    try:
        found = [x for file in _outside_files() for x in _load(file)]
        offers = {each: _entries(each) for each in GROUPS}  # all of them: they may define types of settings
        return found if group is None else found + offers[group]
    finally:
        _loading = False


def claim(names: dict[str, Any], name: str, found: Found, kind: str, taken: Collection[str] = ()) -> None:
    """Register an object from outside under a name that nothing else has.

    Args:
        names: the objects from outside so far, by name.
        name: its name among them.
        found: the object.
        kind: its kind, for messages.
        taken: names that the package itself uses.

    Raises:
        UserError: the name is taken.
    """
    if name in taken or names.get(name, found.value) is not found.value:
        raise UserError(f"{found.where} defines the {kind} '{name}', and another one has this name: rename it.")
    names[name] = found.value


def advice(kind: str, before: str = "") -> str:
    """The sentence that follows an unknown name."""
    return f"To use {kind} of your own, {before}name the folder of its file in the environment variable {VARIABLE}."


def not_a(kind: str, found: Found) -> UserError:
    """The error for an entry point that gives something other than its group promises."""
    return UserError(f"The entry point '{found.name}' of {found.where} is not a {kind}: correct or uninstall it.")


def _outside_files() -> list[Path]:
    folders = [Path(f).expanduser() for f in os.environ.get(VARIABLE, "").split(os.pathsep) if f.strip()]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{VARIABLE} names {folder}, which is not a folder: correct or unset it.")
    files = [file for f in dict.fromkeys(folder.resolve() for folder in folders) for file in sorted(f.glob("*.py"))]
    return [file for file in files if not file.name.startswith("_")]


def _load(file: Path) -> list[Found]:
    if file not in _files:
        if not file.stem.isidentifier():
            raise UserError(f"{file} of {VARIABLE} cannot be imported: name it with letters, digits and underscores.")
        name = f"{_package(file.parent)}.{file.stem}"
        importlib.invalidate_caches()  # the file may be newer than the last look at its folder
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as e:
            sys.modules.pop(name, None)
            line = f", line {e.lineno}" if isinstance(e, SyntaxError) and e.lineno else ""
            raise UserError(
                f"{file} of {VARIABLE} cannot be imported ({type(e).__name__}{line}: {printable(e, 200)}): mend it, or "
                f"unset {VARIABLE}."
            ) from e
        _files[file] = [
            Found(file.stem, key, value, str(file))
            for key, value in vars(module).items()
            if not key.startswith("_") and getattr(value, "__module__", None) == name
        ]
    return _files[file]


def _package(folder: Path) -> str:
    """A private package for a folder, in which its files find each other."""
    if folder not in _packages:
        name = f"_manyviews_path_{len(_packages)}"
        package = ModuleType(name, f"The files of {folder}.")
        package.__path__ = [str(folder)]
        package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = package
        _packages[folder] = name
    return _packages[folder]


@cache
def _entries(group: str) -> list[Found]:
    return [Found(None, entry.name, _entry(entry), _origin(entry)) for entry in entry_points(group=group)]


def _entry(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except (Exception, SystemExit) as e:
        raise UserError(
            f"The entry point '{entry.name}' ({entry.value}) of {_origin(entry)} cannot be imported "
            f"({type(e).__name__}: {printable(e, 200)}): mend or uninstall it."
        ) from e


def _origin(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist else f"the module {entry.module}"
