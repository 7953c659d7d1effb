"""Write the parts of the pages that the code already says: settings, recipes, tables, the tree of the package.

python docs/generate.py [--check]

A generated part stands between two comments, `<!-- generated: NAME ARGUMENTS -->` and `<!-- end -->`. NAME is in PARTS,
whose function gets the page and the arguments. `--check` writes nothing and fails if a page is out of date.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import runpy
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import manyviews
from manyviews import backbones, methods, objectives, papers, recipes, views, weights
from manyviews.data import formats
from manyviews.errors import UserError
from manyviews.evaluation import protocols
from manyviews.regularizers import Regularized
from manyviews.settings import Data, Monitor, Optimizer, Recipe, Regularizer, Stage, Step, settings
from manyviews.testing import pictures
from manyviews.types import Backward, Progress
from manyviews.verbs.reproduce import label

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
METHODS = DOCS / "methods"
MARKED = re.compile(r"^(<!-- generated: ([^>]+?) -->\n)(.*?)^(<!-- end -->)", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """Every Markdown page of the project that a reader sees."""
    top = [p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md") if p.exists()]
    return [*top, *sorted(DOCS.glob("*.md")), *sorted(METHODS.glob("*.md"))]


def generated(page: Path, text: str) -> str:
    """The page's text with its generated parts written anew. Raises ValueError for a part that has no function."""

    def write(match: re.Match[str]) -> str:
        name, *arguments = match[2].split()
        if name not in PARTS:
            raise ValueError(f"{page.relative_to(ROOT)}: there is no generated part '{name}', only {', '.join(PARTS)}")
        return f"{match[1]}\n{PARTS[name](page, *arguments).strip()}\n\n{match[4]}"

    return MARKED.sub(write, text)


def outdated() -> list[Path]:
    """The pages whose generated parts differ from the code."""
    return [p for p in pages() if generated(p, text := p.read_text(encoding="utf-8")) != text]


# -- reading the code --------------------------------------------------------------------------------------------


def first_line(thing: Any) -> str:
    """The first sentence or line of a docstring, on one line."""
    text = inspect.cleandoc(thing if isinstance(thing, str) else thing.__doc__ or "")
    return " ".join(text.split("\n\n")[0].split())


def meanings(thing: Any) -> dict[str, str]:
    """What a docstring says of each argument or attribute, in its section `Args:` or `Attributes:`."""
    found: dict[str, str] = {}
    for kind in reversed(inspect.getmro(thing)):
        section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", inspect.cleandoc(kind.__doc__ or ""), re.M)
        for item in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section[1] if section else "", re.M):
            found[item[0]] = " ".join(item[1].split())
    return found


def short(value: Any) -> str:
    """A setting as one writes it: `Global(2, color=SIMCLR)` instead of every field."""
    for name, constant in vars(views).items():
        if name.isupper() and type(constant) is type(value) and constant == value:
            return name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        words, positional, fields = [], True, dataclasses.fields(value)
        usual = type(value)() if all(f.default is not dataclasses.MISSING for f in fields) else None
        for field in fields:
            given = getattr(value, field.name)
            required = field.default is dataclasses.MISSING
            if required or field.name == "count" or given != getattr(usual, field.name, field.default):
                positional = positional and (required or field.name == "count")
                words.append(short(given) if positional else f"{field.name}={short(given)}")
            else:
                positional = False
        return f"{type(value).__name__}({', '.join(words)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(short, value))}{',' if len(value) == 1 else ''})"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(' '.join(cell.split()).replace('|', '¦') for cell in line)} |" for line in lines)


def linked(page: Path, text: str) -> str:
    """Files of the documentation that a docstring names, as links from the page."""

    def link(match: re.Match[str]) -> str:
        target = ROOT / match[0]
        return f"[{target.stem}]({_relative(target, page)})" if target.exists() else match[0]

    return re.sub(r"\bdocs/[\w/]+\.md", link, text)


