"""Reproduce a row of a paper's table: train, evaluate, and put our numbers next to the printed ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from manyviews import distributed, papers
from manyviews.checkpoint import write_text
from manyviews.data import Source
from manyviews.engine.folder import RunFolder
from manyviews.errors import UserError, say, unknown
from manyviews.evaluation.contract import Metric
from manyviews.evaluation.protocols import title
from manyviews.evaluation.report import Report
from manyviews.papers import SETS, Detect, Evaluate, Row, Step, Subspaces, Sweep, Training, Transfer, hashed
from manyviews.verbs import _cost, _small
from manyviews.verbs._common import opened, own_test
from manyviews.verbs.detect import detect
from manyviews.verbs.evaluate import evaluate
from manyviews.verbs.pretrain import address, changed, fitted, pretrain
from manyviews.verbs.resume import resume
from manyviews.verbs.subspaces import subspaces
from manyviews.verbs.sweep import sweep
from manyviews.verbs.transfer import transfer

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
            "reproduce runs in one process: start the commands of `--dry-run` with torchrun, and `reproduce` without it "
            "takes up the trainings that they finished."
        )
    if row.absent and not dry_run:
        raise UserError(f"{row.name} cannot be run here. {row.absent}")
    place = _Place(Path(out), {k: str(v) for k, v in (data or {}).items()}, small)
    tasks = _tasks(row, place)
    if dry_run:
        parts = _planned(row, tasks, place, device)
    else:
        place.check(row)
        for i, task in enumerate(tasks):
            if not task.finished():
                say(f"Reproduce: {task.words[1]} ({i + 1} of {len(tasks)})")
                task.run()
        parts = tuple(Part(task.command, task.data, done=True) for task in tasks)
    found = Reproduction(row, place.out, small, _numbers(row, tasks), parts)
    if not dry_run:
        write_text(place.out / f"{row.name}{place.mark}.json", json.dumps(found.to_dict(), indent=2))
    return found


@dataclass(frozen=True)
class _Place:
    """Where the sets of images are, and where runs and results go.

    Attributes:
        out: the folder of runs and results.
        data: paths of sets of images, by name.
        small: whether everything is small.
    """

    out: Path
    data: Mapping[str, str]
    small: bool

    def __post_init__(self) -> None:
        for name in self.data:
            if name not in SETS:
                raise unknown("set of images", name, SETS)

    @property
    def mark(self) -> str:
        """What names end in."""
        return "-small" if self.small else ""

    def check(self, row: Row) -> None:
        """Raise UserError, which says all there is to do, if sets of images are missing."""
        missing = [name for name in row.data if name not in self.data]
        if self.small or not missing:
            return
        given = " ".join(f"--data {name}=PATH" for name in missing)
        told = "; ".join(
            f"{name} is {SETS[name].title}, from {SETS[name].where}, with {SETS[name].layout.replace('NAME', 'PATH')}"
            for name in missing
        )
        raise UserError(f"{row.name} needs images, as {given}: {told}. --small runs all its parts on made-up ones.")

    def known(self, name: str) -> str | None:
        """The path of a set, given or to be made up; None in a plan for which it was not given."""
        return self.data.get(name, str(self.out / "made_up" / name) if self.small else None)

    def shown(self, name: str) -> str:
        """The path of a set as it stands in a command, or its name in capitals."""
        return self.known(name) or name.upper()

    def path(self, name: str) -> str:
        """The path of a set, which is made up if everything is small."""
        return self.data[name] if name in self.data else str(_small.made_up(name, self.out / "made_up"))

    def run(self, training: Training) -> Path:
        """The folder of a training."""
        return self.out / "runs" / f"{training.name}{self.mark}"

    def result(self, training: Training, *words: str) -> Path:
        """The file of a result of a training."""
        return self.out / "results" / f"{training.name}{self.mark}" / f"{'-'.join(w for w in words if w)}.json"

    def recipe(self, training: Training) -> tuple[float | None, dict[str, str]]:
        """The epochs and settings of a training."""
        if not self.small:
            return training.epochs, dict(training.settings)
        recipe = changed(training.recipe, training.epochs, training.settings)
        return _small.EPOCHS, {**training.settings, **_small.training(recipe)}

    def settings(self, step: Evaluate | Transfer) -> dict[str, str]:
        """The settings of a step's protocols."""
        return {**step.settings, **(_small.protocols(step.protocols) if self.small else {})}


