"""The public verbs: pretrain, resume, load, evaluate, embed, export. The command line mirrors them."""

from __future__ import annotations

import json
import os
import platform
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from manyviews import checkpoint, distributed, recipes
from manyviews.backbones import Encoder
from manyviews.data import Source, load_canvases, open_source
from manyviews.engine.build import build_method, check, check_sizes
from manyviews.engine.folder import RunFolder, create
from manyviews.engine.loop import train
from manyviews.errors import UserError, say
from manyviews.methods import Method
from manyviews.pretrained import Pretrained, load, write
from manyviews.progress import progress
from manyviews.regularizers import inner
from manyviews.settings import Recipe, check_saved, override
from manyviews.views import Views

if TYPE_CHECKING:
    from manyviews.evaluation import Features, Report


@dataclass(frozen=True)
class Run:
    """A folder in which a backbone was, or is being, pretrained."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    @cached_property
    def recipe(self) -> Recipe:
        """Every setting of the run."""
        return RunFolder(self.folder).recipe

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The data, the versions and the machine."""
        return RunFolder(self.folder).facts

    @property
    def log(self) -> list[dict[str, Any]]:
        """The numbers logged so far, one dict per line."""
        return RunFolder(self.folder).rows

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the finished run came to; None while it is unfinished."""
        return RunFolder(self.folder).summary

    @property
    def encoder(self) -> Encoder:
        """The pretrained encoder. Raises UserError while the run is unfinished."""
        return cast(Encoder, load(self.folder).encoder)

    @property
    def method(self) -> Method:
        """The method with all its heads, as of the latest checkpoint. Raises UserError when there is none."""
        method = build_method(self.recipe, trained=True)
        checkpoint.load(RunFolder(self.folder).checkpoint, method)
        return method.eval()

    def resume(self) -> Run:
        """Continue after an interruption."""
        return resume(self.folder)

    def evaluate(self, data: Any, test: Any = None, **options: Any) -> Report:
        """See `manyviews.evaluate`."""
        return evaluate(self.folder, data, test, **options)

    def embed(self, data: Any, out: str | Path) -> Path:
        """See `manyviews.embed`."""
        return embed(self.folder, data, out)

    def export(self, format: str, out: str | Path) -> Path:
        """See `manyviews.export`."""
        return export(self.folder, format, out)


def prepare(data: Any, out: str | Path, canvas: int = 256, labels: str | Path | None = None) -> Path:
    """Decode images once, to canvases on disk from which every further run reads without a decode.

    May be interrupted and called again, and called by several processes at once: see `manyviews.data.prepare`.

    Args:
        data: see `manyviews.data.open_source`.
        out: a new folder, or one that was begun in the same way. It is then what other verbs take as their data.
        canvas: side of the canvases in pixels; a recipe's `data.canvas`.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.

    Raises:
        UserError: bad input, or the folder holds something else.
    """
    from manyviews import data as images

    if canvas < 1:
        raise UserError(f"Batch need a side of 1 pixel or more, not {canvas}.")
    with progress("prepare") as update:
        return images.prepare(open_source(data, labels), Path(out), canvas, update)


def pretrain(
    data: Any,
    recipe: str | Recipe,
    *,
    epochs: float | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> Run:
    """Pretrain a backbone on unlabeled images.

    Args:
        data: a folder, Parquet or tar files, a URL, a data set, arrays, or "demo": see `manyviews.data.open_source`.
        recipe: a name (`manyviews list recipes`), or a recipe of one's own.
        epochs: passes over the images; the recipe's if None.
        settings: dotted paths and new values, such as `{"optimizer.lr": 0.1, "method.temperature": 0.2}`.
        out: a new or empty folder for the run; `runs/<recipe>-<date>` if None.

    Raises:
        UserError: bad input.
        engine.Stopped: interrupted by SIGINT or SIGTERM; the run is saved and can be resumed.
    """
    chosen = recipes.get(recipe) if isinstance(recipe, str) else recipe
    if epochs is not None:
        chosen = override(chosen, "epochs", epochs)
    for path, value in (settings or {}).items():
        chosen = override(chosen, path, value)
    chosen = recipes.resolve(chosen)
    check_saved(chosen)
    source = open_source(data)
    device = distributed.start()
    # What cannot run leaves no folder behind.
    check(chosen, source)
    method = build_method(chosen)
    check_sizes(method, chosen)
    folder = None
    if distributed.rank() == 0:
        facts = {
            "data": _address(data),
            "images": len(source),
            "id": secrets.token_hex(8),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(device),
            "processes": distributed.world_size(),
        }
        folder = create(None if out is None else Path(out), chosen, facts).path
        _draw_views(folder, method, chosen, source)
    folder = cast(Path, distributed.share(folder))
    train(method, chosen, source, folder)
    return _finish(folder)


def resume(folder: str | Path, data: Any = None) -> Run:
    """Continue an interrupted run: on the CPU, to the same bits an uninterrupted one ends with.

    Args:
        folder: of the run.
        data: the images; where they were when the run started if None.

    Raises:
        UserError: no run, other images, or another process is at it.
    """
    folder = Path(folder)
    run = RunFolder(folder)
    recipe = run.recipe
    if data is None:
        data = run.facts["data"]
    if data is None:
        raise UserError(f"The images of {folder} were given in memory: pass them to `resume(folder, data=...)` again.")
    if run.complete:
        distributed.start()
        return Run(folder) if (run.plots / "loss.png").exists() else _finish(folder)
    source = open_source(data)
    distributed.start()  # how many processes there are decides what fits
    check(recipe, source)
    train(build_method(recipe, trained=run.checkpoint.exists()), recipe, source, folder)
    return _finish(folder)


def _draw_views(folder: Path, method: Method, recipe: Recipe, source: Source) -> None:
    """What the method looks at: every view of the first images. A look at it saves many a wasted run."""
    from manyviews.report import plots

    canvases, _ = load_canvases(source.subset(np.arange(min(8, len(source)))), recipe.data.canvas)
    if len(canvases):
        data = recipe.data
        views = Views(canvases, method.views, recipe.seed, 0, data.mean, data.std, progress=1.0)  # at their strongest
        pictures = [(f"{kind.name} {i}", x) for kind, i, x in views.each()]
        where = RunFolder(folder).plots
        where.mkdir()
        plots.views(pictures, where / "views.png", recipe.data.mean, recipe.data.std)


def _finish(folder: Path) -> Run:
    """Plots of a finished run, once."""
    if distributed.rank() == 0:
        from manyviews.report import plots

        try:
            plots.training(Run(folder).log, RunFolder(folder).plots)
        except OSError as e:  # what was trained is there all the same
            say(f"The plots could not be written to {folder} ({e.strerror}).")
    distributed.barrier()
    return Run(folder)


def evaluate(
    weights: str | Path | Pretrained,
    data: Any,
    test: Any = None,
    *,
    protocols: Sequence[str] = ("knn", "linear"),
    features: Literal["pooled", "last4", "cls_mean"] = "pooled",
    settings: Mapping[str, Any] | None = None,
    labels: str | Path | None = None,
    test_labels: str | Path | None = None,
    others: Sequence[Any] = (),
    seed: int = 0,
    seeds: int = 1,
    baselines: bool = True,
) -> Report:
    """Judge an encoder on labeled images, next to an untrained encoder and raw pixels.

    Args:
        weights: a run folder or weights: see `load`.
        data: labeled images, to train the probes on.
        test: labeled images to test on; without, a fifth of `data` by a stable hash.
        protocols: names from `manyviews list protocols`.
        features: of a vision transformer, "last4" are the class tokens of its last four blocks, and "cls_mean" the
            class token and the mean patch token: see `Encoder.features`.
        settings: of the protocols: dotted paths and new values, such as
            `{"finetune.lrs": (0.01, 0.05), "finetune.epochs": 30, "linear_augmented.epochs": 20}`.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.
        test_labels: the same for `test`.
        others: further labeled images of the same classes under other conditions, such as sketches, on which a probe
            that learned on `data` is tried.
        seed: of the untrained encoder, what the protocols draw, and the intervals.
        seeds: how often protocols that draw are run; their accuracy is the mean.
        baselines: whether an untrained encoder and raw pixels are evaluated too.

    Returns:
        A report, also written to the run folder's `evaluations` when `weights` is a run.
    """
    from manyviews import evaluation
    from manyviews.evaluation.layers import projector_of

    source = open_source(data, labels)
    held = None if test is None else open_source(test, test_labels)
    loaded = loaded_from(weights)
    folder = Path(weights) if isinstance(weights, (str, os.PathLike)) and Path(weights).is_dir() else None
    projector = None
    if "guillotine" in protocols and folder is not None:
        method = Run(folder).method
        projector = projector_of(inner(method))
    with progress("evaluate") as update:
        report = evaluation.evaluate(
            loaded.encoder,
            source,
            held,
            protocols=tuple(protocols),
            features=features,
            settings=settings,
            others=[open_source(other) for other in others],
            projector=projector,
            test_size=loaded.test_size,
            mean=loaded.mean,
            std=loaded.std,
            device=device_here(),
            seed=seed,
            seeds=seeds,
            baselines=baselines,
            cache=None if folder is None else folder / "features",
            progress=update,
        )
    if loaded.note:
        report = replace(report, notes=(loaded.note, *report.notes))
    if folder is not None:
        from manyviews.report import plots

        try:
            where = _numbered(RunFolder(folder).evaluations)
            checkpoint.write_text(where / "report.json", report.to_json())
            plots.evaluation(report, where, source, held)
        except OSError as e:  # the judgment took minutes, and is returned all the same
            say(f"The evaluation could not be written to {folder} ({e.strerror}).")
    return report


def subspaces(run: str | Path | Run, data: Any, out: str | Path, labels: str | Path | None = None) -> dict[str, Any]:
    """What a MAST run learned of its augmentations: numbers, as `subspaces.json`, and plots, in a new folder.

    Args:
        run: a run of the method "mast", or its folder.
        data: images; labels, if they have them, show what each subspace is good for.
        out: a new folder.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.

    Returns:
        The numbers: see `manyviews.evaluation.subspaces.analyze`.

    Raises:
        UserError: another method's run, or `out` exists.
    """
    from manyviews.evaluation import subspaces as numbers
    from manyviews.methods.mast import MAST
    from manyviews.report import subspaces as pictures

    run = run if isinstance(run, Run) else Run(Path(run))
    if run.recipe.method.name != "mast":
        raise UserError(f"{run.folder} is a run of {run.recipe.method.name}: only mast learns subspaces.")
    out = new_file(out)
    source = open_source(data, labels)
    method = run.method
    method = inner(method)
    with progress("subspaces"):
        found = numbers.analyze(
            cast(MAST, method),
            source,
            test_size=run.recipe.test_size,
            mean=run.recipe.data.mean,
            std=run.recipe.data.std,
            device=device_here(),
            seed=run.recipe.seed,
        )
    with checkpoint.new_folder(out) as part:
        checkpoint.write_text(part / "subspaces.json", json.dumps(found))
        pictures.draw(found, part)
    return found


def embed(weights: str | Path | Pretrained, data: Any, out: str | Path, labels: str | Path | None = None) -> Path:
    """Features of every image, as a Parquet file.

    Its columns are `id` (string), `embedding` (a list of float32 per image) and, when the data has labels, `label`.

    Raises:
        UserError: `out` exists, or no image can be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = new_file(out)
    source = open_source(data, labels)
    found = features(weights, source)
    flat = pa.array(found.x.flatten().numpy(), pa.float32())
    columns = {
        "id": pa.array(list(map(_text, found.ids))),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, found.x.shape[1]),
    }
    if found.labels is not None and source.classes is not None:
        columns["label"] = pa.array([_text(source.classes[i]) for i in found.labels.tolist()])

    def save(part: Path) -> None:
        with part.open("wb") as file:  # pyarrow takes no path that is not valid Unicode
            pq.write_table(pa.table(columns), file)

    checkpoint.write_atomically(out, save)
    return out


