"""The parts of a paper's row: each one a command as one types it, what it does, and the numbers that it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from manyviews.checkpoint import write_text
from manyviews.engine.folder import RunFolder
from manyviews.errors import UserError, unknown
from manyviews.evaluation.contract import Metric
from manyviews.evaluation.report import Report
from manyviews.papers import SETS, Detect, Diagnose, Evaluate, Row, Step, Subspaces, Sweep, Training, Transfer, hashed
from manyviews.settings import Recipe, differences
from manyviews.verbs import _small
from manyviews.verbs._common import opened, own_test
from manyviews.verbs._cost import SWEPT
from manyviews.verbs.detect import detect
from manyviews.verbs.diagnose import diagnose
from manyviews.verbs.evaluate import evaluate
from manyviews.verbs.pretrain import address, changed, pretrain
from manyviews.verbs.resume import resume
from manyviews.verbs.subspaces import subspaces
from manyviews.verbs.sweep import sweep
from manyviews.verbs.transfer import transfer


@dataclass(frozen=True)
class Place:
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
        if self.small:
            return
        if not missing:
            self._check_lists(row)
            return
        given = " ".join(f"--data {name}=PATH" for name in missing)
        told = "; ".join(
            f"{name} is {SETS[name].title}, from {SETS[name].where}, with {SETS[name].layout.replace('NAME', 'PATH')}"
            for name in missing
        )
        raise UserError(f"{row.name} needs images, as {given}: {told}. --small runs all its parts on made-up ones.")

    def _check_lists(self, row: Row) -> None:
        """Raise UserError, before hours of training, if lists of images are missing."""
        for step in row.steps:
            for file in (Path(v) for v in (self.lists(step) if isinstance(step, Evaluate) else {}).values()):
                if not file.is_file():
                    told = SETS[step.data].layout.replace("NAME", self.data[step.data])
                    raise UserError(
                        f"{row.name} learns from the images that {file} names, and there is no such file: {told}."
                    )

    def known(self, name: str) -> str | None:
        """The path of a set, given or to be made up; None in a plan for which it was not given."""
        return self.data.get(name, str(self.out / "made_up" / name) if self.small else None)

    def shown(self, name: str) -> str:
        """The path of a set as it stands in a command, or its name in capitals."""
        return self.known(name) or name.upper()

    def path(self, name: str) -> str:
        """The path of a set, which is made up if everything is small."""
        return self.data[name] if name in self.data else str(_small.made_up(name, self.out / "made_up"))

    def paths(self, name: str, root: str) -> list[str]:
        """The folders of a set below its root, which are one set."""
        return [str(Path(root) / folder) for folder in SETS[name].folders] or [root]

    def tested(self, name: str) -> str:
        """The folder of a set's test images, as it stands in a command."""
        return f"{self.shown(name)}/{'test' if self.small else SETS[name].tested}"

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

    def lists(self, step: Evaluate) -> dict[str, str]:
        """The settings of a step's protocols that are files."""
        return {path: f"{self.shown(step.data)}/{file}" for path, file in step.lists.items()}


@dataclass(frozen=True)
class Task:
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


def tasks(row: Row, place: Place) -> list[Task]:
    """The parts of a row, in their order."""
    if row.absent:
        return []
    found = [] if row.run is None else [_training(row.run, place)]
    for step in row.steps:
        if isinstance(step, Sweep):
            found.append(_sweep(step, place))
            continue
        if isinstance(step, Diagnose):
            found.append(_diagnose(step, place))
            continue
        assert row.run is not None
        make = {Evaluate: _evaluate, Transfer: _transfer, Detect: _detect, Subspaces: _subspaces}[type(step)]
        found.append(make(step, row.run, place))  # type: ignore[operator]
    return found


def _training(training: Training, place: Place) -> Task:
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
            _as_asked(RunFolder(folder), changed(training.recipe, epochs, settings))
        return run.complete

    def hours() -> dict[str, float | None]:
        ended = run.summary
        return {"hours": None if ended is None else ended["seconds"] / 3600}

    words = ["manyviews", "pretrain", place.shown(training.data), "--recipe", training.recipe]
    words += [] if epochs is None else ["--epochs", f"{epochs:g}"]
    words += [*_set(settings), "--out", str(folder)]
    return Task(words, training.data, training, finished, train, hours)


