"""Continue a run: one that was interrupted, or one that is to be trained longer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

from manyviews import checkpoint, distributed
from manyviews.data import Source, read_as
from manyviews.data.files import is_pattern, only_local
from manyviews.engine.build import build_method, check, recipe_now
from manyviews.engine.folder import RunFolder, create
from manyviews.engine.loop import train
from manyviews.engine.stopping import Stopped
from manyviews.errors import UserError, printable, say
from manyviews.reporting.views import draw_reconstructions
from manyviews.settings import Recipe, override, to_json
from manyviews.verbs._common import opened
from manyviews.verbs._student import keep_student, lacks_student
from manyviews.verbs.pretrain import address, captions_address, conclude, draw_views, facts_of
from manyviews.verbs.run import Run


def resume(
    folder: str | Path,
    data: Any = None,
    captions: Any = None,
    *,
    epochs: float | None = None,
    out: str | Path | None = None,
    trust: bool = False,
) -> Run:
    """Continue a run.

    Without `epochs`, an interrupted run is continued exactly where it stopped. On one CPU thread it ends with the same
    bits as an uninterrupted run. A finished run is returned as it is.

    With `epochs`, a new run of so many epochs starts from the weights of this one, finished or not: from its last
    checkpoint it takes the encoder, the heads, and all that moves (moving averages, queues, centers). The optimizer's
    state is left behind, because it belongs to the rates at the end of a schedule, and the schedule begins anew with
    its warm-up. The seed is one more, so that other views are drawn.

    Args:
        folder: the run's folder.
        data: the images; if None, they are read from where they were. An interrupted run needs the same images, of the
            same names, and remembers their new place.
        captions: their captions, likewise.
        epochs: passes over the images of a new run.
        out: a new or empty folder for the new run; `runs/<recipe>-<date>` if None.
        trust: whether a run that somebody else began may contact the servers that it names. Your own always may.

    Raises:
        UserError: no run, other images, no weights to start from, another process is training in the folder, its
            settings were changed, or it names servers and was not begun by this user.
    """
    old = RunFolder(Path(folder))
    _ask(old, data, captions, trust)
    facts = old.facts
    if epochs is not None:
        return _longer(old, data, captions, epochs, out)
    if out is not None:
        raise UserError("A run is continued in its own folder: for a new one in another --out, give its --epochs.")
    images = _where(old, facts.get("data")) if data is None else data
    if old.complete:
        distributed.start()
        if distributed.rank() == 0:
            with suppress(OSError):  # it may have been killed before it did so itself
                old.tidy()
            say(f"The run in {old.path} is finished: for more epochs, give --epochs and a new --out.")
        run = Run(old.path) if (old.plots / "loss.png").exists() else conclude(old.path)
        if lacks_student(run):  # it was killed before that
            keep_student(run, _opened(old, images, None))
        return run
    recipe = old.recipe
    source = _opened(old, images, facts.get("captions") if captions is None else captions)
    source = read_as(source, recipe.data.reading)
    distributed.start()  # the check below depends on the number of processes
    check(recipe, source)
    moved = {"data": address(data), "captions": captions_address(captions)}
    moved = {name: place for name, place in moved.items() if place is not None}

    def remember() -> None:
        if moved and distributed.rank() == 0:
            ours = old.ours
            now = RunFolder(old.path)  # settings that were changed are noted there
            now.write_facts(now.facts | moved)
            if ours:
                now.sign()

    try:
        method = build_method(recipe, trained=old.latest is not None)
        if distributed.rank() == 0 and not (old.plots / "views.png").exists():  # it was killed before they were drawn
            with old.lock():
                draw_views(old.path, method, recipe, source)
        train(method, recipe, source, old.path, old=_remembered(old, recipe), draw=draw_reconstructions)
    except Stopped:  # so these are the right images
        remember()
        raise
    remember()
    run = conclude(old.path)
    keep_student(run, source)
    return run


def _ask(run: RunFolder, data: Any, captions: Any, trust: bool) -> None:
    """Raises UserError if somebody else's run names servers, unless the user trusts it."""
    distributed.start()
    asks = distributed.share(run.asks(data=data, captions=captions) if distributed.rank() == 0 else None)
    if asks and not trust:
        raise UserError(
            f"The run in {run.path} was begun by somebody else, or elsewhere, or was edited, and would contact "
            f"{' and '.join(asks)}. If you want that, give --trust; --data names other images."
        )
    if asks and distributed.rank() == 0:
        run.guard()
        run.sign()


