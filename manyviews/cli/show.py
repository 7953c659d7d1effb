"""Verbs that show what a run is, what it learned, and what there is to choose from."""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Literal

import manyviews as mv
from manyviews.cli._about import about
from manyviews.cli._options import (
    Count,
    DataSet,
    Images,
    Json,
    Labels,
    NewFolder,
    RunFolder,
    RunFolders,
    RunOrModel,
    facts,
    write_json,
    wrote,
)
from manyviews.cli._parser import Arg
from manyviews.errors import UserError, printable


def show(run: RunOrModel, /, settings: bool = False, json: Json = None) -> None:
    """Show what a run or a model is, how far it is, and how good it is.

    For example:
      manyviews show runs/first
      manyviews show models/first
      manyviews show runs/first --settings

    Args:
        settings: Print every setting with its dotted path.
    """
    from manyviews.reporting import summary
    from manyviews.weights.model import described, is_model

    if is_model(run):
        told = described(run)
        if settings:
            for path, value in summary.flat(told):
                print(printable(f"{path}={value}"))
        else:
            summary.show_model(told)
        return write_json(json, told)
    found = mv.Run(run)
    if settings:
        for path, value in summary.settings(found.recipe):
            print(printable(f"{path}={value}"))
    else:
        summary.show_run(found)
    write_json(json, facts(found))


def report(
    runs: RunFolders,
    /,
    out: NewFolder,
    data: DataSet = None,
    labels: Labels = None,
    queries: DataSet = None,
    images: Count = 10_000,
    seed: int = 0,
    json: Json = None,
) -> None:
    """Write a page about runs: how they trained, how good they are, what they see. It opens from disk.

    For example:
      manyviews report runs/first --out page
      manyviews report runs/first runs/second --out both --data labeled/ --queries mine/

    Args:
        runs: Folders of runs; several are shown side by side.
        out: A new or empty folder; open its index.html.
        data: Images for the map, the galleries and the views; those of the first run by default.
        queries: Your own images, shown with their nearest neighbors.
        images: How many images the map shows at most.
        seed: Seed of the map.
    """
    path = mv.report(runs, out, data=data, labels=labels, queries=queries, images=images, seed=seed)
    wrote(path)
    write_json(json, {"file": str(path)})


def subspaces(
    run: RunFolder,
    data: Images,
    /,
    out: NewFolder,
    labels: Labels = None,
    baseline: Annotated[Path | None, Arg("RUN")] = None,
    json: Json = None,
) -> None:
    """Show what a MAST run learned about its augmentations: masks, correlations, invariances, uncertainties.

    For example:
      manyviews subspaces runs/mast labeled/ --out subspaces/
      manyviews subspaces runs/mast labeled/ --baseline runs/vicreg --out beside/

    Args:
        out: A new folder, for plots and subspaces.json.
        baseline: Another run, such as one of vicreg, whose invariance is drawn next to that of the subspaces.
    """
    found = mv.subspaces(run, data, out, labels, baseline=baseline)
    print(f"Wrote {len(list(out.glob('*.png')))} plots and subspaces.json to {printable(str(out))}.")
    print(f"The most diverse augmentations first: {printable(', '.join(found['order']))}.")
    if found["bad"]:
        where, reason = found["bad"][0]
        print(printable(f"Left out {len(found['bad'])} images that cannot be read (the first: {where}: {reason})."))
    write_json(json, found)


def list_(
    what: Annotated[Literal["methods", "recipes", "views", "protocols", "backbones"], Arg("KIND")],
    name: Annotated[str | None, Arg("NAME")] = None,
    /,
    match: Annotated[str, Arg("PATTERN")] = "*",
    json: Json = None,
) -> None:
    """List methods, recipes, views, protocols or backbones, or say everything about one of them.

    For example:
      manyviews list recipes
      manyviews list recipes photos_cpu_small
      manyviews list backbones "vit_*"

    Args:
        what: methods, recipes, views, protocols or backbones.
        name: Say everything about this one: what it is, its settings, and what to type. A pattern lists what matches.
        match: List only names that match this pattern, such as "vit_*".
    """
    if name is not None and not set(name) & set("*?["):
        lines, found = about(what, name)
        print("\n".join(lines))
        write_json(json, found)
        return
    pattern = match if name is None else name
    listed = {k: v for k, v in _catalog(what, pattern).items() if fnmatch(k, pattern)}
    if not listed:
        raise UserError(f"There are no {what} that match '{pattern}'.")
    wide = max(map(len, listed))
    for key, words in listed.items():
        print(f"{key:{wide}}  {words}".rstrip())
    print(f"\n`manyviews list {what} NAME` says more about one.", file=sys.stderr)
    write_json(json, listed)


def _catalog(what: str, match: str) -> dict[str, str]:
    """Names, with a line about each."""

    def first(text: str | None) -> str:
        return (text or "").strip().splitlines()[0]

    if what == "methods":
        from manyviews import methods

        return {n: first(methods.describe(n)) for n in methods.names()}
    if what == "recipes":
        from manyviews import recipes

        return {n: first(recipes.describe(n)) for n in recipes.names()}
    if what == "views":
        from manyviews.settings.known import derived_names, find
        from manyviews.views import View

        return {name: first(find(name).__doc__) for name in derived_names(View)}
    if what == "protocols":
        from manyviews.evaluation import protocols

        return {n: first(p.__doc__) for n, p in protocols.known().items()}
    from manyviews import backbones

    return dict.fromkeys(backbones.names(match), "")