def _evaluate(step: Evaluate, training: Training, place: Place) -> Task:
    settings, folder = {**place.settings(step), **place.lists(step)}, place.run(training)

    def own(protocol: str) -> dict[str, str]:
        return {path: value for path, value in settings.items() if path.partition(".")[0] == protocol}

    def file(protocol: str) -> Path:
        mark = hashed(own(protocol)) if own(protocol) else ""
        return place.result(training, step.data, "" if step.features == "pooled" else step.features, protocol, mark)

    def missing() -> list[str]:
        return [
            protocol for protocol in step.protocols if _read(file(protocol), folder, place.known(step.data)) is None
        ]

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
            _write(file(protocol), folder, path, _of_report(report, protocol))

    def values() -> dict[str, float | None]:
        found = {}
        for key in step.printed:
            protocol, _, name = key.partition(".")
            found[key] = (_read(file(protocol), folder, place.known(step.data)) or {}).get(name or "value")
        return found

    shown = place.shown(step.data)
    words = ["manyviews", "evaluate", str(folder), "--data", shown]
    if SETS[step.data].kind == "several":
        words += ["--labels", f"{shown}/train.csv", "--test", shown, "--test-labels", f"{shown}/test.csv"]
    words += ["--protocol", ",".join(step.protocols)]
    words += [] if step.features == "pooled" else ["--features", step.features]
    return Task([*words, *_set(settings), "--no-baselines"], step.data, step, lambda: not missing(), run, values)


def _transfer(step: Transfer, training: Training, place: Place) -> Task:
    settings, folder = place.settings(step), place.run(training)
    out = place.out / "transfer" / "-".join([folder.name, *step.protocols, hashed(settings)])

    def run() -> None:
        path = place.path(step.data)
        transfer(folder, path, out, protocols=step.protocols, settings=settings, baselines=False)
        _write(out / _DONE, folder, path, {})

    def values() -> dict[str, float | None]:
        file = out / "transfer.json"
        rows = json.loads(file.read_text(encoding="utf-8"))["table"] if file.exists() else []
        found = {(row["set"], row["protocol"]): row for row in rows}
        ours = {}
        for key in step.printed:
            name, protocol, *column = key.split(".", 2)
            row = found.get((name, protocol), {})
            if row.get("top1") is None and row:  # several labels: the measures are in the report of the set
                report = Report.from_json((out / "sets" / f"{name}.json").read_text(encoding="utf-8"))
                row = _of_report(report, protocol)
            ours[key] = row.get(column[0] if column else "top1")
        return ours

    words = ["manyviews", "transfer", str(folder), place.shown(step.data), "--protocol", ",".join(step.protocols)]
    words += [*_set(settings), "--no-baselines", "--out", str(out)]
    return Task(words, step.data, step, _ended(out, folder, place.known(step.data)), run, values)


def _detect(step: Detect, training: Training, place: Place) -> Task:
    options: dict[str, Any] = _small.detection(step) if place.small else dict(step.options)
    folder, mark = place.run(training), hashed({k: str(v) for k, v in options.items()})
    file = place.result(training, "detect", step.data, mark)

    def run() -> None:
        path = place.path(step.data)
        found = detect(folder, place.paths(step.data, path), **options)
        _write(file, folder, path, {**found.details, found.metric: found.value})

    def values() -> dict[str, float | None]:
        found = _read(file, folder, place.known(step.data)) or {}
        return {key: found.get(key) for key in step.printed}

    words = ["manyviews", "detect", str(folder), *place.paths(step.data, place.shown(step.data))]
    for name, value in options.items():
        flag = f"--{_FLAGS.get(name, name).replace('_', '-')}"
        words += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
    return Task(words, step.data, step, lambda: _read(file, folder, place.known(step.data)) is not None, run, values)


_FLAGS = {"batch": "batch_size"}
"""Options of the command line that have another name in Python."""