def _longer(old: RunFolder, data: Any, captions: Any, epochs: float, out: str | Path | None) -> Run:
    """A new run of so many epochs, from the weights of another."""
    latest = old.latest
    if latest is None:
        raise UserError(f"The run in {old.path} has no weights to start from yet: continue it without --epochs.")
    data = _where(old, old.facts.get("data")) if data is None else data
    captions = old.facts.get("captions") if captions is None else captions
    recipe = recipe_now(old)  # of a run in stages, the last one
    recipe = override(override(recipe, "epochs", epochs), "seed", (recipe.seed + 1) % 2**31)
    source = read_as(_opened(old, data, captions), recipe.data.reading)
    device = distributed.start()
    check(recipe, source)
    tensors, saved = checkpoint.load_tensors(latest)
    weights = {name: x for name, x in tensors.items() if name.startswith("method.")}
    method = build_method(recipe, trained=True)
    folder = None
    if distributed.rank() == 0:
        begun = {"run": str(old.path.absolute()), "id": old.facts.get("id"), "step": saved["step"]}
        begins = {"step": 0, "seconds": 0.0, "recipe": to_json(recipe)}
        folder = create(
            None if out is None else Path(out),
            recipe,
            facts_of(data, captions, source, device) | {"from": begun},
            lambda new: checkpoint.save_tensors(new.checkpoint, weights, begins),
        ).path
        say(
            f"A new run of {epochs:g} epochs in {folder} starts from the weights of {old.path} at step "
            f"{saved['step']}. Its optimizer begins anew, and so does the schedule, with its warm-up."
        )
        draw_views(folder, method, recipe, source)
    folder = cast(Path, distributed.share(folder))
    train(method, recipe, source, folder, draw=draw_reconstructions)
    return conclude(folder)


def _opened(run: RunFolder, data: Any, captions: Any) -> Source:
    """The images of a run. A file that somebody else's run names may itself name a server, such as a list."""
    told = run.facts.get("data")
    with _as_told(run, told) if isinstance(data, str) and data == told else nullcontext():
        return opened(data, captions=captions)


def _as_told(run: RunFolder, told: str) -> AbstractContextManager[None]:
    """Inside, what a run names is opened, and if somebody else began it, only on this machine."""
    if run.ours:
        return nullcontext()
    return only_local(f"the run in {run.path} names it by way of {printable(told, 200)}; give it as --data yourself.")


def _remembered(run: RunFolder, recipe: Recipe) -> Source | None:
    """The images of the old domain that the run is monitored on, if they are where they were."""
    address = run.facts.get("old")
    if address is None:
        if "old" in run.facts:
            say("The images of the old domain were given in memory: forgetting is not monitored any more.")
        return None
    with _as_told(run, address):
        return read_as(opened(address), recipe.data.reading)


def _where(run: RunFolder, data: str | None) -> str:
    """Where the run's images are. Raises UserError if they are not there."""
    if data is None:
        raise UserError(f"The images of {run.path} were given in memory: pass them again, as `resume(..., data=...)`.")
    place = Path(data)
    if place.exists() and not (place.is_dir() or place.is_file()):
        raise UserError(f"The images of {run.path} are in {data}, which is neither a file nor a folder: give --data.")
    whole = Path(data.rpartition(":")[0] or data)  # without a split
    if place.is_absolute() and not (is_pattern(data) or place.exists() or whole.exists()):
        raise UserError(f"The images of {run.path} are no longer in {data}: give their new place as --data.")
    return data
