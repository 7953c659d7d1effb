"""The parts of a run: the recipe's own epochs, and its stages after them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from manyviews.errors import UserError
from manyviews.settings.recipe import Recipe
from manyviews.settings.text import override

# Settings that all parts of a run share: the same network, on the same images, with one clock.
_WHOLE = ("name", "method.name", "backbone", "epochs", "budget", "stages", "seed")
_WHOLE_DATA = ("channels", "range", "frames", "max_pixels", "mean", "std", "holdout")


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        recipe: everything that holds in it.
        number: its place in the run, from 0.
        count: number of parts of the run.
        carried: whether the optimizer keeps the state of the part before.
    """

    recipe: Recipe
    number: int = 0
    count: int = 1
    carried: bool = True

    @property
    def last(self) -> bool:
        return self.number == self.count - 1

    @property
    def words(self) -> str:
        """Its name in messages; empty for a run of one part."""
        return f"stage {self.number + 1} of {self.count}" if self.count > 1 else ""


def parts(recipe: Recipe) -> list[Part]:
    """The parts of a run in their order: the recipe itself, if it has no stages.

    Settings add up from part to part. The seed of each is one more than that of the part before, so that other views
    are drawn.

    Raises:
        UserError: a stage has an unknown setting, a value of the wrong type, or a setting of the whole run.
    """
    count, now = 1 + len(recipe.stages), replace(recipe, stages=())
    found = [Part(now, 0, count)]
    for number, stage in enumerate(recipe.stages, 1):
        now = replace(now, adaptation=now.adaptation.later)
        for path, value in stage.settings.items():
            first, _, rest = path.partition(".")
            if path in _WHOLE or first in _WHOLE or (first == "data" and rest.partition(".")[0] in _WHOLE_DATA):
                raise UserError(f"Stage {number + 1} cannot change {path}: it holds for the whole run.")
            now = override(now, path, value)
        now = replace(now, epochs=stage.epochs, seed=(now.seed + 1) % 2**31)
        found.append(Part(now, number, count, stage.optimizer == "carried"))
    return found
