"""The documents say what the code does: names, commands, defaults and links. Nothing is trained."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import pkgutil
import re
import runpy
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import manyviews as mv
from manyviews import cli, evaluation, methods, recipes, regularizers, schedules, views
from manyviews.settings import Component, Recipe, override, settings

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
DOCS = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *PAGES) if p.exists()]
INDEX = ROOT / "docs" / "methods" / "README.md"
REGULARIZERS = sorted(m.name for m in pkgutil.iter_modules(regularizers.__path__))

documents = pytest.mark.parametrize("doc", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
every_method = pytest.mark.parametrize("name", methods.names())
every_regularizer = pytest.mark.parametrize("name", REGULARIZERS)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block."""
    for match in re.finditer(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every table: a dict for each row, by the heads of the columns."""
    found = []
    for lines in re.findall(r"(?:^\|.*\n)+", prose(text), re.MULTILINE):
        head, _, *rows = [[c.strip() for c in line.strip().strip("|").split(" | ")] for line in lines.splitlines()]
        found.append([dict(zip((h.strip() for h in head), row, strict=True)) for row in rows])
    return found


def rows_with(text: str, column: str) -> list[dict[str, str]]:
    return [row for table in tables(text) for row in table if column in row]


def value_of(cell: str) -> Any:
    """What a cell such as `Global(2, color=SIMCLR)` denotes."""
    assert re.fullmatch(r"`.*`", cell), f"{cell} is not in backticks"
    return eval(cell.strip("`"), {"__builtins__": {}, **vars(schedules), **vars(views)})


# -- methods and recipes -----------------------------------------------------------------------------------------


@every_method
def test_every_method_has_a_page_and_its_rows_in_the_index(name: str) -> None:
    assert INDEX.with_name(f"{name}.md") in PAGES
    (_,) = [r for r in rows_with(text_of(INDEX), "method") if r["method"] == f"[{name}]({name}.md)"]
    (row,) = [r for r in rows_with(text_of(INDEX), "recipes of") if r["recipes of"] == name]
    assert sorted(re.findall(r"`(\w+)`", row["names"])) == recipes_of(name)


@every_regularizer
def test_every_regularizer_has_a_page_and_a_link_in_the_index(name: str) -> None:
    assert INDEX.with_name(f"{name}.md") in PAGES
    assert f"[{name}]({name}.md)" in text_of(INDEX)


def test_every_page_is_of_a_method_or_a_regularizer() -> None:
    assert {p.stem for p in PAGES} == {*methods.names(), *REGULARIZERS, "README"}


@every_method
def test_the_table_of_settings_is_the_constructor(name: str) -> None:
    check_settings(name, {k: p.default for k, p in settings(methods.get(name)).items()})


@every_regularizer
def test_the_table_of_settings_is_the_dataclass(name: str) -> None:
    """A regularizer's settings are the recipe's field of its name."""
    (kind,) = [k for k in typing.get_args(typing.get_type_hints(Recipe)[name]) if k is not type(None)]
    check_settings(name, {f.name: f.default for f in dataclasses.fields(kind)})


def check_settings(name: str, defaults: dict[str, Any]) -> None:
    rows = rows_with(text_of(INDEX.with_name(f"{name}.md")), "setting")
    written = {row["setting"].strip("`"): row["default"] for row in rows}
    assert list(written) == list(defaults)
    for key, default in defaults.items():
        if default is dataclasses.MISSING:
            assert written[key] == "required", key
        else:
            assert repr(value_of(written[key])) == repr(default), key


@every_method
def test_the_table_of_recipes_is_what_the_recipes_say(name: str) -> None:
    check_recipes(name, recipes_of(name))


@every_regularizer
def test_the_table_of_a_regularizers_recipes_is_what_they_say(name: str) -> None:
    having = [r for r in recipes.names() if getattr(recipes.get(r), name) is not None]
    for recipe_name, row in check_recipes(name, having).items():
        chosen = dataclasses.asdict(getattr(recipes.get(recipe_name), name))
        assert {k: float(row[k]) for k in row if k in chosen} == {k: chosen[k] for k in row if k in chosen}


def recipes_of(method: str) -> list[str]:
    return [r for r in recipes.names() if recipes.get(r).method.name == method]


def check_recipes(page: str, expected: list[str]) -> dict[str, dict[str, str]]:
    """The rows of a page's tables of recipes, by name, each of which is as the recipe and its docstring."""
    found = rows_with(text_of(INDEX.with_name(f"{page}.md")), "recipe")
    rows = {r["recipe"].strip("`"): r for r in found}
    assert sorted(rows) == expected and len(rows) == len(found)
    for name, row in rows.items():
        recipe, told = recipes.get(name), recipes.describe(name)
        expectation = row.get("expectation") or row["hardware and expectation"]
        assert row["backbone"].split()[0] == recipe.backbone.name, name
        assert (float(row["epochs"]), int(row["batch"])) == (recipe.epochs, recipe.data.batch_size), name
        assert ("not run by us" in expectation) == ("Not run by us" in told), name
        assert {*re.findall(r"\d+\.\d+", expectation)} <= {*re.findall(r"\d+\.\d+", told)}, name
        if "views" in row:
            tasks = recipe.method.settings["tasks"]
            assert row["views"] == ", ".join(f"{t.count} {t.name}" for t in tasks), name
    return rows


def test_the_table_of_view_types_is_the_constructors() -> None:
    rows = rows_with(text_of(ROOT / "docs" / "concepts.md"), "view")
    assert {r["view"] for r in rows} == {f"`{k.__name__}`" for k in views.View.__subclasses__() if in_package(k)}
    for row in rows:
        kind = value_of(row["view"])()
        assert [value_of(row[k]) for k in ("count", "size", "area")] == [kind.count, kind.size, kind.area]


def test_the_table_of_hooks_says_who_overrides_them() -> None:
    kinds = [k for k in views.View.__subclasses__() if in_package(k)]
    hooks = [k for k, v in vars(views.View).items() if k[0] != "_" and (callable(v) or isinstance(v, property))]
    known = {h: {k.__name__ for k in kinds if h in vars(k)} for h in hooks}
    rows = rows_with(text_of(ROOT / "docs" / "concepts.md"), "hook")
    written = {r["hook"].strip("`"): set(re.findall(r"`(\w+)`", r["overridden by"])) for r in rows}
    assert written == {h: names for h, names in known.items() if names}


def in_package(kind: type) -> bool:
    return kind.__module__.startswith("manyviews.")  # other tests may have made kinds of their own


@documents
def test_recipes_that_are_named_exist(doc: Path) -> None:
    text = re.sub(r"\(figures/\w+\.png\)", "", text_of(doc))
    named = set(re.findall(rf"\b(?:{'|'.join(methods.names())})_[a-z0-9_]+\b", text))
    named |= set(re.findall(r"--recipe[= ](\w+)", text_of(doc)))
    named |= set(re.findall(r"recipe=[\"'](\w+)", text_of(doc)))
    assert named <= {*recipes.names(), *methods.names()}


# -- figures -----------------------------------------------------------------------------------------------------

FIGURES = ROOT / "docs" / "methods" / "figures"


@pytest.mark.parametrize("name", [*methods.names(), *REGULARIZERS])
def test_every_page_shows_its_figure(name: str) -> None:
    assert re.search(rf"^!\[[^\]]+\]\(figures/{name}\.png\)$", text_of(INDEX.with_name(f"{name}.md")), re.MULTILINE)


def test_the_figures_are_what_the_script_draws_and_light() -> None:
    drawn = set(runpy.run_path(str(ROOT / "docs" / "figures.py"))["FIGURES"])
    assert drawn >= {*methods.names(), *REGULARIZERS}
    assert {p.name for p in FIGURES.iterdir()} == {f"{name}.png" for name in drawn}
    assert all(p.stat().st_size < 400_000 for p in FIGURES.iterdir())


# -- commands ----------------------------------------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """The arguments of every `manyviews ...` command line, however it is started."""
    found = []
    for language, code in blocks(text):
        if language not in ("python", "py", "mermaid", "json"):
            for line in re.sub(r"\\\n\s*", " ", code).splitlines():
                found += [args for words in simple_commands(line) if (args := arguments(words)) is not None]
    return found


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a shell line; variables stand as 1."""
    lexer = shlex.shlex(re.sub(r"\$\{?\w+\}?", "1", line), posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # an open quote: somebody's prose or output
        return
    for is_operator, command in itertools.groupby(words, key=lambda w: set(w) <= set(";&|")):
        if not is_operator:
            yield list(command)


def arguments(words: list[str]) -> list[str] | None:
    """What follows `manyviews` where it is the command that is run."""
    for i, word in enumerate(words):
        before = words[:i]
        if Path(word).name == "manyviews":
            started = not before or before[0] in WRAPPERS or all("=" in w for w in before)
            return words[i + 1 :] if started or before[-1] == "-m" else None
    return None


WRAPPERS = ("$", "do", "env", "nice", "taskset", "then", "time", "timeout")

COMMANDS = [(doc, args) for doc in DOCS for args in commands(text_of(doc))]


def test_the_documents_have_commands() -> None:
    assert {args[0] for _, args in COMMANDS} >= {"pretrain", "resume", "evaluate", "embed", "export", "show", "list"}


@pytest.mark.parametrize(
    ("doc", "args"), COMMANDS, ids=[f"{d.stem}-{i}-{a[0] if a else ''}" for i, (d, a) in enumerate(COMMANDS)]
)
def test_commands_parse(
    doc: Path, args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def recorded(name: str, verb: Any) -> Any:
        @functools.wraps(verb)
        def record(*positional: Any, **named: Any) -> None:
            calls.append((name, inspect.signature(verb).bind(*positional, **named).arguments))

        return record

    monkeypatch.setattr(cli, "VERBS", {k: recorded(k, v) for k, v in cli.VERBS.items()})
    try:
        cli.main(args)
    except SystemExit as stop:
        helped = "--help" in args or "-h" in args
        assert helped and stop.code == 0, f"manyviews {shlex.join(args)}\n{capsys.readouterr()}"
        return
    ((verb, given),) = calls
    if verb == "pretrain":
        recipe = recipes.get(given["recipe"])
        for path, value in cli._settings(given.get("set", ())).items():
            recipe = override(recipe, path, value)
        recipes.resolve(recipe)
    if verb == "evaluate":
        assert set(given.get("protocol", "knn").split(",")) <= set(evaluation.PROTOCOLS)


@documents
def test_settings_in_the_text_exist(doc: Path) -> None:
    """`optimizer.lr`, `method.temperature`, with or without a value: settings of some recipe."""
    paths = re.findall(
        r"`(?:--set )?((?:method|backbone|data|optimizer|step|monitor|rescue)\.[\w.]+)(?:=[^`]*)?`", text_of(doc)
    )
    everything = [recipes.get(name) for name in recipes.names()]
    for path in paths:
        assert any(has(recipe, path.split(".")) for recipe in everything), path


def has(node: Any, keys: list[str]) -> bool:
    if not keys:
        return True
    if isinstance(node, tuple):
        parts = [v for v in node if getattr(v, "name", None) == keys[0]]
        return bool(parts) and has(parts[0], keys[1:])
    if isinstance(node, Component) and keys[0] != "name":
        return keys[0] in node.settings and has(node.settings[keys[0]], keys[1:])
    return hasattr(node, keys[0]) and has(getattr(node, keys[0]), keys[1:])


# -- Python ------------------------------------------------------------------------------------------------------


@documents
def test_python_compiles_and_names_what_exists(doc: Path) -> None:
    for language, code in blocks(text_of(doc)):
        if language in ("python", "py"):
            check_code(ast.parse(code))


@documents
def test_names_in_the_text_exist(doc: Path) -> None:
    for name in re.findall(r"`mv\.([A-Za-z_][\w.]*)", prose(text_of(doc))):
        functools.reduce(getattr, name.split("."), mv)


def check_code(tree: ast.AST) -> None:
    """Imports from the package, attributes of `mv`, and keyword arguments of what they name."""
    known: dict[str, Any] = {"mv": mv}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "manyviews":
            module = importlib.import_module(node.module or "")
            known |= {a.asname or a.name: getattr(module, a.name) for a in node.names}
        elif isinstance(node, ast.Import):
            for a in node.names:
                if a.name.split(".")[0] == "manyviews":
                    importlib.import_module(a.name)

    def resolve(node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = resolve(node.value)
            return None if owner is None else getattr(owner, node.attr)
        return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            resolve(node)
        elif isinstance(node, ast.Call) and callable(function := resolve(node.func)):
            keywords = {k.arg: None for k in node.keywords if k.arg}
            inspect.signature(function).bind_partial(*node.args, **keywords)


# -- links -------------------------------------------------------------------------------------------------------


@documents
def test_relative_links_resolve(doc: Path) -> None:
    targets = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", prose(text_of(doc)))
    for target in targets:
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (doc.parent / path).resolve() if path else doc
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(text_of(file)), target


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@documents
def test_files_in_the_text_exist(doc: Path) -> None:
    """Paths into the repository, such as `examples/own_loop.py`."""
    for path in re.findall(r"`((?:manyviews|examples|scripts|benchmarks|tests)/[\w./]+)`", prose(text_of(doc))):
        assert (ROOT / path).exists(), path
