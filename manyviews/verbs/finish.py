"""End an interrupted run early, with its schedule run out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from manyviews import checkpoint, distributed
from manyviews.engine.build import stage_of
from manyviews.engine.folder import RunFolder
from manyviews.engine.plan import Early
from manyviews.errors import UserError, say
from manyviews.verbs.resume import resume
from manyviews.verbs.run import Run

_SHARE, _LEAST = 10, 20  # one more step for so many that were taken, and at least so many, unless a number is given


def finish(
    folder: str | Path, steps: int | None = None, data: Any = None, captions: Any = None, trust: bool = False
) -> Run:
    """End an interrupted run early: its schedule runs out over a few more steps.

    The learning rate and everything else that follows the schedule go from where they are to where they would have
    ended, only faster. That is worth much more than the last checkpoint, whose learning rate is still high.

    Args:
        folder: the run's folder. No process may be training in it: interrupt it with Ctrl-C first.
        steps: how many more steps; a tenth of those taken, and at least 20, if None.
        data: the images, if they were moved: see `manyviews.resume`.
        captions: their captions, likewise.
        trust: see `manyviews.resume`.

    Raises:
        UserError: no run, a finished one, one without a checkpoint, or fewer than 1 step.
    """
    run = RunFolder(Path(folder))
    facts = run.facts
    if run.complete:
        raise UserError(f"The run in {run.path} is finished already.")
    latest = run.latest
    if latest is None:
        raise UserError(f"The run in {run.path} has no checkpoint to finish from yet: continue it with resume.")
    if stage_of(run) < len(run.recipe.stages):
        raise UserError(
            f"The run in {run.path} has stages yet to come, and only its last one can be ended early: continue it with "
            "resume."
        )
    if steps is not None and steps < 1:
        raise UserError(f"A run is finished in 1 step or more, not in {steps}.")
    saved = checkpoint.facts_of(latest)
    since, of = int(saved["step"]), int(saved.get("end", saved.get("steps", 0)))
    over = max(_LEAST, since // _SHARE) if steps is None else steps
    distributed.start()
    if "early" in facts:
        _say(f"The run in {run.path} is already on its way to an early end.")
    elif of - since <= over:
        _say(f"The run in {run.path} has {of - since} more steps to take, and takes them as planned.")
    else:
        if distributed.rank() == 0:
            with run.lock():
                run.write_facts(facts | {"early": asdict(Early(since, of, over))})
        _say(f"The run in {run.path} ends after {over} more steps, at step {since + over} in place of {of}.")
    distributed.barrier()
    return resume(run.path, data, captions, trust=trust)


def _say(text: str) -> None:
    if distributed.rank() == 0:
        say(text)
