"""Pretrain a backbone on unlabeled images."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch

from manyviews import distributed, launch, machine, methods, recipes
from manyviews.data import Reading, Source, mean_and_std, measured, read_as
from manyviews.engine.build import (
    build_method,
    cautions,
    check,
    check_colors,
    check_sizes,
    check_stages,
    with_fitting_batch,
)
from manyviews.engine.folder import RunFolder, create
from manyviews.engine.loop import train
from manyviews.engine.pace import measure
from manyviews.engine.sharding import check_sharding
from manyviews.errors import UserError, say
from manyviews.methods import Method
from manyviews.progress import outer, progress, seconds
from manyviews.regularizers import canvas_size, inner
from manyviews.reporting import plots
from manyviews.reporting.views import draw_reconstructions, drawn, titled, views_of, words_of
from manyviews.settings import Data, Recipe, check_saved, override, parts
from manyviews.verbs._common import opened, say_once, tell
from manyviews.verbs.auto import AUTO, BUDGET, announced, choose, within
from manyviews.verbs.run import Run
from manyviews.verbs.start import SETTING, settled, start_of, started, write

T = TypeVar("T")


def pretrain(
    data: Any,
    recipe: str | Recipe = AUTO,
    *,
    epochs: float | None = None,
    budget: str | float | None = None,
    init: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    captions: Any = None,
    old: Any = None,
) -> Run:
    """Pretrain a backbone on unlabeled images.

    How long it will take on this machine is measured and said before it starts. When a launcher starts the command
    again (torchrun's `--max-restarts`, a job that SLURM has requeued) and `out` holds the run, it is resumed.

    Args:
        data: a folder, Parquet or tar files, a URL, a data set, arrays, or "demo": see `manyviews.data.open_source`.
        recipe: a name (`manyviews list recipes`), or a recipe of your own. "auto" chooses by number and size of the
            images, their channels, the device and the time, and says why.
        epochs: passes over the images; the recipe's if None.
        budget: how long the run may take: "30m", "2h", or seconds. Its schedule then ends in time, whatever else the
            machine does. Without it "auto" takes half an hour on a processor.
        init: weights to start from: a run folder, a file that `manyviews.load` reads, or "timm:NAME". They bring their
            architecture, mean and standard deviation. A recipe that is given by name then learns more slowly, and its
            new heads learn first, unless `settings` say otherwise; a line tells. Also `backbone.pretrained`.
        settings: dotted paths and new values, such as `{"optimizer.lr": 0.1, "method.temperature": 0.2}`.
        out: a new or empty folder for the run; `runs/<recipe>-<date>` if None.
        captions: for methods that read them, if they are not where `manyviews.data.open_source` finds them.
        old: labeled images of the domain that the weights come from, such as some of ImageNet's. k-NN on them is
            monitored along the run: it tells what is forgotten.

    Raises:
        UserError: bad input.
        engine.Stopped: interrupted by SIGINT or SIGTERM; the run is saved and can be resumed.
    """
    begun = time.monotonic()
    if launch.restarts() and out is not None and RunFolder(Path(out)).started:
        from manyviews.verbs.resume import resume  # which imports this file

        if (place := launch.place()) is None or place.rank == 0:
            say(f"This command was started again, and goes on with the run in {out}.")
        return resume(out, data, captions)
    limit = None if budget is None else seconds(budget)
    if limit is not None and epochs is not None:
        raise UserError("A run has either so many --epochs or a --budget of time: leave one of them out.")
    settings = _with_init(settings or {}, init)
    chosen = changed(_BASE if recipe == AUTO else recipe, epochs, settings)
    if chosen.stages and (recipe == AUTO or limit is not None or chosen.budget is not None):
        raise UserError(
            "A run in stages has epochs for each of them, and no --budget: leave it out, and name the recipe."
        )
    source = opened(data, captions=captions)
    remembered = None if old is None else opened(old)
    device = distributed.start()
    chosen, source = fitted(chosen, source)
    remembered = None if remembered is None else read_as(remembered, chosen.data.reading)
    if isinstance(recipe, str) and recipe != AUTO and "data.batch_size" not in settings:
        asked = chosen.data.batch_size
        chosen = with_fitting_batch(chosen, source)
        if chosen.data.batch_size < asked:
            tell(
                source,
                [f"A batch has {chosen.data.batch_size} images, not {asked}: there are not as many to train on."],
            )
    if recipe == AUTO:
        if limit is None and epochs is None and device.type == "cpu":
            limit = BUDGET
        make = partial(_like, chosen, epochs, settings)
        chosen, text = _first(lambda: choose(make, source, device, limit, begun))
        tell(source, [text])
    elif limit is not None:
        chosen, text = _first(lambda: within(chosen, measure(chosen, source, device), limit, begun))
        tell(source, [text])
    # Check everything first: a run that cannot start must leave no folder behind.
    check(chosen, source)
    check_stages(chosen, source)
    start = start_of(chosen)
    method = build_method(chosen, weights=None if start is None else start.encoder)
    if start is not None:
        before = chosen.adaptation
        chosen, notes = settled(chosen, start, method, settings, named=isinstance(recipe, str))
        tell(source, notes)
        if chosen.adaptation != before:  # it begins when the method is built
            method = build_method(chosen, weights=start.encoder)
    check_sizes(method, chosen)
    check_sharding(method, chosen)
    tell(source, [*check_colors(method, chosen), *cautions(chosen, source)])
    folder = None
    if distributed.rank() == 0:
        facts, begin = facts_of(data, captions, source, device), None
        facts |= {} if old is None else {"old": address(old)}
        if start is not None:
            begin = partial(write, method=method, recipe=chosen)
        folder = create(None if out is None else Path(out), chosen, facts, begin).path
        draw_views(folder, method, chosen, source)
    folder = cast(Path, distributed.share(folder))
    if limit is None and outer() is None:  # a larger work has said how long all of it takes
        each = [part.recipe for part in parts(chosen)]
        expected = _first(lambda: announced(each, [measure(part, source, device) for part in each], device))
        tell(source, [expected] if expected else [])
    train(method, chosen, source, folder, begun if limit else None, remembered, draw_reconstructions)
    return conclude(folder)


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
            hold; or weights to start from that cannot be read.
    """
    chosen = recipes.get(recipe) if isinstance(recipe, str) else recipe
    if epochs is not None:
        chosen = override(chosen, "epochs", epochs)
    for path, value in settings.items():
        chosen = override(chosen, path, value)
    if SETTING in settings:
        chosen, note = started(chosen, settings)
        if note and distributed.rank() == 0:
            say_once(note)
    chosen = recipes.resolve(chosen)
    settled = methods.get(chosen.method.name).settle(chosen.method.settings)
    chosen = replace(chosen, method=replace(chosen.method, settings=settled))
    check_saved(chosen)
    for part in parts(chosen):
        recipes.resolve(part.recipe)
    return chosen


def _with_init(settings: Mapping[str, Any], init: str | Path | None) -> Mapping[str, Any]:
    """The settings, and the weights to start from among them."""
    if init is None:
        return settings
    if SETTING in settings:
        raise UserError(f"--init and --set {SETTING} both say what to start from: leave one of them out.")
    return {**settings, SETTING: str(init)}


_BASE = "photos_cpu_small"  # says how images are read before one is chosen


def _like(base: Recipe, epochs: float | None, settings: Mapping[str, Any], name: str, suits: dict[str, Any]) -> Recipe:
    """The recipe of that name with settings that suit the images, and those that were given; it reads like `base`."""
    recipe = changed(name, epochs, {**suits, **settings})
    alike = {field: getattr(base.data, field) for field in ("channels", "range", "mean", "std")}
    seen = {k: v for k, v in base.backbone.settings.items() if k == "in_chans"}
    backbone = replace(recipe.backbone, settings={**recipe.backbone.settings, **seen})
    return replace(recipe, data=replace(recipe.data, **alike), backbone=backbone)


def _first(compute: Callable[[], T]) -> T:
    """What the first process computes, in all of them."""
    return cast(T, distributed.share(compute() if distributed.rank() == 0 else None))


def facts_of(data: Any, captions: Any, source: Source, device: torch.device) -> dict[str, Any]:
    """What a new run's folder says of it, beside its recipe."""
    return {
        "data": address(data),
        **({} if captions is None else {"captions": captions_address(captions)}),
        "images": len(source),
        "id": secrets.token_hex(8),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(device),
        "processes": distributed.world_size(),
    }


def conclude(folder: Path) -> Run:
    """Plot a finished run, in the first process only."""
    if distributed.rank() == 0:
        try:
            RunFolder(folder).guard()
            plots.training(Run(folder).log, RunFolder(folder).plots)
        except OSError as e:  # the trained weights are there all the same
            say(f"The plots could not be written to {folder} ({e.strerror}).")
    distributed.barrier()
    return Run(folder)


def draw_views(folder: Path, method: Method, recipe: Recipe, source: Source) -> None:
    """Draw images from all over the set, and every view of them. Looking at this picture saves many a wasted run."""
    canvases, originals = drawn(source, 8, canvas_size(method, recipe), recipe.seed)
    if not len(canvases):
        return
    plain, shown = inner(method), []
    words, found = words_of(plain), views_of(plain, canvases, recipe)
    for kind, xs in found.items():
        shown += [(titled(words[kind], i, len(xs)), x) for i, x in enumerate(xs)]
    RunFolder(folder).plots.mkdir(exist_ok=True)
    heading = f"{len(canvases)} of {len(source)} images, drawn at random, and what {recipe.method.name} makes of them"
    plots.views(shown, RunFolder(folder).plots / "views.png", recipe.data.mean, recipe.data.std, originals, heading)


def captions_address(captions: Any) -> str | None:
    """Where to find the captions again: a file, or the name of a column, which is no path."""
    column = isinstance(captions, str) and not Path(captions).expanduser().exists()
    return captions if column else address(captions)


def address(data: Any) -> str | None:
    """Where to find the images again; None for images in memory."""
    if isinstance(data, str) and (data.partition(":")[0] == "demo" or "://" in data):
        return "demo:train" if data == "demo" else data  # a folder named demo may be made later
    return str(Path(data).expanduser().absolute()) if isinstance(data, (str, os.PathLike)) else None