@dataclass(frozen=True)
class _Task:
    """A part of a row.

    Attributes:
        words: the command, as words.
        data: name of the set of images that it needs.
        step: what it is.
        finished: whether its results are there.
        run: does it.
        values: its numbers by the keys of `step.printed`, as far as they are there.
    """

    words: list[str]
    data: str
    step: Training | Step
    finished: Callable[[], bool]
    run: Callable[[], object]
    values: Callable[[], dict[str, float | None]]

    @property
    def command(self) -> str:
        return " ".join(quote(word) for word in self.words)


def _tasks(row: Row, place: _Place) -> list[_Task]:
    """The parts of a row, in their order."""
    if row.absent:
        return []
    found = [] if row.run is None else [_training(row.run, place)]
    for step in row.steps:
        if isinstance(step, Sweep):
            found.append(_sweep(step, place))
            continue
        assert row.run is not None
        make = {Evaluate: _evaluate, Transfer: _transfer, Detect: _detect, Subspaces: _subspaces}[type(step)]
        found.append(make(step, row.run, place))  # type: ignore[operator]
    return found


def _training(training: Training, place: _Place) -> _Task:
    folder, (epochs, settings) = place.run(training), place.recipe(training)
    run = RunFolder(folder)

    def train() -> None:
        path = place.path(training.data)
        if not run.started:
            pretrain(path, training.recipe, epochs=epochs, settings=settings, out=folder)
        else:
            resume(folder, path)

    def finished() -> bool:
        if run.started:
            _same(folder, RunFolder(folder).facts.get("data"), place.known(training.data))
        return run.complete

    def hours() -> dict[str, float | None]:
        ended = run.summary
        return {"hours": None if ended is None else ended["seconds"] / 3600}

    words = ["manyviews", "pretrain", place.shown(training.data), "--recipe", training.recipe]
    words += [] if epochs is None else ["--epochs", f"{epochs:g}"]
    words += [*_set(settings), "--out", str(folder)]
    return _Task(words, training.data, training, finished, train, hours)


def _evaluate(step: Evaluate, training: Training, place: _Place) -> _Task:
    settings, folder = place.settings(step), place.run(training)

    def own(protocol: str) -> dict[str, str]:
        return {path: value for path, value in settings.items() if path.partition(".")[0] == protocol}

    def file(protocol: str) -> Path:
        mark = hashed(own(protocol)) if own(protocol) else ""
        return place.result(training, step.data, "" if step.features == "pooled" else step.features, protocol, mark)

    def missing() -> list[str]:
        return [protocol for protocol in step.protocols if _read(file(protocol), place.known(step.data)) is None]

    def run() -> None:
        path, protocols = place.path(step.data), missing()
        more: dict[str, Any] = {}
        if SETS[step.data].kind == "several":
            more = {"test": path, "labels": Path(path) / "train.csv", "test_labels": Path(path) / "test.csv"}
        chosen = {name: value for protocol in protocols for name, value in own(protocol).items()}
        report = evaluate(
            folder, path, protocols=protocols, features=step.features, settings=chosen, baselines=False, **more
        )
        for protocol in protocols:
            _write(file(protocol), path, _of_report(report, protocol))

    def values() -> dict[str, float | None]:
        found = {}
        for key in step.printed:
            protocol, _, name = key.partition(".")
            found[key] = (_read(file(protocol), place.known(step.data)) or {}).get(name or "value")
        return found

    shown = place.shown(step.data)
    words = ["manyviews", "evaluate", str(folder), "--data", shown]
    if SETS[step.data].kind == "several":
        words += ["--labels", f"{shown}/train.csv", "--test", shown, "--test-labels", f"{shown}/test.csv"]
    words += ["--protocol", ",".join(step.protocols)]
    words += [] if step.features == "pooled" else ["--features", step.features]
    return _Task([*words, *_set(settings), "--no-baselines"], step.data, step, lambda: not missing(), run, values)


