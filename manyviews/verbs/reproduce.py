"""Reproduce a row of a paper's table: train, evaluate, and put our numbers next to the printed ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from manyviews import distributed, papers
from manyviews.checkpoint import write_text
from manyviews.data import Source
from manyviews.errors import UserError, say
from manyviews.evaluation.protocols import title
from manyviews.papers import SETS, Detect, Diagnose, Evaluate, Row, Step, Subspaces, Sweep, Training, Transfer
from manyviews.verbs import _cost
from manyviews.verbs._common import opened, own_test
from manyviews.verbs._rows import Place, Task, tasks
from manyviews.verbs.pretrain import changed, fitted

OUT = "reproduced"


@dataclass(frozen=True)
class Number:
    """A number of the paper, and ours.

    Attributes:
        data: the set of images that it is of.
        name: what it is.
        paper: as printed, accuracies and average precisions in percent; None where the paper has a picture or words.
        ours: in the same unit; None before it is measured, and where it could not be.
    """

    data: str
    name: str
    paper: float | None
    ours: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.paper is None or self.ours is None else self.ours - self.paper


@dataclass(frozen=True)
class Part:
    """A command of a row.

    Attributes:
        command: as one could type it.
        data: name of the set of images that it needs.
        seconds: how long it takes on this machine, as far as was measured; None if nobody knows.
        note: on what the seconds rest.
        done: whether its results are there already.
    """

    command: str
    data: str
    seconds: float | None = None
    note: str = ""
    done: bool = False


@dataclass(frozen=True)
class Reproduction:
    """A row that was reproduced, or is planned.

    Attributes:
        row: the row of the paper.
        folder: the folder of its runs and results, which rows share.
        small: whether it was run at about a hundredth of its size, where numbers mean nothing.
        numbers: the paper's numbers and ours.
        parts: the commands.
    """

    row: Row
    folder: Path
    small: bool
    numbers: tuple[Number, ...]
    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float | None:
        """How long all that is yet to be done takes; None if nobody knows of a part."""
        left = [part.seconds for part in self.parts if not part.done]
        return None if None in left else sum(s for s in left if s is not None)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "row": self.row.name,
            "words": self.row.words,
            "where": f"{papers.TITLES[self.row.name.partition('.')[0]]}, {self.row.where}",
            "small": self.small,
            "numbers": [asdict(number) | {"difference": number.difference} for number in self.numbers],
            "parts": [asdict(part) for part in self.parts],
            "absent": self.row.absent or None,
            "notes": list(self.row.notes),
            "folder": str(self.folder),
        }


def reproduce(
    name: str,
    data: Mapping[str, str | Path] | None = None,
    out: str | Path = OUT,
    *,
    small: bool = False,
    dry_run: bool = False,
) -> Reproduction:
    """Reproduce a row of a paper's table: its training, what follows it, and our numbers next to the printed ones.

    Everything is run by the verbs of these names. Call it again to continue: what is finished is not repeated, and rows
    of one training share its run and its evaluations. Commands that were typed by hand with the same folder, such as a
    training that `torchrun` started on several GPUs, are taken up likewise.

    Args:
        name: name of the row, such as "mulan.table2.byol": see `manyviews.papers.ROWS`.
        data: where the sets of images are, by name: see `manyviews.papers.SETS`.
        out: folder of the runs and results, which several rows may share.
        small: run all parts at about a hundredth of their size, in seconds: small networks, views, heads and batches,
            two epochs, and made-up images for each set that is not given. The numbers mean nothing.
        dry_run: run nothing; measure how long each part would take on this machine.

    Raises:
        UserError: no such row or set of images, with the nearest name; a row that cannot be run here; sets of images
            that are missing; or a folder with results of other images.
    """
    row = papers.get(name)
    device = distributed.start()
    if distributed.world_size() > 1:
        raise UserError(
            "reproduce runs in one process: start the commands of --dry-run with torchrun, and it takes up the "
            "trainings that they finished."
        )
    if row.absent and not dry_run:
        raise UserError(f"{row.name} cannot be run here. {row.absent}")
    place = Place(Path(out), {k: str(v) for k, v in (data or {}).items()}, small)
    todo = tasks(row, place)
    if dry_run:
        parts = _planned(row, todo, place, device)
    else:
        place.check(row)
        for i, task in enumerate(todo):
            if not task.finished():
                say(f"Reproduce: {task.words[1]} ({i + 1} of {len(todo)})")
                task.run()
        parts = tuple(Part(task.command, task.data, done=True) for task in todo)
    found = Reproduction(row, place.out, small, _numbers(row, todo), parts)
    if not dry_run:
        write_text(place.out / f"{row.name}{place.mark}.json", json.dumps(found.to_dict(), indent=2))
    return found


def _numbers(row: Row, todo: list[Task]) -> tuple[Number, ...]:
    """The paper's numbers, and ours as far as they are there."""
    values = {id(task.step): task.values() for task in todo}
    found = []
    for step in row.steps:
        ours = values.get(id(step), {})
        for key, printed in step.printed.items():
            value = ours.get(key)
            unit = 1.0 if isinstance(step, Sweep | Diagnose) else 100.0
            found.append(
                Number(SETS[step.data].title, label(step, key), printed, None if value is None else unit * value)
            )
    if row.hours is not None and row.run is not None:
        ours = values.get(id(row.run), {})
        found.append(Number(SETS[row.run.data].title, "hours of training", row.hours, ours.get("hours")))
    return tuple(found)


