"""Weights that a run starts from: a run, a file of any library, or timm's. They say their architecture and images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from manyviews import checkpoint
from manyviews.adaptation import Full, Warmed
from manyviews.backbones import Encoder
from manyviews.checkpoint import load_tensors
from manyviews.engine.build import encoder_facts
from manyviews.engine.folder import ENCODER, RECIPE, RunFolder
from manyviews.errors import UserError, printable
from manyviews.methods import Method
from manyviews.regularizers import inner, kinds_of
from manyviews.settings import Component, Recipe, to_json
from manyviews.views import Crop
from manyviews.weights import TIMM, Pretrained, load
from manyviews.weights.unpickle import is_pickle

SETTING = "backbone.pretrained"
"""The setting behind `--init`."""

SLOWER = {"muon": 100.0}
"""By how much the learning rate of a run from weights is lower than the recipe's, if nobody gives one; else 10.

Muon's steps are as long for a small gradient as for a large one: docs/results.md, "Continued pretraining".
"""

WARM = Warmed(1.0, Full(keep_statistics=True))
"""How such a run adapts if nobody says so: its new heads learn for an epoch before the encoder moves."""

# Settings of a backbone that are no part of its architecture: a recipe's own are kept with weights from elsewhere.
_NOISE = ("drop_path_rate", "drop_rate", "proj_drop_rate", "attn_drop_rate", "patch_drop_rate")


def started(recipe: Recipe, settings: Mapping[str, Any]) -> tuple[Recipe, str]:
    """The recipe with the architecture, mean and std of the weights that it starts from, and a sentence about it.

    A recipe that starts from nothing stays as it is.

    Args:
        recipe: its setting `backbone.pretrained` is True for timm's weights of the recipe's own backbone, "timm:NAME"
            for others of timm's, or the path of a run folder or of a file that `manyviews.load` reads.
        settings: the user's own, by dotted path. They replace what the weights say, except for the architecture;
            `backbone.name` names it where a file does not.

    Raises:
        UserError: there is no such file, nothing says its architecture, or `backbone.name` names another one.
    """
    given = recipe.backbone.settings.get("pretrained")
    if not given:
        return recipe, ""
    own = {k: v for k, v in recipe.backbone.settings.items() if f"backbone.{k}" in settings and k != "pretrained"}
    if isinstance(given, str) and given.startswith(TIMM):
        name = given.removeprefix(TIMM)
        if settings.get("backbone.name", name) != name:
            raise UserError(f"{given} names the backbone already: leave out {settings['backbone.name']}.")
        noise = {k: v for k, v in recipe.backbone.settings.items() if k in _NOISE}
        recipe = replace(recipe, backbone=Component(name, {**noise, **own, "pretrained": True}))
        given = True
    if given is True:
        import timm

        found: Any = timm.models.get_pretrained_cfg(recipe.backbone.name)
        images = {} if found is None else {"mean": tuple(found.mean), "std": tuple(found.std)}
        recipe, seen = _with_images(recipe, images, settings)
        return recipe, f"Starts from timm's weights of {recipe.backbone.name}{seen}."
    path = Path(str(given)).expanduser().absolute()
    weights, encoder = _read(path, own, settings.get("backbone.name"))
    spec = {k: v for k, v in encoder.spec.items() if k != "name"}
    noise = {k: v for k, v in recipe.backbone.settings.items() if k in _NOISE and k not in spec}
    wanted = {**noise, **spec, **own, "pretrained": str(path)}
    count = recipe.data.reading.count
    if wanted.get("in_chans", 3) != count:
        wanted["in_chans"] = count  # building it adapts the first convolution, or says why it cannot
    name = encoder.name
    recipe = replace(recipe, backbone=Component(name, wanted))
    recipe, seen = _with_images(recipe, {"mean": weights.mean, "std": weights.std}, settings)
    note = f"Starts from {printable(path, 200)}, which holds {name}{seen}."
    return recipe, " ".join([note, weights.note]).strip()


@dataclass(frozen=True)
class Start:
    """The weights that a run starts from, as they were read.

    Attributes:
        encoder: weights under timm's names; None if the encoder reads them itself.
        size: side of the images that they are for, in pixels.
        run: the run that they come from, if it left a checkpoint.
    """

    encoder: Mapping[str, Tensor] | None
    size: int
    run: RunFolder | None = None


def start_of(recipe: Recipe) -> Start | None:
    """The weights that a recipe starts from, whose architecture it has; None if it starts from nothing."""
    given = recipe.backbone.settings.get("pretrained")
    if not given:
        return None
    if given is True:
        import timm

        known: Any = timm.models.get_pretrained_cfg(recipe.backbone.name)
        return Start(None, 224 if known is None else known.input_size[-1])
    # Their own channels: the network that is built adapts them.
    own = {k: v for k, v in recipe.backbone.settings.items() if k not in ("pretrained", "in_chans")}
    weights, encoder = _read(Path(given), own, recipe.backbone.name)
    run = RunFolder(Path(given))
    found = Start(encoder.model.state_dict(), weights.test_size, run if run.latest is not None else None)
    _load.cache_clear()  # it may be large
    return found


def settled(
    recipe: Recipe, start: Start, method: Method, settings: Mapping[str, Any], named: bool
) -> tuple[Recipe, list[str]]:
    """The recipe of a run that starts from weights, and sentences about it; the method has all that fits.

    From a run of the same method and the same shapes, everything is taken: heads, moving averages, centers, queues.
    From any other weights there is an encoder alone, and new heads.

    Args:
        recipe: as `started` gives it.
        start: what was read.
        method: built from the recipe and the encoder's weights. It gets the rest.
        settings: the user's own, by dotted path.
        named: whether the recipe is one of the library's, whose learning rate is for a start from nothing.
    """
    notes, whole = [], False
    if start.run is not None:
        reason = _take(method, recipe, start.run)
        whole = not reason
        what = "all of it: encoder, heads, and what moves" if whole else f"its encoder alone: {reason}"
        notes.append(f"Of that run, this one takes {what}.")
    changes = []
    if named and "optimizer.lr" not in settings:
        times = SLOWER.get(recipe.optimizer.name, 10.0)
        slower = float(f"{recipe.optimizer.lr / times:.3g}")
        recipe = replace(recipe, optimizer=replace(recipe.optimizer, lr=slower))
        changes.append(f"a learning rate of {slower:g}, the recipe's over {times:g} (--lr)")
    heads = sum(p.requires_grad for p in method.parameters()) > sum(
        p.requires_grad for p in method.kept_encoder.parameters()
    )
    if named and heads and not whole and not any(path.partition(".")[0] == "adaptation" for path in settings):
        recipe = replace(recipe, adaptation=WARM)
        changes.append(
            "heads that learn for an epoch before the encoder moves, and BatchNorm's statistics as they came (--set "
            '"adaptation=Full()")'
        )
    if changes:
        notes.append(f"For a start from weights it has {' and '.join(changes)}.")
    views = max((kind.size for kind in kinds_of(method, recipe) if isinstance(kind, Crop)), default=start.size)
    if views * 2 < start.size:
        notes.append(
            f"The weights are for images of {start.size} pixels, and the views have {views}: they may lose more than "
            "they learn. Larger views: --set method.view.size=128 --set test_size=128."
        )
    return recipe, notes


def write(folder: RunFolder, method: Method, recipe: Recipe) -> None:
    """Write what a run starts from to its new folder: the first checkpoint, and the encoder to compare with later."""
    encoder = recipe.adaptation.finish(method.kept_encoder)
    checkpoint.save_tensors(folder.start, encoder.model.state_dict(), encoder_facts(encoder, recipe, 0))
    weights = {f"method.{name}": x for name, x in method.state_dict().items()}
    checkpoint.save_tensors(folder.checkpoint, weights, {"step": 0, "seconds": 0.0, "recipe": to_json(recipe)})


def _take(method: Method, recipe: Recipe, run: RunFolder) -> str:
    """Load a run's method into this one. Returns the reason if it does not fit, and "" if it does."""
    theirs = run.recipe
    if theirs.method.name != recipe.method.name:
        return f"it is a run of {theirs.method.name}, and this one of {recipe.method.name}"
    prefix = "method.method." if theirs.regularizers else "method."  # see `regularizers.Regularized`
    assert run.latest is not None
    tensors, _ = load_tensors(run.latest)
    found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith("method.")}
    ours = inner(method).state_dict()
    other = [k for k in {**ours, **found} if k not in ours or k not in found or ours[k].shape != found[k].shape]
    if other:
        return f"{len(other)} of its weights have other names or shapes, such as {printable(other[0], 80)}"
    inner(method).load_state_dict(found)
    return ""