def _relative(target: Path, page: Path) -> str:
    up = len(page.parent.relative_to(ROOT).parts)
    common = 0
    here, there = page.parent.relative_to(ROOT).parts, target.relative_to(ROOT).parts
    while common < min(len(here), len(there)) and here[common] == there[common]:
        common += 1
    return "/".join([".."] * (up - common) + list(there[common:]))


def module_of(method: str) -> Any:
    return sys.modules[methods.get(method).__module__]


def regularizer_types() -> dict[str, type[Regularizer]]:
    """The package's regularizers by name."""
    own = [kind for kind in Regularizer.__subclasses__() if kind.__module__.startswith("manyviews.")]
    return {kind.__name__.lower(): kind for kind in sorted(own, key=lambda k: k.__name__)}


# -- parts of a method's page ------------------------------------------------------------------------------------


def settings_table(page: Path, name: str = "") -> str:
    """Name, default and meaning of each setting of a method, of a regularizer, or of a part of a recipe."""
    name = name or page.stem
    if name in methods.names():
        kind: type = methods.get(name)
        defaults = {k: p.default for k, p in settings(kind).items()}
    else:
        kind = {**regularizer_types(), **RECIPE_PARTS}[name]
        defaults = {f.name: f.default for f in dataclasses.fields(kind)}
    parts = {k: first_line(type(v)) for k, v in defaults.items() if type(v) in RECIPE_PARTS.values()}
    told = parts | meanings(kind)
    missing = [k for k in defaults if k not in told]
    if missing:
        raise ValueError(f"The docstring of {kind.__name__} does not say what {', '.join(missing)} is")
    prefix = f"{name}." if name in RECIPE_PARTS and name not in ("recipe", "stage") else ""
    return table(
        ["setting", "default", "meaning"],
        ([f"`{prefix}{k}`", _default(value), linked(page, told[k].rstrip("."))] for k, value in defaults.items()),
    )


def _default(value: Any) -> str:
    if value in (inspect.Parameter.empty, dataclasses.MISSING):
        return "required"
    return f"`{short(value)}`"


RECIPE_PARTS = {
    "recipe": Recipe,
    "data": Data,
    "optimizer": Optimizer,
    "step": Step,
    "monitor": Monitor,
    "stage": Stage,
}


@dataclasses.dataclass(frozen=True)
class Told:
    """What a recipe's docstring says: what it is, its command, and the hardware, time and numbers to expect."""

    what: str
    command: str
    expectation: str


def told(recipe: str) -> Told:
    what, *rest = recipes.describe(recipe).split("\n\n")
    is_command = [bool(re.match(r"(manyviews|torchrun) ", part)) for part in rest]
    prose = [" ".join(part.split()) for part, command in zip(rest, is_command, strict=True) if not command]
    commands = [part for part, command in zip(rest, is_command, strict=True) if command]
    return Told(" ".join(what.split()), (commands or [""])[0], " ".join(prose))


def recipe_table(page: Path) -> str:
    """A row for each recipe of the page's method, regularizer or family, and the commands of some of them."""
    names = recipes_of(page.stem)
    rows = []
    for name in names:
        recipe, says = every_recipe()[name], told(name)
        words = [f"`{name}`", says.what, recipe.backbone.name, f"{recipe.epochs:g}", str(recipe.data.batch_size)]
        rows.append([*words, linked(page, says.expectation) or "-"])
    sizes = ("cifar10", "photos", "cpu_small", "imagenet", "rescue")
    shown = [n for size in sizes for n in names if n.endswith(f"_{size}")]
    commands = "\n".join(told(name).command for name in shown[:3] if told(name).command)
    head = ["recipe", "what it is", "backbone", "epochs", "batch", "hardware and expectation"]
    return table(head, rows) + f"\n\n```bash\n{commands}\n```"


@cache
def every_recipe() -> dict[str, Recipe]:
    """All recipes by name: building them for each page anew takes half of the time of this program."""
    return {name: recipes.get(name) for name in recipes.names()}


