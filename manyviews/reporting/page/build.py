"""Write the folder of a page from runs and images."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manyviews import __version__
from manyviews.checkpoint import check_new, new_folder
from manyviews.data import Source, open_source, spread_out
from manyviews.data.files import only_local, shown
from manyviews.data.folder import PAGE
from manyviews.data.measure import read_as, with_reading
from manyviews.data.source import unlabeled
from manyviews.errors import UserError, printable, say
from manyviews.evaluation.features import Features, extract
from manyviews.evaluation.unlabeled import subspaces as numbers
from manyviews.methods import Method
from manyviews.methods.mast import MAST
from manyviews.progress import Update
from manyviews.regularizers import inner
from manyviews.reporting import summary
from manyviews.reporting.page import atlas as maps
from manyviews.reporting.page import gather, pictures
from manyviews.reporting.page.render import render
from manyviews.settings import Recipe

Facts = dict[str, Any]

IMAGES = 10_000
"""How many images the map shows at most, by default."""

_QUERIES = 24  # of the user's own images, at most
_PATCHED = 6  # images of each set whose patches are shown
_ANALYZED, _SWEPT = 1_000, 100  # images for the analysis of subspaces, and for its augmentations


@dataclass(frozen=True)
class _Where:
    """Where and how the page is written: see `write`."""

    page: Path
    pictures: pictures.Pictures
    most: int
    device: torch.device | str
    seed: int
    progress: Update | None


def write(
    runs: Sequence[Any],
    out: str | Path,
    *,
    data: Any = None,
    labels: Any = None,
    queries: Any = None,
    images: int = IMAGES,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Update | None = None,
) -> Path:
    """Write a page about runs to a new or empty folder: `index.html` and its files, all or nothing.

    Args:
        runs: `manyviews.Run`s, finished or not. The page shows what they have, and how to get the rest.
        out: the folder.
        data: images for the map, galleries, views and patches: see `manyviews.data.open_source`. If None, the first
            run's images, unless they have moved or are on the network; the page then goes without images.
        labels: labels of the data: see `open_source`.
        queries: your own images; up to 24 are looked up among the data. If None, a few images of the data.
        images: how many images the map shows at most, spread over the data.
        device: device on which the encoders compute.
        seed: seed of the map and of the clusters.
        progress: called now and then.

    Returns:
        The page's `index.html`.

    Raises:
        UserError: no run, images that cannot be used, or `out` is not a new or empty folder.
    """
    if not runs:
        raise UserError("No run was named: give at least one run's folder.")
    if images < 2:
        raise UserError(f"A map needs at least 2 images, not {images}.")
    out = Path(out)
    check_new(out, or_empty=True)
    source, why_not = _images(runs, data, labels)
    if source is not None and labels is None and source.by_folder and source.doubt:
        say(f"{source.name}: its folders are not shown as classes, because {source.doubt}. If they are: give --labels.")
        source = replace(source, annotate=unlabeled, by_folder=False)
    first = runs[0].recipe.data.reading
    source = None if source is None else read_as(source, first)
    own = None if queries is None else read_as(open_source(queries), first)
    if own is not None and len(own) > _QUERIES:
        own = own.subset(range(_QUERIES))
    names = gather.names(runs)
    with new_folder(out) as part:
        facts = _numbers(runs, names)
        where = _Where(part, pictures.Pictures(part), images, device, seed, progress)
        facts["images"] = (
            {"why_not": why_not, "map": None, "gallery": [], "mistakes": None, "patches": [], "runs": []}
            | {"own": own is not None, "umap": find_spec("umap") is not None}
            | _views_and_subspaces(runs, source, where)
            | ({} if source is None else _what_encoders_see(runs, names, source, own, where))
        )
        facts["made"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        facts["version"] = __version__
        (part / PAGE).touch()
        (part / "index.html").write_text(render(facts), encoding="utf-8")
        check_new(out, or_empty=True)
    return out / "index.html"


def _images(runs: Sequence[Any], data: Any, labels: Any) -> tuple[Source | None, str]:
    """The images to show, or why there are none."""
    if data is not None:
        return open_source(data, labels), ""
    address = runs[0].facts.get("data")
    if address is None:
        return None, "The images of this run were given in memory, and are gone."
    if "://" in str(address):
        return (
            None,
            f"The images of this run are at {printable(shown(address), 200)}, and are only fetched if you ask.",
        )
    try:
        with only_local("only images on this machine are shown without being asked for."):
            return open_source(address, labels), ""
    except UserError as error:
        if labels is not None:
            raise  # the user asked for labels
        return None, f"The images of this run are not where they were. {printable(error, 300)}"


def _numbers(runs: Sequence[Any], names: Sequence[str]) -> Facts:
    """Everything on the page that needs no image."""
    about = [gather.run_facts(run, name) for run, name in zip(runs, names, strict=True)]
    found = [gather.evaluated(run.folder) for run in runs]
    reports = [evaluated for evaluated, _ in found]
    for i, (facts, (evaluated, remarks)) in enumerate(zip(about, found, strict=True)):
        facts |= {"verdict": None, "tone": "plain", "spectra": [], "numbers": [], "measured": [], "measured_on": ""}
        facts["unlike"] = gather.unlike(i, names, reports)
        facts["warnings"] += remarks
        if evaluated is None:
            continue
        report, parts = evaluated
        facts["measured_on"] = gather.measured_on(runs[i], report)
        kept = summary.kept(runs[i].log)
        text = report.verdict + (f" After its start from weights, {kept}" if kept else "")
        facts["verdict"] = printable(text).replace(" %", "\N{NO-BREAK SPACE}%")
        facts["tone"] = gather.tone(report.verdict)
        facts["spectra"] = [
            {"kind": kind, **{k: part[k] for k in ("dim", "rankme", "spread")}, **_spectrum(part["spectrum"])}
            for kind, part in parts.items()
            if kind != "pixels"
        ]
        facts["numbers"] = [
            {"title": gather.title(p), **{k: score[k] for k in ("value", "low", "high")}}
            for p, score in parts["trained"]["scores"].items()
        ]
        facts["measured"] = [
            {"title": gather.title(p), "name": measure["name"], "value": measure["value"]}
            for p, measure in parts["trained"]["measures"].items()
            if measure["value"] is not None
        ]
    return {
        "runs": about,
        "curves": gather.curves(runs),
        "accuracy": gather.accuracies(about, reports),
        "settings": gather.settings(runs),
    }


def _spectrum(values: Sequence[float]) -> Facts:
    """Singular values relative to the largest, at ranks that are evenly spaced on a logarithmic axis."""
    top = max(values, default=0.0)
    kept = [(i, v) for i, v in enumerate(values, 1) if top > 0 and v > 1e-8 * top]
    if not kept:
        return {"x": [], "y": []}
    chosen = sorted({round(i) for i in np.geomspace(1, len(kept), min(400, len(kept)))})
    return {"x": [kept[i - 1][0] for i in chosen], "y": [gather.rounded(kept[i - 1][1] / top) for i in chosen]}


def _views_and_subspaces(runs: Sequence[Any], source: Source | None, where: _Where) -> Facts:
    """The views of each method, what it rebuilds and the subspaces of MAST, for runs that have a checkpoint."""
    views: list[Facts] = []
    rebuilt: list[Facts] = []
    subspaces: list[Facts] = []
    for i, run in enumerate(runs):
        try:
            method = run.method
        except UserError:
            continue  # stopped before its first checkpoint
        method, recipe = inner(method), run.recipe_now
        if source is not None:
            _add_views(views, i, recipe, method, source, where.pictures)
            found = pictures.reconstructions(recipe, method, source, where.pictures)
            rebuilt += [] if found is None else [{"run": i, **found}]
        if isinstance(method, MAST):
            subspaces.append({"run": i, **_subspaces(method, recipe, source, where.device)})
    return {"views": views, "rebuilt": rebuilt, "subspaces": subspaces}


def _what_encoders_see(
    runs: Sequence[Any], names: Sequence[str], source: Source, queries: Source | None, where: _Where
) -> Facts:
    """The map, the galleries and the patches of the runs with an encoder; or "why_not", why there are none.

    An unfinished run has the encoder of its last checkpoint.
    """
    encoders = {}
    for i, run in enumerate(runs):
        with contextlib.suppress(UserError):
            encoders[i] = run.encoder
    able = list(encoders)
    if not able:
        return {"why_not": "No run has a checkpoint yet: there is no encoder to show."}
    chosen = source if len(source) <= where.most else source.subset(spread_out(len(source), where.most))

    def seen(images: Source, i: int, cache: Path | None) -> Features:
        recipe, progress = runs[i].recipe_now, where.progress
        return extract(
            encoders[i],
            with_reading(images, recipe.data.reading),
            test_size=recipe.test_size,
            mean=recipe.data.mean,
            std=recipe.data.std,
            device=where.device,
            cache=cache,
            progress=None if progress is None else lambda done, total: progress(done, total, f"features: {names[i]}"),
        )

    known = maps.atlas(chosen, [seen(chosen, i, runs[i].folder / "features") for i in able], where.device)
    if len(known.source) < 2:
        return {"why_not": "Fewer than two images could be read: there is nothing to compare."}
    if not all(x.isfinite().all() for x in known.x):
        return {"why_not": "An encoder's features are not finite: its weights are damaged, or its training diverged."}
    own = None if queries is None else (queries, [seen(queries, i, None) for i in able])
    drawn = maps.draw_map(known, [names[i] for i in able], where.page, where.seed, where.progress)
    some = spread_out(len(known.source), _PATCHED).tolist()
    sets = [("images of the map", [(known.source, i) for i in some])]
    if queries is not None:
        sets.append(("your own images", [(queries, i) for i in range(min(_PATCHED, len(queries)))]))
    patches = []
    for title, images in sets:
        rows = []
        for i in able:
            with contextlib.suppress(UserError):  # some networks have no map of features
                recipe = runs[i].recipe_now
                rows.append({"run": i, **pictures.patches(encoders[i], images, recipe, where.device, where.pictures)})
        if rows:
            patches.append({"title": title, "images": [where.pictures.of(*one) for one in images], "rows": rows})
    return {
        "runs": able,
        "source": printable(source.name, 100),
        "total": len(source),
        "map": drawn,
        "gallery": maps.gallery(known, own, where.pictures),
        "mistakes": maps.mistakes(known, where.pictures),
        "patches": patches,
    }


def _add_views(
    groups: list[Facts], i: int, recipe: Recipe, method: Method, source: Source, saver: pictures.Pictures
) -> None:
    """Add the views of a run, or add the run to a group with the same views."""
    key = f"{method.views} {method.masking} {recipe.data} {recipe.seed}"
    for group in groups:
        if group["key"] == key:
            group["runs"].append(i)
            return
    groups.append({"key": key, "runs": [i], "kinds": pictures.views(recipe, method, source, saver)})


def _subspaces(method: MAST, recipe: Recipe, source: Source | None, device: torch.device | str) -> Facts:
    """The subspaces of a MAST run: see `manyviews.evaluation.unlabeled.subspaces`."""
    if source is None:
        weights = method.masks().detach().float().cpu()
        alike = numbers.correlation(weights)
        order = numbers.order(method.subspaces, alike)
        found = {"masks": weights.T.tolist(), "correlation": alike.tolist(), "order": order, "invariance": {}}
    else:
        found = numbers.analyze(
            method,
            with_reading(source, recipe.data.reading),
            test_size=recipe.test_size,
            mean=recipe.data.mean,
            std=recipe.data.std,
            device=device,
            seed=recipe.seed,
            images=_ANALYZED,
            swept=_SWEPT,
        )
    masks = np.array(found["masks"])
    top = float(masks.max(initial=0.0))
    return {
        "names": list(method.subspaces),
        "order": found["order"],
        "top": gather.rounded(top),
        "masks": (255 * masks / max(top, 1e-12)).round().astype(int).tolist(),
        "correlation": [[round(v, 3) for v in row] for row in found["correlation"]],
        "invariance": [
            {"name": name, "strength": sweep["strength"], "values": sweep["values"]}
            | {"lines": sweep["subspaces"], "whole": sweep["all"]}
            for name, sweep in found["invariance"].items()
        ],
    }
