"""The settings of a run that goes on: those with which it was begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manyviews import distributed, recipes
from manyviews.engine.folder import RECIPE, RunFolder
from manyviews.errors import UserError, printable, say
from manyviews.settings import Recipe, differences, from_json

_FREE = ("monitor.", "data.memory_gb")
"""Settings that change no weights. They may be edited in a run's recipe.json before it goes on."""


def compare(folder: RunFolder, saved: Mapping[str, Any]) -> None:
    """Compare the recipe of a run with the one in its checkpoint.

    Changes of what is monitored are told, and noted in run.json. Checkpoints of older versions have no recipe.

    Args:
        folder: the run's folder, locked by the first process.
        saved: the facts of its checkpoint.

    Raises:
        UserError: a setting that decides the weights is another one.
    """
    if "recipe" not in saved:
        return
    before = from_json(saved["recipe"])
    assert isinstance(before, Recipe)
    changed = differences(recipes.resolve(before), recipes.resolve(folder.recipe))
    other = [change for change in changed if not change[0].startswith(_FREE)]
    if other:
        words = ", ".join(
            f"{path} was {printable(was, 60)} and is {printable(now, 60)}" for path, was, now in other[:5]
        )
        more = f", and {len(other) - 5} more" if len(other) > 5 else ""
        raise UserError(
            f"{folder.path / RECIPE} has changed since the run's last checkpoint: {words}{more}. Put it back to "
            "continue the run, or start a new one with other settings from its weights: manyviews pretrain --init."
        )
    if changed and distributed.rank() == 0:
        notes = [
            {"step": saved["step"], "setting": path, "was": str(was), "now": str(now)} for path, was, now in changed
        ]
        known = folder.facts.get("changed", [])
        new = [note for note in notes if note not in known]
        for note in new:
            say(f"From step {note['step']} on, {note['setting']} is {note['now']} (was {note['was']}).")
        if new:
            folder.write_facts(folder.facts | {"changed": [*known, *new]})