def recipes_of(name: str) -> list[str]:
    """The recipes of a method in the order of its file, those with a regularizer, or those of a file of recipes."""
    if name == "photos":
        return [r for r in recipes.names() if r.startswith(f"{name}_")]
    if name in methods.names():
        found = [r for r, recipe in every_recipe().items() if recipe.method.name == name]
    else:
        found = [r for r, recipe in every_recipe().items() if any(x.name == name for x in recipe.regularizers)]
    return sorted(found, key=lambda r: (r.endswith("_tiny"), not r.startswith(name), r))


def figure(page: Path) -> str:
    """The drawing of a method's views, made by docs/figures.py, and its caption."""
    name = page.stem
    caption = "SimCLR's views, and strong ones" if name not in methods.names() else "Views of the default settings"
    return f"![{caption} of two photographs](figures/{name}.png)\n\n*{caption} ([photographs](README.md#figures)).*"


# -- tables over all methods -------------------------------------------------------------------------------------


def method_list(page: Path) -> str:
    """Links to the methods' pages, in one sentence."""
    links = [f"[{n}]({_relative(METHODS / f'{n}.md', page)})" for n in methods.names()]
    return textwrap.fill(f"{', '.join(links)}.", 120, break_long_words=False, break_on_hyphens=False)


def method_table(page: Path) -> str:
    """A row for each method: its family, its idea, and the first sentence of its page on when to use it."""
    rows = []
    for name in methods.names():
        idea = first_line(module_of(name)).partition(": ")[2]
        rows.append([f"[{name}]({name}.md)", family(name), idea.rstrip("."), when_to_use(name)])
    return table(["method", "family", "idea", "when to use it"], rows)


def family(name: str) -> str:
    """The files of `manyviews.objectives` that a method's objectives come from, and those of methods it builds on."""
    own = {o for o in vars(objectives).values() if inspect.isfunction(o)}
    modules = [sys.modules[kind.__module__] for kind in methods.get(name).__mro__ if issubclass(kind, methods.Method)]
    used = [v for module in modules for v in vars(module).values() if inspect.isfunction(v) and v in own]
    return ", ".join(dict.fromkeys(f.__module__.rpartition(".")[2] for f in used))


def when_to_use(name: str) -> str:
    """The first paragraph of the section `When to use it`."""
    text = (METHODS / f"{name}.md").read_text(encoding="utf-8")
    found = re.search(r"^## When to use it\n\n(.+?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise ValueError(f"docs/methods/{name}.md needs a section '## When to use it'")
    return " ".join(found[1].split())


def recipe_index(page: Path) -> str:
    rows = ([f"[{n}]({n}.md)", ", ".join(f"`{r}`" for r in recipes_of(n))] for n in methods.names())
    return table(["method", "recipes"], rows)


def works_with(page: Path) -> str:
    """What each method was tried with: every cell is the outcome of building it, or of one step of its tiny recipe."""

    def mark(works: bool) -> str:
        return "yes" if works else "-"

    # A required setting is a weight.
    regularizers = {
        name: kind(**{f.name: 1.0 for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING})
        for name, kind in regularizer_types().items()
    }
    rows = []
    for name in methods.names():
        kind = methods.get(name)
        built = {family: tries(lambda f=family, k=kind: k(encoder(f))) for family in ENCODERS}
        model = next(m for m in built.values() if m is not None)
        cells = [
            mark(built["ResNet"] is not None),
            mark(built["ViT"] is not None),
            mark(built["ConvNeXt"] is not None),
            mark("tasks" in settings(kind)),
            mark(any(v.name == "local" for v in model.views) or "tasks" in settings(kind)),
            *(mark(tries(lambda m=model, r=r: Regularized(m, (r,))) is not None) for r in regularizers.values()),
            mark(saves_memory(name)),
        ]
        rows.append([f"[{name}]({_relative(METHODS / f'{name}.md', page)})", *cells])
    recomputed = "`step.backward=recompute` saves memory"
    head = ["method", "ResNet", "ViT", "ConvNeXt", "tasks", "multi-crop", *regularizers, recomputed]
    return table(head, rows)


ENCODERS = {"ResNet": "resnet18", "ViT": "vit_tiny_patch16_224", "ConvNeXt": "convnextv2_atto"}


@cache
def encoder(family: str) -> backbones.Encoder:
    """An encoder without memory for its weights."""
    with torch.device("meta"):
        return backbones.Encoder(ENCODERS[family])


def tries(build: Callable[[], Any]) -> Any:
    """What is built, or None if it is refused."""
    try:
        with torch.device("meta"):
            return build()
    except UserError:
        return None


def saves_memory(name: str) -> bool:
    """Whether a step of the method's tiny recipe holds less for its backward pass when views are made again in it."""
    return most_held(name, "recompute") < 0.9 * most_held(name, "per_view")


def most_held(name: str, backward: Backward) -> int:
    """The most bytes that autograd holds at one time during a step."""
    recipe = recipes.get(f"{name}_tiny")
    net = backbones.Encoder(recipe.backbone.name, **recipe.backbone.settings)
    method = methods.get(name)(net, **recipe.method.settings).train()
    weights = {p.untyped_storage().data_ptr() for p in method.parameters()}
    held: Counter[tuple[int, int]] = Counter()
    most = 0

    class Held:
        def __init__(self, x: Tensor) -> None:
            nonlocal most
            self.x, memory = x, x.untyped_storage()
            self.key = memory.data_ptr(), 0 if memory.data_ptr() in weights else memory.nbytes()
            held[self.key] += 1
            most = max(most, sum(size for (_, size), n in held.items() if n))

        def __del__(self) -> None:
            held[self.key] -= 1

    batch = pictures()
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda h: h.x):
        for terms in method.loss(views.Views(batch, method.views, backward=backward), Progress(3, 20, 5)):
            torch.stack([*terms.values()]).sum().backward()
            del terms
    return most