def _transfer(step: Transfer, training: Training, place: _Place) -> _Task:
    settings, folder = place.settings(step), place.run(training)
    out = place.out / "transfer" / "-".join([folder.name, *step.protocols, hashed(settings)])

    def run() -> None:
        transfer(folder, place.path(step.data), out, protocols=step.protocols, settings=settings, baselines=False)

    def values() -> dict[str, float | None]:
        file = out / "transfer.json"
        rows = json.loads(file.read_text(encoding="utf-8"))["table"] if file.exists() else []
        found = {(row["set"], row["protocol"]): row for row in rows}
        keys = {key: key.split(".", 2) for key in step.printed}
        return {
            key: found.get((name, protocol), {}).get(*(rest or ["top1"]))
            for key, (name, protocol, *rest) in keys.items()
        }

    words = ["manyviews", "transfer", str(folder), place.shown(step.data), "--protocol", ",".join(step.protocols)]
    words += [*_set(settings), "--no-baselines", "--out", str(out)]
    return _Task(words, step.data, step, (out / "transfer.json").exists, run, values)


def _detect(step: Detect, training: Training, place: _Place) -> _Task:
    options: dict[str, Any] = _small.detection(step) if place.small else dict(step.options)
    folder, mark = place.run(training), hashed({k: str(v) for k, v in options.items()})
    file = place.result(training, "detect", step.data, mark)

    def run() -> None:
        path = place.path(step.data)
        found = detect(folder, path, **options)
        _write(file, path, {**found.details, found.metric: found.value})

    def values() -> dict[str, float | None]:
        found = _read(file, place.known(step.data)) or {}
        return {key: found.get(key) for key in step.printed}

    words = ["manyviews", "detect", str(folder), place.shown(step.data)]
    for name, value in options.items():
        flag = f"--{_FLAGS.get(name, name).replace('_', '-')}"
        words += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
    return _Task(words, step.data, step, lambda: _read(file, place.known(step.data)) is not None, run, values)


_FLAGS = {"batch": "batch_size"}
"""Options of the command line that have another name in Python."""


def _subspaces(step: Subspaces, training: Training, place: _Place) -> _Task:
    folder = place.run(training)
    out = place.out / "subspaces" / f"{folder.name}-{step.data}"

    def run() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        subspaces(folder, place.path(step.data), out)

    def values() -> dict[str, float | None]:
        file = out / "subspaces.json"
        accuracy = (json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}).get("accuracy") or {}
        return {key: accuracy.get(key.removeprefix("accuracy.")) for key in step.printed}

    words = ["manyviews", "subspaces", str(folder), place.shown(step.data), "--out", str(out)]
    return _Task(words, step.data, step, (out / "subspaces.json").exists, run, values)


def _sweep(step: Sweep, place: _Place) -> _Task:
    training = step.training
    epochs, settings = place.recipe(training)
    vary = _small.varied(step) if place.small else dict(step.vary)
    seeds = 1 if place.small else step.seeds
    out = place.out / "sweeps" / f"{step.name}{place.mark}"

    def run() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(
            place.path(training.data),
            training.recipe,
            vary,
            out,
            seeds=seeds,
            epochs=epochs,
            settings=settings,
            baseline=dict(step.baseline) or None,
            metric="linear",
        )

    def values() -> dict[str, float | None]:
        file = out / "sweep.json"
        points = json.loads(file.read_text(encoding="utf-8"))["points"] if file.exists() else []
        return {path: _best([p for p in points if p["setting"] == path]) for path in step.printed}

    words = ["manyviews", "sweep", place.shown(training.data), "--recipe", training.recipe]
    words += [] if epochs is None else ["--epochs", f"{epochs:g}"]
    words += _set(settings)
    for path, tried in vary.items():
        words += ["--vary", f"{path}={','.join(tried)}"]
    words += _set(step.baseline, "--baseline")
    words += ["--seeds", str(seeds), "--metric", "linear", "--out", str(out)]
    return _Task(words, training.data, step, (out / "sweep.json").exists, run, values)


