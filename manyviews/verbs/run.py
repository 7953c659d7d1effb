"""The folder of a run, as an object: what it holds, and the verbs that apply to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from manyviews.backbones import Encoder
from manyviews.engine.build import recipe_now, trained_method
from manyviews.engine.folder import RECIPE, RunFolder
from manyviews.methods import Method
from manyviews.settings import Recipe
from manyviews.weights import load

if TYPE_CHECKING:
    from manyviews.evaluation import Report


@dataclass(frozen=True)
class Run:
    """A folder in which a backbone was pretrained, or is being pretrained. Raises UserError for another folder."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if not (self.folder / RECIPE).is_file():
            _ = RunFolder(self.folder).recipe  # says what is wrong

    @cached_property
    def recipe(self) -> Recipe:
        """Every setting of the run."""
        return RunFolder(self.folder).recipe

    @property
    def recipe_now(self) -> Recipe:
        """The settings at the latest checkpoint: of a run in stages, those of its stage."""
        return recipe_now(RunFolder(self.folder))

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
        """Time, images and last numbers of the finished run; None while it is unfinished."""
        return RunFolder(self.folder).summary

    @property
    def encoder(self) -> Encoder:
        """The pretrained encoder, of an unfinished run as its last checkpoint has it. Raises UserError without one."""
        return cast(Encoder, load(self.folder).encoder)

    @property
    def method(self) -> Method:
        """The method with all its heads, from the latest checkpoint. Raises UserError when there is no checkpoint."""
        return trained_method(RunFolder(self.folder))[0]

    # The verbs return runs themselves, so they are imported when they are called.

    def resume(self, data: Any = None, **options: Any) -> Run:
        """Continue after an interruption, or with `epochs` as a new run: see `manyviews.resume`."""
        from manyviews.verbs.resume import resume

        return resume(self.folder, data, **options)

    def evaluate(self, data: Any, test: Any = None, **options: Any) -> Report:
        """See `manyviews.evaluate`."""
        from manyviews.verbs.evaluate import evaluate

        return evaluate(self.folder, data, test, **options)

    def embed(self, data: Any, out: str | Path, **options: Any) -> Path:
        """See `manyviews.embed`."""
        from manyviews.verbs.embed import embed

        return embed(self.folder, data, out, **options)

    def export(self, format: str, out: str | Path) -> Path:
        """See `manyviews.export`."""
        from manyviews.verbs.export import export

        return export(self.folder, format, out)