# -- tables of the reference -------------------------------------------------------------------------------------


def view_types() -> list[type[views.View]]:
    def below(kind: type) -> Iterator[type]:
        for sub in kind.__subclasses__():
            yield sub
            yield from below(sub)

    kinds = [k for k in below(views.View) if k.__module__.startswith("manyviews.")]
    return [k for k in dict.fromkeys(kinds) if not inspect.isabstract(k) and _has_defaults(k)]


def _has_defaults(kind: type) -> bool:
    return all(f.default is not dataclasses.MISSING for f in dataclasses.fields(kind))  # type: ignore[arg-type]


def view_table(page: Path) -> str:
    rows = []
    for kind in view_types():
        made = kind()
        row = [f"`{getattr(made, field)}`" if hasattr(made, field) else "-" for field in ("count", "size", "area")]
        rows.append([f"`{kind.__name__}`", *row, first_line(kind)])
    return table(["view", "count", "size", "area", "what it is"], rows)


def hook_table(page: Path) -> str:
    """What a view type may override, first of any view and then of crops."""
    found: dict[str, str] = {}
    for base in (views.View, views.Crop):
        hooks = {k: v for k, v in vars(base).items() if k[0] != "_" and (callable(v) or isinstance(v, property))}
        found = {k: first_line(v) for k, v in hooks.items()} | found
    owners = {hook: [f"`{k.__name__}`" for k in view_types() if hook in vars(k)] for hook in found}
    rows = ([f"`{hook}`", says, ", ".join(owners[hook])] for hook, says in found.items() if owners[hook])
    return table(["hook", "what it decides", "overridden by"], rows)


def class_table(page: Path, *modules: str) -> str:
    """The public classes and functions of modules, with the first line of each docstring."""
    rows = []
    for path in modules:
        module = importlib.import_module(path)
        names = getattr(module, "__all__", None) or [
            k for k, v in vars(module).items() if k[0] != "_" and getattr(v, "__module__", "") == path
        ]
        things = [(k, getattr(module, k)) for k in names]
        rows += [[f"`{k}`", first_line(v)] for k, v in things if inspect.isclass(v) or inspect.isfunction(v)]
    return table(["name", "what it is"], rows)


