"""Weights that a run starts from: a file says its architecture and its images, so the recipe takes these from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from manyviews.checkpoint import load_tensors
from manyviews.engine.folder import ENCODER
from manyviews.errors import UserError, printable
from manyviews.settings import Component, Recipe
from manyviews.weights.unpickle import is_pickle


def started(recipe: Recipe, settings: Mapping[str, Any]) -> tuple[Recipe, str]:
    """The recipe with the architecture, mean and std of the weights that it starts from, and a sentence about it.

    A recipe that starts from nothing stays as it is.

    Args:
        recipe: its setting `backbone.pretrained` is True for timm's weights, or the path of a file or a run folder.
        settings: the user's own, by dotted path. They replace what the weights say, except for the architecture.

    Raises:
        UserError: there is no such file, it does not say its architecture, or `backbone.name` names another one.
    """
    given = recipe.backbone.settings.get("pretrained")
    if not given:
        return recipe, ""
    if given is True:
        import timm

        found: Any = timm.models.get_pretrained_cfg(recipe.backbone.name)
        images = {} if found is None else {"mean": tuple(found.mean), "std": tuple(found.std)}
        return _with_images(recipe, images, settings, f"timm's weights of {recipe.backbone.name}")
    path = Path(given).expanduser().absolute()
    path = path / ENCODER if path.is_dir() else path
    facts = {} if path.is_file() and is_pickle(path) else load_tensors(path)[1]
    spec = facts.get("encoder")
    if not isinstance(spec, dict):
        raise UserError(
            f"{path} does not say its architecture. This writes a file that does: manyviews export {quote(str(path))} "
            "--format safetensors --out START.safetensors"
        )
    if settings.get("backbone.name", spec["name"]) != spec["name"]:
        raise UserError(f"{path} holds {spec['name']}, not {settings['backbone.name']}: leave out backbone.name.")
    own = {k: v for k, v in recipe.backbone.settings.items() if f"backbone.{k}" in settings}
    told = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items() if k != "name"}
    recipe = replace(recipe, backbone=Component(spec["name"], {**told, **own, "pretrained": str(path)}))
    images = {name: tuple(facts[name]) for name in ("mean", "std") if name in facts}
    return _with_images(recipe, images, settings, f"{printable(path, 200)}, which holds {spec['name']}")


def _with_images(
    recipe: Recipe, images: Mapping[str, tuple[float, ...]], settings: Mapping[str, Any], what: str
) -> tuple[Recipe, str]:
    """The recipe with the mean and std that weights expect, unless the user gave others or other channels."""
    count = recipe.data.reading.count
    taken: Any = {k: v for k, v in images.items() if f"data.{k}" not in settings and len(v) == count}
    shown = " and ".join(f"{k} {', '.join(f'{v:.3g}' for v in values)}" for k, values in taken.items())
    note = f"Starts from {what}{f', with its {shown}' if shown else ''}."
    return replace(recipe, data=replace(recipe.data, **taken)), note
