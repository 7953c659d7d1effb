"""Pretrain a backbone on unlabeled images."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from manyviews import distributed, machine, recipes
from manyviews.data import Reading, Source, load_canvases, mean_and_std, measured, read_as
from manyviews.engine.build import build_method, check, check_colors, check_sizes
from manyviews.engine.folder import RunFolder, create
from manyviews.engine.loop import train
from manyviews.errors import UserError, say
from manyviews.methods import Method
from manyviews.progress import progress
from manyviews.regularizers import canvas_size, inner
from manyviews.reporting import plots
from manyviews.reporting.views import titled, views_of
from manyviews.settings import Data, Recipe, check_saved, override
from manyviews.verbs._common import opened, tell
from manyviews.verbs.run import Run


def pretrain(
    data: Any,
    recipe: str | Recipe,
    *,
    epochs: float | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    captions: Any = None,
) -> Run:
    """Pretrain a backbone on unlabeled images.

    Args:
        data: a folder, Parquet or tar files, a URL, a data set, arrays, or "demo": see `manyviews.data.open_source`.
        recipe: a name (`manyviews list recipes`), or a recipe of your own.
        epochs: passes over the images; the recipe's if None.
        settings: dotted paths and new values, such as `{"optimizer.lr": 0.1, "method.temperature": 0.2}`.
        out: a new or empty folder for the run; `runs/<recipe>-<date>` if None.
        captions: for methods that read them, if they are not where `manyviews.data.open_source` finds them.

    Raises:
        UserError: bad input.
        engine.Stopped: interrupted by SIGINT or SIGTERM; the run is saved and can be resumed.
    """
    chosen = changed(recipe, epochs, settings or {})
    source = opened(data, captions=captions)
    device = distributed.start()
    chosen, source = fitted(chosen, source)
    # Check everything first: a run that cannot start must leave no folder behind.
    check(chosen, source)
    method = build_method(chosen)
    check_sizes(method, chosen)
    tell(source, check_colors(method, chosen))
    folder = None
    if distributed.rank() == 0:
        folder = create(None if out is None else Path(out), chosen, facts_of(data, captions, source, device)).path
        draw_views(folder, method, chosen, source)
    folder = cast(Path, distributed.share(folder))
    train(method, chosen, source, folder)
    return finish(folder)


def fitted(recipe: Recipe, source: Source) -> tuple[Recipe, Source]:
    """The recipe and the source with how this source's files are read: see `settings.Data`.

    What is measured once, black and white, mean and standard deviation, is written into the recipe and told.

    Raises:
        UserError: canvases of other channels or another range than the recipe's, or a mean or std of another length.
    """
    data, count = recipe.data, recipe.data.reading.count
    if source.canvases is not None:
        reading = _of_canvases(source, data)
    else:
        wanted: Literal["type", "auto"] = "auto" if data.range == "auto" else "type"
        found = measured(source, data.reading, wanted, "--set data.range={}") if distributed.rank() == 0 else None
        reading, notes = cast(tuple[Reading, list[str]], distributed.share(found))
        tell(source, notes)
    seen = read_as(source, reading)
    data = replace(data, channels=reading.channels, range=reading.range or "type")
    missing = [name for name in ("mean", "std") if len(getattr(data, name)) != count]
    for name in missing:
        if len(getattr(data, name)) != 3:
            raise UserError(f"data.{name} has {len(getattr(data, name))} numbers for {count} channels.")
    if missing:
        with progress("mean and std") as update:
            got = mean_and_std(seen, reading, update) if distributed.rank() == 0 else None
        mean, std, images = cast(tuple[tuple[float, ...], tuple[float, ...], int], distributed.share(got))
        new = {name: value for name, value in (("mean", mean), ("std", std)) if name in missing}
        data = replace(data, **cast(Any, new))
        shown = "; ".join(f"{name} {', '.join(f'{v:.3g}' for v in value)}" for name, value in new.items())
        tell(source, [f"Measured on {images} images of {source.name}, in [0, 1]: {shown}."])
        if 1.0 in std:
            tell(source, [f"Band {std.index(1.0)} of {source.name} is the same everywhere."])
    backbone = recipe.backbone
    if count != 3:
        backbone = replace(backbone, settings={**backbone.settings, "in_chans": count})
    return replace(recipe, data=data, backbone=backbone), seen


def _of_canvases(source: Source, data: Data) -> Reading:
    """How ready-made canvases were read, if that is what the recipe asks for."""
    reading, wanted = source.reading, data.reading
    other_bands = isinstance(wanted.channels, tuple) and wanted.channels != reading.channels
    if reading.count != wanted.count or other_bands:
        raise UserError(
            f"The canvases of {source.name} hold {reading.words}, and the recipe wants {wanted.words}: set "
            f"data.channels={reading.count}, or prepare the images with --channels {wanted.count}."
        )
    if wanted.range is not None and wanted.range != reading.range:
        raise UserError(
            f"The canvases of {source.name} were prepared with another range than data.range={wanted.range}: leave it "
            "out, or prepare the images again with --range."
        )
    return reading


def changed(recipe: str | Recipe, epochs: float | None, settings: Mapping[str, Any]) -> Recipe:
    """The recipe, or the recipe of that name, with other epochs and settings, every default written out.

    Raises:
        UserError: no such recipe or setting (with the nearest name), or a value of the wrong type or that JSON cannot
            hold.
    """
    chosen = recipes.get(recipe) if isinstance(recipe, str) else recipe
    if epochs is not None:
        chosen = override(chosen, "epochs", epochs)
    for path, value in settings.items():
        chosen = override(chosen, path, value)
    chosen = recipes.resolve(chosen)
    check_saved(chosen)
    return chosen


def facts_of(data: Any, captions: Any, source: Source, device: torch.device) -> dict[str, Any]:
    """What a new run's folder says of it, beside its recipe."""
    return {
        "data": address(data),
        **({} if captions is None else {"captions": address(captions)}),
        "images": len(source),
        "id": secrets.token_hex(8),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(device),
        "processes": distributed.world_size(),
    }


def finish(folder: Path) -> Run:
    """Plot a finished run, in the first process only."""
    if distributed.rank() == 0:
        try:
            plots.training(Run(folder).log, RunFolder(folder).plots)
        except OSError as e:  # the trained weights are there all the same
            say(f"The plots could not be written to {folder} ({e.strerror}).")
    distributed.barrier()
    return Run(folder)


def draw_views(folder: Path, method: Method, recipe: Recipe, source: Source) -> None:
    """Draw every view of the first images. Looking at this picture saves many a wasted run."""
    canvases, _ = load_canvases(source.subset(np.arange(min(8, len(source)))), canvas_size(method, recipe))
    if len(canvases):
        found = views_of(inner(method), canvases, recipe)
        pictures = [(titled(kind, i, len(xs)), x) for kind, xs in found.items() for i, x in enumerate(xs)]
        RunFolder(folder).plots.mkdir()
        plots.views(pictures, RunFolder(folder).plots / "views.png", recipe.data.mean, recipe.data.std)


def address(data: Any) -> str | None:
    """Where to find the images again; None for images in memory."""
    if isinstance(data, str) and (data.partition(":")[0] == "demo" or "://" in data):
        return "demo:train" if data == "demo" else data  # a folder named demo may be made later
    return str(Path(data).expanduser().absolute()) if isinstance(data, (str, os.PathLike)) else None