def export(weights: str | Path | Pretrained, format: str, out: str | Path) -> Path:
    """Write the encoder in a form that other software loads: see `manyviews.pretrained.FORMATS`.

    Raises:
        UserError: an unknown format, or `out` exists.
    """
    return write(loaded_from(weights), format, new_file(out))


def loaded_from(weights: str | Path | Pretrained) -> Pretrained:
    """What `load` makes of a path, and what is loaded already as it is."""
    return weights if isinstance(weights, Pretrained) else load(weights)


def features(weights: str | Path | Pretrained, source: Source, what: str = "embed") -> Features:
    """Features of all images, with a progress bar named `what`; images that cannot be read are said.

    Raises:
        UserError: no image can be read, or features are not finite.
    """
    from manyviews.evaluation.features import check_finite, extract

    loaded = loaded_from(weights)
    with progress(what) as update:
        found = extract(
            loaded.encoder,
            source,
            test_size=loaded.test_size,
            mean=loaded.mean,
            std=loaded.std,
            device=device_here(),
            progress=update,
        )
    for where, reason in found.bad:
        say(f"Skipped {where}: {reason}")
    check_finite(found.x)
    return found


def machine(device: torch.device) -> str:
    """What a number was measured on, in one line."""
    import torchvision

    threads = torch.get_num_threads()
    cpu = f"{threads} CPU thread{'s' * (threads > 1)}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return (
        f"{where}, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}"
    )


def _text(name: str) -> str:
    """A name that Parquet can hold: file names need not be valid Unicode."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _address(data: Any) -> str | None:
    """Where to find the images again; None for those in memory."""
    if isinstance(data, str) and (data.partition(":")[0] == "demo" or "://" in data):
        return "demo:train" if data == "demo" else data  # a folder called demo may be made later
    return str(Path(data).expanduser().absolute()) if isinstance(data, (str, os.PathLike)) else None


def new_file(out: str | Path) -> Path:
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: give another --out.")
    if not out.absolute().parent.is_dir():
        raise UserError(f"There is no folder {out.absolute().parent} for {out.name}.")
    checkpoint.check_writable(out)
    return out


def _numbered(parent: Path) -> Path:
    """A new folder in `parent`, named by its number."""
    parent.mkdir(exist_ok=True)
    i = 1 + max((int(p.name) for p in parent.iterdir() if p.name.isdigit()), default=0)
    while True:
        try:
            (parent / str(i)).mkdir()
            return parent / str(i)
        except FileExistsError:
            i += 1