def protocol_types() -> dict[str, type[protocols.Protocol]]:
    return {name: kind for name, kind in protocols.known().items() if kind.__module__.startswith("manyviews.")}


def protocol_table(page: Path) -> str:
    """What each protocol does, what it looks at, and whether its result depends on a seed."""
    kinds = protocol_types().items()
    rows = ([f"`{name}`", first_line(kind), kind.sees, "yes" if kind.seeded else "-"] for name, kind in kinds)
    return table(["protocol", "what it does", "looks at", "seeded"], rows)


def protocol_settings(page: Path) -> str:
    """The settings of each protocol that has some, or those that differ from the protocol it is derived from."""
    known, rows = protocol_types(), []
    for name, kind in known.items():
        base = next((b for b in kind.__mro__[1:] if b in known.values()), None)
        inherited = {f.name: f.default for f in dataclasses.fields(base)} if base else {}
        own = [f for f in dataclasses.fields(kind) if f.name not in inherited or f.default != inherited[f.name]]
        words = [f"as `{base.name}`"] if base else []
        rows.append([f"`{name}`", ", ".join([*words, *(f"`{f.name}={short(f.default)}`" for f in own)])])
    return table(["protocol", "settings"], (row for row in rows if row[1]))


def paper_tables(page: Path, paper: str) -> str:
    """A table for each table of a paper: its rows, the training of each, and the numbers that are printed."""
    found: dict[str, list[list[str]]] = {}
    titles: dict[str, str] = {}
    for row in papers.under(paper):
        where = row.name.rpartition(".")[0]
        titles.setdefault(where, row.where.rpartition(",")[0])
        sweeps = [step for step in row.steps if isinstance(step, papers.Sweep)]
        trainings = [*([] if row.run is None else [row.run]), *(step.training for step in sweeps)]
        published = [f"`{step.weights}`" for step in row.steps if isinstance(step, papers.Diagnose)]
        run = row.absent or ", ".join([*map(_trained, trainings), *published])
        run += " Sweeps " + ", ".join(f"`{path}`" for step in sweeps for path in step.vary) + "." if sweeps else ""
        found.setdefault(where, []).append([f"`{row.name}`", row.words, run, _printed(row)])
    head = ["row", "what it is", "run", "the paper's numbers"]
    name = papers.TITLES[paper].partition(" (")[0]
    return "\n\n".join(f"### {name}, {titles[where]}\n\n{table(head, rows)}" for where, rows in found.items())


def _trained(training: papers.Training) -> str:
    """A training in a cell: its recipe and what is changed."""
    changes = [] if training.data == "imagenet" else [f"on {papers.SETS[training.data].title}"]
    changes += [] if training.epochs is None else [f"{training.epochs:g} epochs"]
    changes += ["other settings"] if training.settings else []
    return f"`{training.recipe}`{' (' + ', '.join(changes) + ')' if changes else ''}"


def _printed(row: papers.Row) -> str:
    """The numbers of a row, by set."""
    words = []
    for step in row.steps:
        known = [f"{label(step, key)} {value:g}" for key, value in step.printed.items() if value is not None]
        words += [f"{papers.SETS[step.data].title}: {', '.join(known)}"] if known else []
    words += [] if row.hours is None else [f"{row.hours:g} hours"]
    return "; ".join(words) or "-"


def set_table(page: Path) -> str:
    """The sets of images that rows need."""
    rows = ([f"`{k}`", v.title, f"{v.images:,}", v.where, v.layout] for k, v in papers.SETS.items())
    return table(["`--data`", "set", "training images", "from", "folder NAME"], rows)


def format_table(page: Path) -> str:
    """The ways to write an encoder."""
    rows = (
        [f"`{name}`", found.about[0].upper() + found.about[1:], "yes" if found.sizes else "-"]
        for name, found in weights.FORMATS.items()
    )
    return table(["format", "what it is, and what loads it", "`--dynamic-size`"], rows)