def _best(points: list[dict[str, Any]]) -> float | None:
    """The value with the highest mean score."""
    scored = [(sum(p["scores"]) / len(p["scores"]), float(p["value"])) for p in points if p["scores"]]
    return max(scored)[1] if scored else None


def _set(settings: Mapping[str, str], flag: str = "--set") -> list[str]:
    return [word for path, value in settings.items() for word in (flag, f"{path}={value}")]


# -- results -----------------------------------------------------------------------------------------------------


def _of_report(report: Report, protocol: str) -> dict[str, float | None]:
    """What a protocol found: the headline number as "value", and all others by name."""
    trained = report.representations["trained"]
    if protocol in trained.measures:
        measured: Metric = trained.measures[protocol]
        return {**measured.details, "value": measured.value}
    score = trained.scores[protocol]
    return {"value": score.top1, "top5": score.top5}


def _write(file: Path, data: str, values: Mapping[str, float | None]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"data": address(data), "values": values}, indent=2))


def _read(file: Path, data: str | None) -> dict[str, float | None] | None:
    """What `_write` wrote; None before that. Raises UserError if it is of other images."""
    if not file.exists():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    _same(file, found["data"], data)
    values: dict[str, float | None] = found["values"]
    return values


def _same(place: Path, then: str | None, now: str | None) -> None:
    """Raise UserError unless something was made of the images that are named now, if any are."""
    if now is None or then == address(now):
        return
    raise UserError(f"{place} was made of the images in {then}, not of those in {now}: give another --out.")


def _numbers(row: Row, tasks: list[_Task]) -> tuple[Number, ...]:
    """The paper's numbers, and ours as far as they are there."""
    values = {id(task.step): task.values() for task in tasks}
    found = []
    for step in row.steps:
        ours = values.get(id(step), {})
        for key, printed in step.printed.items():
            value = ours.get(key)
            unit = 1.0 if isinstance(step, Sweep) else 100.0
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
    if isinstance(step, (Detect, Subspaces)):
        return key.replace("accuracy.", "accuracy of the ")
    first, *rest = key.split(".", 2) if isinstance(step, Transfer) else ("", *key.split(".", 1))
    protocol, *field = rest
    words = [f"{first}: {title(protocol)}" if first else title(protocol), *(_FIELDS.get(name, name) for name in field)]
    return ", ".join(words)


_FIELDS = {"top5": "top-5", "mean_per_class": "mean over classes"}


# -- plans -------------------------------------------------------------------------------------------------------


def _planned(row: Row, tasks: list[_Task], place: _Place, device: torch.device) -> tuple[Part, ...]:
    """The parts with how long they take: the step of the training is measured, everything else follows from it."""
    trainings = [t.step if isinstance(t.step, Training) else t.step.training for t in tasks[:1] if _trains(t.step)]
    parts = [Part(task.command, task.data, done=task.finished()) for task in tasks]
    if place.small or not trainings or all(part.done for part in parts):
        return tuple(parts)
    (training,) = trainings
    sources = {name: _given(name, place) for name in row.data if name in place.data}
    counts = {name: _cost.counted(SETS[name], *sources.get(name, (None, None))) for name in row.data}
    given = sources.get(training.data, (None, None))[0]
    source = given or _cost.stand_in(SETS[training.data])
    recipe, source = fitted(changed(training.recipe, training.epochs, training.settings), source)
    pace = _cost.pace(recipe, source, counts[training.data], device)
    if pace is None:
        return tuple(parts)
    found = []
    for part, task in zip(parts, tasks, strict=True):
        count = counts[task.data]
        if isinstance(task.step, Training | Sweep):
            runs = 1 if isinstance(task.step, Training) else task.step.runs
            seconds: float | None = runs * pace.seconds(recipe)
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


def _trains(step: Training | Step) -> bool:
    return isinstance(step, Training | Sweep)


def _given(name: str, place: _Place) -> tuple[Source | None, Source | None]:
    """The training and test images of a set, if `open_source` reads it."""
    if SETS[name].kind not in ("classes", "several"):
        return None, None
    source = opened(place.data[name])
    return source, own_test(place.data[name], source)