def _diagnose(step: Diagnose, place: Place) -> Task:
    name = step.weights.replace(":", "-")
    file = place.out / "results" / f"{name}{place.mark}" / f"diagnose-{step.data}.json"

    def run() -> None:
        path = place.path(step.data)
        found = diagnose(_small.weights() if place.small else step.weights, path)
        _write(file, file.parent, path, {"cosine": found.cosine, "strong": found.strong})

    def values() -> dict[str, float | None]:
        found = _read(file, file.parent, place.known(step.data)) or {}
        return {key: found.get(key) for key in step.printed}

    words = ["manyviews", "diagnose", step.weights, place.shown(step.data)]
    return Task(
        words, step.data, step, lambda: _read(file, file.parent, place.known(step.data)) is not None, run, values
    )


def _subspaces(step: Subspaces, training: Training, place: Place) -> Task:
    folder = place.run(training)
    out = place.out / "subspaces" / f"{folder.name}-{step.data}"

    def run() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        path = place.path(step.data)
        # One that was typed, or ended just before its mark, is taken up; one of another run is refused.
        if (out / _DONE).exists() or not (out / "subspaces.json").exists():
            subspaces(folder, path, out)
        _write(out / _DONE, folder, path, {})

    def values() -> dict[str, float | None]:
        file = out / "subspaces.json"
        accuracy = (json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}).get("accuracy") or {}
        return {key: accuracy.get(key.removeprefix("accuracy.")) for key in step.printed}

    words = ["manyviews", "subspaces", str(folder), place.shown(step.data), "--out", str(out)]
    return Task(words, step.data, step, _ended(out, folder, place.known(step.data)), run, values)


def _sweep(step: Sweep, place: Place) -> Task:
    training = step.training
    epochs, settings = place.recipe(training)
    vary = _small.varied(step) if place.small else dict(step.vary)
    seeds = 1 if place.small else step.seeds
    out = place.out / "sweeps" / f"{step.name}{place.mark}"

    def run() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        path = place.path(training.data)
        sweep(
            path,
            training.recipe,
            vary,
            out,
            seeds=seeds,
            epochs=epochs,
            settings=settings,
            baseline=dict(step.baseline) or None,
            metric=_small.SWEPT if place.small else SWEPT,
            test=own_test(path, opened(path)),
        )
        _write(out / _DONE, out, path, {})

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
    words += ["--seeds", str(seeds), "--metric", SWEPT, "--test", place.tested(training.data), "--out", str(out)]
    return Task(words, training.data, step, _ended(out, out, place.known(training.data)), run, values)


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


def _write(file: Path, run: Path, data: str, values: Mapping[str, float | None]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"run": _id(run), "data": address(data), "values": values}, indent=2))


def _read(file: Path, run: Path, data: str | None) -> dict[str, float | None] | None:
    """What `_write` wrote of this run; None before that. Raises UserError if it is of other images."""
    if not file.exists():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["run"] != _id(run):  # a run that was deleted
        return None
    _same(file, found["data"], data)
    values: dict[str, float | None] = found["values"]
    return values


_DONE = "reproduce.json"
"""The file in a verb's own folder of results that says that they are all there, and of which run and images."""


def _ended(out: Path, run: Path, data: str | None) -> Callable[[], bool]:
    return lambda: _read(out / _DONE, run, data) is not None


def _id(run: Path) -> str | None:
    return RunFolder(run).facts.get("id") if RunFolder(run).started else None


_READ = {"data.range", "data.channels", "data.mean", "data.std"}
"""Settings that a run may have measured on its images."""


def _as_asked(run: RunFolder, wanted: Recipe) -> None:
    """Raise UserError if a run has other settings than its row, such as one that was started by hand."""
    few = run.facts.get("images", 0) * (1 - wanted.data.holdout) < wanted.data.batch_size
    skipped = _READ | ({"data.batch_size"} if few else set())
    for path, theirs, ours in differences(wanted, run.recipe):
        if path not in skipped:
            raise UserError(f"{run.path} holds a run with {path}={ours}, not {theirs}: give another --out.")


def _same(place: Path, then: str | None, now: str | None) -> None:
    """Raise UserError unless something was made of the images that are named now, if any are."""
    if now is None or then == address(now):
        return
    raise UserError(f"{place} was made of the images in {then}, not of those in {now}: give another --out.")
