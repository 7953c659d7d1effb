"""Training, whole: images in, weights moved, numbers logged, checkpoints written."""

from __future__ import annotations

from pathlib import Path

from manyviews.data import Source
from manyviews.engine import optim
from manyviews.engine.build import build_method
from manyviews.engine.folder import RunFolder
from manyviews.engine.step import backpropagate
from manyviews.engine.training import Draw, RolledBack, Training, begin, remaining
from manyviews.methods import Method
from manyviews.settings import Recipe


def train(
    method: Method,
    recipe: Recipe,
    source: Source,
    folder: Path,
    since: float | None = None,
    old: Source | None = None,
    draw: Draw | None = None,
) -> None:
    """Train in a run folder, from its checkpoint if there is one, until the recipe's last step.

    Args:
        method: the method that `build_method` made of the recipe.
        recipe: everything that decides the run except the images; `check` must have passed it.
        source: all the images; a fraction `recipe.data.holdout` is monitored and not trained on.
        folder: a run folder, made by `engine.folder.create`. It receives the log, the checkpoints and the encoder.
        since: when the run's time began to count, on the monotonic clock; now if None.
        old: labeled images of the domain that the weights come from, on which forgetting is monitored.
        draw: draws a picture at each measurement, from the method, held-out images, the recipe, a path and the step.

    Raises:
        UserError: another process trains in the folder, or the data, the recipe and the checkpoint do not fit.
        Stopped: SIGINT or SIGTERM arrived; the checkpoint is written.
        FloatingPointError: the loss is no longer finite; the last good checkpoint is still there.
    """
    for part in remaining(recipe, RunFolder(folder)):
        if part.number:
            method = build_method(part.recipe, trained=True)
        spent, over = None, False
        while not over:
            try:
                with begin(method, part, source, RunFolder(folder), since, old, spent) as run:
                    run.draw = draw
                    _steps(run, part.recipe)
                    run.finish()
                over = True
            except RolledBack as back:
                since, spent = None, back.spent
                method = build_method(part.recipe, trained=RunFolder(folder).latest is not None)


def _steps(run: Training, settings: Recipe) -> None:
    """Take all steps of a part of a run."""
    method, optimizer = run.method, run.optimizer
    for at, batch in run.steps():
        lr = optim.schedule(optimizer, settings.optimizer, settings.data.batch_size, at)
        optimizer.zero_grad(set_to_none=True)
        views = run.views(batch, at)
        terms = backpropagate(method, views, at, precision=run.precision, device=run.device, scale=run.scaling.scale)
        run.scaling.unscale(optimizer)
        method.before_update(at)
        run.watch_gradient()
        norm = optim.clip(method, settings.optimizer.clip)
        moved = run.scaling.step(optimizer)
        if moved:
            method.after_update(at)
            optim.forget(optimizer, method.restarted())
        else:
            method.after_skip()
        run.after(at, terms, norm, lr, moved)