def image_table(page: Path) -> str:
    """The kinds of image files that are read, and those that are not."""
    rows = [
        [one.name, " ".join(f"`{e}`" for e in one.endings), f"`{one.extra}`" if one.extra else "-", one.reads]
        for one in formats.FORMATS
    ]
    by_kind: dict[str, list[str]] = {}
    for ending, kind in formats.UNREAD.items():
        by_kind.setdefault(kind, []).append(f"`{ending}`")
    rows += [[kind, " ".join(endings), "", "not read"] for kind, endings in by_kind.items()]
    return table(["kind", "endings", "extra", "what is read"], rows)


def verb_table(page: Path) -> str:
    from manyviews.cli import VERBS

    return table(["verb", "what it does"], ([f"`{name}`", first_line(verb)] for name, verb in VERBS.items()))


def fault_table(page: Path) -> str:
    """Faults, how often each was injected, and the test: the counts that `make test-faults` has written."""
    found = json.loads((ROOT / "benchmarks" / "faults.json").read_text(encoding="utf-8"))
    rows = [
        (row["fault"], f"{row['injected']:,}", f"{row['injected'] - row['lost']:,}", f"{row['lost']:,}", row["test"])
        for row in found
    ]
    return table(("fault", "injected", "survived", "lost", "test"), rows)


def tree(page: Path) -> str:
    """The package's folders and files, each with the first line of its docstring."""
    found = []
    for module in pkgutil.iter_modules(manyviews.__path__):
        if not module.name.startswith("_"):
            spec = module.module_finder.find_spec(module.name, None)  # type: ignore[call-arg]
            source = Path(str(spec and spec.origin)).read_text(encoding="utf-8")
            says = first_line(ast.get_docstring(ast.parse(source)) or "")
            title, _, rest = says.partition(": ")
            says = rest if title.lower().removeprefix("a ") == module.name.lower() else says
            says = re.split(r"(?<=[.;]) ", says)[0].rstrip(".;")
            while len(says) > 98 and ", " in says:
                says = says.rpartition(", ")[0]
            says = says[:1].upper() + says[1:]
            found.append((not module.ispkg, f"{module.name}{'/' if module.ispkg else '.py'}", says))
    lines = [f"  {name:<17} {says}".rstrip() for _, name, says in sorted(found)]
    return "\n".join(["```text", "manyviews/", *lines, "```"])


def source(page: Path, name: str) -> str:
    """A class as it stands in the repository, without its docstring, or a function with it."""
    module, _, attribute = name.rpartition(".")
    kind = getattr(importlib.import_module(module), attribute)
    lines = inspect.getsource(kind).splitlines()
    body = ast.parse("\n".join(lines)).body[0]
    if isinstance(body, ast.ClassDef) and ast.get_docstring(body):
        first = body.body[0]
        del lines[first.lineno - 1 : (first.end_lineno or first.lineno) + 1]
    return "\n".join(["```python", *lines, "```"])


def scale_table(page: Path, name: str) -> str:
    """A table of scale_tables.py."""
    table: str = runpy.run_path(str(DOCS / "scale_tables.py"))[name](page)
    return table


PARTS: Mapping[str, Callable[..., str]] = {
    "settings": settings_table,
    "recipes": recipe_table,
    "figure": figure,
    "method-list": method_list,
    "methods": method_table,
    "recipe-index": recipe_index,
    "works-with": works_with,
    "views": view_table,
    "hooks": hook_table,
    "names": class_table,
    "protocols": protocol_table,
    "protocol-settings": protocol_settings,
    "papers": paper_tables,
    "sets": set_table,
    "verbs": verb_table,
    "formats": format_table,
    "images": image_table,
    "faults": fault_table,
    "tree": tree,
    "source": source,
    "scale": scale_table,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the generated parts of the pages.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    check = parser.parse_args().check
    for page in outdated():
        print(f"{page.relative_to(ROOT)} is out of date: run `make docs`." if check else page.relative_to(ROOT))
        if not check:
            page.write_text(generated(page, page.read_text(encoding="utf-8")), encoding="utf-8")
    return bool(check and outdated())


if __name__ == "__main__":
    sys.exit(main())
