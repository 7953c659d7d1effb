"""Pages agree with the code: generated parts, names, commands, settings, code blocks and links. Nothing is trained."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import itertools
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import manyviews as mv
from manyviews import cli, methods, recipes, schedules, views
from manyviews.evaluation import protocols
from manyviews.settings import Component, override

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
DOCS = [*(ROOT / f"{n}.md" for n in ("README", "CONTRIBUTING")), *sorted((ROOT / "docs").glob("*.md")), *PAGES]


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = script("generate")
documents = pytest.mark.parametrize("doc", DOCS, ids=lambda p: str(p.relative_to(ROOT)))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block."""
    for match in re.finditer(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


# -- what is generated -------------------------------------------------------------------------------------------


def test_generated_parts_are_up_to_date() -> None:
    assert not generate.outdated(), "run `make docs`"


def test_defaults_are_written_as_what_they_are() -> None:
    """Every default of the tables is Python that gives the setting back."""
    names = {k: v for module in (views.augmentations, schedules, views) for k, v in vars(module).items()}
    kinds = [*(methods.get(name) for name in methods.names()), *views.View.__subclasses__()]
    for kind in kinds:
        for name, parameter in inspect.signature(kind).parameters.items():
            if parameter.default is not parameter.empty:
                assert eval(generate.short(parameter.default), {**names, "__builtins__": {}}) == parameter.default, (
                    kind,
                    name,
                )


def test_settings_without_a_description_are_refused() -> None:
    class Undescribed(methods.get("simclr")):  # type: ignore[misc]
        """Nothing about its settings."""

    assert set(generate.meanings(Undescribed)) >= {"view", "temperature"}  # described where they are declared
    with pytest.raises(ValueError, match="no generated part 'nonsense'"):
        generate.generated(ROOT / "README.md", "<!-- generated: nonsense -->\n<!-- end -->")


def test_every_method_and_regularizer_has_a_page_with_its_parts_and_its_figure() -> None:
    assert {p.stem for p in PAGES} == {*methods.names(), *generate.regularizer_types(), "README"}
    for page in PAGES:
        parts = set(re.findall(r"^<!-- generated: ([\w-]+) -->", text_of(page), re.MULTILINE))
        needed = {"figure", "settings", "recipes"} if page.stem in methods.names() else {"settings"}
        assert page.stem == "README" or parts >= needed, page.name
    figures = ROOT / "docs" / "methods" / "figures"
    drawn = script("figures").FIGURES
    assert {p.name for p in figures.iterdir()} == {f"{name}.png" for name in drawn}
    assert all(p.stat().st_size < 400_000 for p in figures.iterdir())


# -- names -------------------------------------------------------------------------------------------------------


@documents
def test_recipes_that_are_named_exist(doc: Path) -> None:
    text = re.sub(r"\((?:\S+/)?figures/\w+\.png\)", "", text_of(doc))
    named = set(re.findall(rf"\b(?:{'|'.join(methods.names())})_[a-z0-9_]+\b", text))
    named |= set(re.findall(r"--recipe[= ](\w+)", text_of(doc)))
    named |= set(re.findall(r"recipe=[\"'](\w+)", text_of(doc)))
    assert named <= {*recipes.names(), *methods.names(), "auto"}


# -- commands ----------------------------------------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """The arguments of every `manyviews ...` command line, however it is started."""
    found = []
    for language, code in blocks(text):
        if language not in ("python", "py", "json", "text"):
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
        chosen = recipes.get("photos_cpu_small" if given.get("recipe", "auto") == "auto" else given["recipe"])
        for path, value in cli._settings(given.get("set", ())).items():
            chosen = override(chosen, path, value)
        recipes.resolve(chosen)
    if verb == "evaluate":
        assert set(given.get("protocol", "knn").split(",")) <= set(protocols.names())


@documents
def test_settings_in_the_text_exist(doc: Path) -> None:
    """`optimizer.lr`, `method.temperature`, with or without a value: settings of some recipe."""
    paths = re.findall(
        r"`(?:--set )?((?:method|backbone|data|optimizer|step|monitor|regularizers)\.[\w.]+)(?:=[^`]*)?`", text_of(doc)
    )
    everything = [recipes.get(name) for name in recipes.names()]
    for path in paths:
        assert any(has(recipe, path.split(".")) for recipe in everything), path


def has(node: Any, keys: list[str]) -> bool:
    if not keys:
        return True
    if isinstance(node, tuple):
        if keys[0].isdigit():
            return int(keys[0]) < len(node) and has(node[int(keys[0])], keys[1:])
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
    for path in re.findall(r"`((?:manyviews|examples|scripts|benchmarks|tests|docs)/[\w./]+)`", prose(text_of(doc))):
        assert (ROOT / path).exists(), path
