"""From a recipe to a method that is ready to train, and from a trained method to its encoder's file."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from manyviews import checkpoint, distributed, methods
from manyviews.backbones import Encoder
from manyviews.data import Source
from manyviews.engine import monitor
from manyviews.engine.folder import RunFolder, check_progress
from manyviews.engine.log import missing
from manyviews.errors import UserError, printable
from manyviews.evaluation.features import frozen
from manyviews.methods import Method
from manyviews.regularizers import Regularized, kinds_of
from manyviews.settings import Component, Recipe, parts
from manyviews.views import Composed, Crop


def build_method(recipe: Recipe, *, trained: bool = False, weights: Mapping[str, Tensor] | None = None) -> Method:
    """The method that a recipe describes, on the CPU, initialized from the recipe's seed.

    Moving averages are copied from an encoder that has its weights already.

    Args:
        recipe: its `backbone.pretrained` names the weights to start from.
        trained: nothing is read or downloaded to start from: a checkpoint replaces it.
        weights: those of the encoder to start from, under timm's names, if they have been read.
    """
    torch.manual_seed(recipe.seed)
    settings = recipe.backbone.settings
    given = trained or weights is not None
    encoder = Encoder(recipe.backbone.name, **({**settings, "pretrained": False} if given else settings))
    if weights is not None:
        encoder.load_weights(weights)
    own = dict(recipe.method.settings)
    if trained:  # nor are the weights of its other networks, such as a teacher's
        own = {k: _untrained(v) if isinstance(v, Component) else v for k, v in own.items()}
    try:
        method = methods.get(recipe.method.name)(recipe.adaptation.begin(encoder), **own)
    except (RuntimeError, ValueError, ArithmeticError, AssertionError) as e:  # such as layers of a negative size
        raise UserError(f"{recipe.method.name} cannot be built with its settings: {printable(e, 200)}") from e
    return Regularized(method, recipe.regularizers, recipe.step.accumulate) if recipe.regularizers else method


def _untrained(network: Component) -> Component:
    return replace(network, settings={k: v for k, v in network.settings.items() if k != "pretrained"})


FEW = 500
"""Images below which a run is told that it can learn little."""


def with_fitting_batch(recipe: Recipe, source: Source) -> Recipe:
    """The recipe with a smaller batch if it has fewer images: the largest power of two for which there are enough.

    The recipe itself if there are too few for any batch: `check` says so.
    """
    share = distributed.world_size() * recipe.step.accumulate
    images = len(monitor.hold_out(source, recipe.data.holdout)[0])
    if images >= recipe.data.batch_size or images < 2 * share:
        return recipe
    return replace(recipe, data=replace(recipe.data, batch_size=_fitting(images, share)))


def _fitting(images: int, share: int) -> int:
    """The largest batch of so many images that is a power of two for each process and accumulated part."""
    return int(share * 2 ** int(math.log2(images // share)))


def cautions(recipe: Recipe, source: Source) -> list[str]:
    """Sentences about images that are few, and about folders that are or are not taken as classes."""
    found = []
    if len(source) < FEW:
        found.append(
            f"{source.name} has {len(source)} images, and fewer than {FEW} teach an encoder little more than colors "
            "and textures. Weights that saw many others know more: use them as they are (timm:resnet18), or start from "
            "them (--init FILE)."
        )
    if len(monitor.hold_out(source, recipe.data.holdout)[1]) and (text := monitor.classes_note(source, recipe)):
        found.append(text)
    return found


def check(recipe: Recipe, source: Source) -> None:
    """Raises UserError when the recipe cannot run on this many images and processes."""
    batch, world = recipe.data.batch_size, distributed.world_size()
    if batch % (world * recipe.step.accumulate):
        share = world * recipe.step.accumulate
        near = share * max(2, round(batch / share))
        in_parts = f" in {recipe.step.accumulate} parts each" * (recipe.step.accumulate > 1)
        raise UserError(
            f"A batch of {batch} cannot be shared evenly by {world} process{'es' * (world > 1)}{in_parts}: the nearest "
            f"that can is --set data.batch_size={near}."
        )
    images = len(monitor.hold_out(source, recipe.data.holdout)[0])
    part = batch // (world * recipe.step.accumulate)
    if part < 2:
        raise UserError("A part of a batch must hold at least 2 images: raise --set data.batch_size.")
    if images < batch:
        share = world * recipe.step.accumulate
        fits = images >= 2 * share
        fewer = f", or --set data.batch_size={_fitting(images, share)}" if fits else ""
        raise UserError(
            f"{source.name} has {images} images to train on, fewer than a batch of {batch}: give more images{fewer}."
        )
    for regularizer in recipe.regularizers:
        regularizer.check_batch(batch, world * recipe.step.accumulate)
    for name in recipe.monitor.loggers:
        if importlib.util.find_spec(name) is None:
            raise missing(name)


def check_sizes(method: Method, recipe: Recipe) -> None:
    """Raises UserError when the encoder does not take images of the views' sizes and of the test size."""
    encoder = method.kept_encoder
    kinds = kinds_of(method, recipe)
    for size in sorted({recipe.test_size, *(kind.size for kind in kinds if isinstance(kind, Crop))}):
        with frozen(encoder):
            try:
                found = encoder(torch.zeros(1, encoder.channels, size, size))
            except UserError:
                raise
            except Exception as e:  # timm's models assert, or fail somewhere inside
                raise UserError(
                    f"{encoder.name} does not take images of {size} pixels ({printable(e, 120)}): choose another "
                    "backbone, or other sizes of the views and --set test_size."
                ) from None
        if not isinstance(found, Tensor) or found.shape != (1, encoder.embed_dim):
            raise UserError(
                f"{encoder.name} does not give {encoder.embed_dim} features for each image: leave its settings for "
                "pooling as they are."
            )