def label(step: Step, key: str) -> str:
    """Words for a number."""
    if isinstance(step, Sweep):
        return f"best {key}"
    if isinstance(step, Diagnose):
        return {"cosine": "mean cosine of two views", "strong": "mean cosine of a view and a strong one"}[key]
    if isinstance(step, (Detect, Subspaces)):
        return key.replace("accuracy.", "accuracy of the ")
    first, *rest = key.split(".", 2) if isinstance(step, Transfer) else ("", *key.split(".", 1))
    protocol, *field = rest
    words = [f"{first}: {title(protocol)}" if first else title(protocol), *(_FIELDS.get(name, name) for name in field)]
    return ", ".join(words)


_FIELDS = {"top5": "top-5", "mean_per_class": "mean over classes"}


# -- plans -------------------------------------------------------------------------------------------------------


def _planned(row: Row, todo: list[Task], place: Place, device: torch.device) -> tuple[Part, ...]:
    """The parts with how long they take: the step of the training is measured, everything else follows from it."""
    parts = [Part(task.command, task.data, done=task.finished()) for task in todo]
    if place.small or all(part.done for part in parts):
        return tuple(parts)
    first = todo[0].step
    training = first if isinstance(first, Training) else first.training if isinstance(first, Sweep) else row.run
    if training is None:  # published weights, whose pace no training tells
        return tuple(parts)
    sources = {name: _given(name, place) for name in row.data if name in place.data}
    counts = {name: _cost.counted(SETS[name], *sources.get(name, (None, None))) for name in row.data}
    given = sources.get(training.data, (None, None))[0]
    source = given or _cost.stand_in(SETS[training.data])
    recipe, source = fitted(changed(training.recipe, training.epochs, training.settings), source)
    pace = _cost.pace(recipe, source, counts[training.data], device)
    if pace is None:
        return tuple(parts)
    found = []
    for part, task in zip(parts, todo, strict=True):
        count = counts[task.data]
        if isinstance(task.step, Training | Sweep):
            runs = 1 if isinstance(task.step, Training) else task.step.runs
            seconds: float | None = runs * pace.seconds(recipe)
            if isinstance(task.step, Sweep):
                seconds = runs * (pace.seconds(recipe) + _cost.swept(_cost.encoding(recipe, pace, count), count))
            note = (
                f"{recipe.epochs:g} epochs of {count.images:,} images"
                f"{'' if runs == 1 else f', {runs} times'}, at {recipe.data.batch_size / pace.step:.3g} a second"
            )
        else:
            settings = place.settings(task.step) if isinstance(task.step, Evaluate | Transfer) else {}
            each = _cost.encoding(recipe, pace, counts[training.data])
            seconds = _cost.seconds(task.step, settings, count, each, recipe.test_size)
            note = f"{count.images:,} images to learn from and {count.tests:,} to test on"
        found.append(replace(part, seconds=seconds, note=note))
    whole = recipe.data.batch_size
    how = f"measured on {pace.images} images at a time" if pace.images < whole else f"measured on batches of {whole}"
    if given is None:
        about = SETS[training.data]
        how += f" of noise, {about.width}x{about.height}"
    found[0] = replace(found[0], note=f"{found[0].note}, {how}")
    return tuple(found)


def _given(name: str, place: Place) -> tuple[Source | None, Source | None]:
    """The training and test images of a set, if `open_source` reads it."""
    if SETS[name].kind not in ("classes", "several"):
        return None, None
    source = opened(place.data[name])
    return source, own_test(place.data[name], source)