def _read(path: Path, own: Mapping[str, Any], backbone: str | None) -> tuple[Pretrained, Encoder]:
    """A run or a file, and its encoder in its own architecture. Our own files say all of it, and take no settings."""
    file = path / ENCODER if (path / RECIPE).exists() else path
    facts = {} if not file.is_file() or is_pickle(file) else load_tensors(file)[1]
    ours = isinstance(facts.get("encoder"), dict) or (path / RECIPE).exists()
    found = _load(path, None if ours else backbone, () if ours else tuple(sorted(own.items())))
    assert isinstance(found.encoder, Encoder)
    if ours and backbone not in (None, found.encoder.name):
        raise UserError(f"{path} holds {found.encoder.name}, not {backbone}: leave out backbone.name.")
    return found, found.encoder


@lru_cache(maxsize=1)
def _load(path: Path, backbone: str | None, own: tuple[tuple[str, Any], ...]) -> Pretrained:
    return load(path, backbone, **dict(own))


def _with_images(
    recipe: Recipe, images: Mapping[str, tuple[float, ...]], settings: Mapping[str, Any]
) -> tuple[Recipe, str]:
    """The recipe with the mean and std that weights expect, unless the user gave others or other channels."""
    count = recipe.data.reading.count
    taken: Any = {k: v for k, v in images.items() if f"data.{k}" not in settings and len(v) == count}
    shown = " and ".join(f"{k} {', '.join(f'{v:.3g}' for v in values)}" for k, values in taken.items())
    return replace(recipe, data=replace(recipe.data, **taken)), f", with its {shown}" if shown else ""