def check_colors(method: Method, recipe: Recipe) -> list[str]:
    """Sentences about changes of color that images of other channels than RGB do not have.

    Raises:
        UserError: a composition of augmentations has one of them as a part of its own.
    """
    channels = recipe.data.reading.count
    if channels == 3:
        return []
    found = set[str]()
    for kind in kinds_of(method, recipe):
        names = kind.of_rgb if isinstance(kind, Crop) else ()
        if isinstance(kind, Composed) and names:
            raise UserError(
                f"Images of {channels} channels have no {' and no '.join(names)}: choose the augmentations of "
                f"{kind.name} without them."
            )
        found |= set(names)
    if not found:
        return []
    return [
        f"Left out of the views, because images of {channels} channels have no such colors: {', '.join(sorted(found))}."
    ]


def stage_of(folder: RunFolder) -> int:
    """The stage, from 0, of a run's checkpoint; 0 without one."""
    latest = folder.latest
    if latest is None:
        return 0
    facts = checkpoint.facts_of(latest)
    check_progress(latest, facts)
    found: int = facts.get("stage", 0)
    if found >= len(parts(folder.recipe)):
        raise UserError(f"{latest} is of stage {found + 1}, which the recipe beside it does not have.")
    return found


def recipe_now(folder: RunFolder) -> Recipe:
    """The settings that hold at a run's checkpoint: of a run in stages, those of its stage."""
    return parts(folder.recipe)[stage_of(folder)].recipe


def check_stages(recipe: Recipe, source: Source) -> None:
    """Raises UserError when a stage cannot follow the part before it, or cannot run on these images."""
    before: Recipe | None = None
    shapes: dict[str, torch.Size] = {}
    for part in parts(recipe) if recipe.stages else ():
        now = part.recipe
        if before is not None:
            where = f"S{part.words[1:]}"
            check(now, source)
            method = build_method(now, trained=True)
            other = [k for k, v in method.state_dict().items() if shapes.get(k) != v.shape]
            if other or len(shapes) > len(method.state_dict()):
                name = printable((other or ["part of it"])[0], 80)
                raise UserError(
                    f"{where} changes the shape of weights that have learned ({name}): leave sizes of the network out "
                    "of its settings."
                )
            kept = now.optimizer.name == before.optimizer.name and now.adaptation == before.adaptation.later
            if part.carried and not kept:
                raise UserError(
                    f"{where} has another optimizer or adaptation, which cannot take over the state of the one before: "
                    'give the stage optimizer="fresh".'
                )
            check_sizes(method, now)
        else:
            method = build_method(now, trained=True)
        before, shapes = now, {k: v.shape for k, v in method.state_dict().items()}


def trained_method(folder: RunFolder) -> tuple[Method, dict[str, Any]]:
    """The method of a run, with all its heads, as the latest checkpoint has it, and the checkpoint's facts.

    Raises:
        UserError: there is no checkpoint.
    """
    method = build_method(recipe_now(folder), trained=True)
    latest = folder.latest
    if latest is None:
        raise UserError(f"The run in {folder.path} has no checkpoint yet.")
    facts = checkpoint.load(latest, method)
    return method.eval(), facts


def write_encoder(folder: RunFolder, encoder: Encoder, recipe: Recipe, step: int) -> None:
    """Write the encoder alone, with everything that its use requires."""
    encoder = recipe.adaptation.finish(encoder)
    checkpoint.save_tensors(folder.encoder, encoder.model.state_dict(), encoder_facts(encoder, recipe, step))


def start_encoder(folder: RunFolder) -> Encoder:
    """The encoder as it was at the start of a run from weights."""
    tensors, facts = checkpoint.load_tensors(folder.start)
    encoder = Encoder.from_spec(facts["encoder"])
    encoder.load_weights(tensors)
    return encoder


def encoder_facts(encoder: Encoder, recipe: Recipe, step: int) -> dict[str, Any]:
    """What the use of a trained encoder requires, as JSON can hold it."""
    return {
        "encoder": encoder.spec,
        "mean": recipe.data.mean,
        "std": recipe.data.std,
        "test_size": recipe.test_size,
        "reading": recipe.data.reading.to_dict(),
        "recipe": recipe.name,
        "step": step,
    }
