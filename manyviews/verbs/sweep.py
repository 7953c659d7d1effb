"""Train with several values of one setting at a time, each with several seeds."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from manyviews import distributed
from manyviews.checkpoint import write_text
from manyviews.data import Source, open_source
from manyviews.engine.folder import RunFolder
from manyviews.engine.monitor import FEWEST, hold_out
from manyviews.engine.pace import Pace, measure
from manyviews.errors import UserError, say
from manyviews.evaluation.features import fingerprint
from manyviews.evaluation.unlabeled.spectrum import COLLAPSED
from manyviews.progress import Outer, duration, within
from manyviews.reporting import plots
from manyviews.settings import Recipe, override, parts, to_json
from manyviews.verbs._common import claim
from manyviews.verbs.auto import AUTO
from manyviews.verbs.pretrain import changed, fitted, pretrain
from manyviews.verbs.resume import resume
from manyviews.verbs.run import Run

METRICS = ("knn", "linear", "rankme")
"""The metrics of a run: accuracies on held-out training images, which need labels, and the effective rank."""


@dataclass(frozen=True)
class Point:
    """One value of one setting, over its seeds.

    Attributes:
        setting: dotted path of the setting; empty for the baseline.
        value: the value, as text.
        scores: the last value of the metric for each seed; runs whose loss became infinite or NaN have none.
        collapsed: how many of the runs have collapsed features or a loss that is not finite.
        runs: folders of the runs, relative to the sweep's.
    """

    setting: str
    value: str
    scores: list[float]
    collapsed: int
    runs: list[str]


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes:
        folder: the folder of the sweep and its runs.
        metric: one of `METRICS`.
        points: a point for every value, in the order given.
        baseline: the point of the settings to compare with; None if none were given.
    """

    folder: Path
    metric: str
    points: list[Point]
    baseline: Point | None

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {**asdict(self), "folder": str(self.folder)}


def sweep(
    data: Any,
    recipe: str | Recipe,
    vary: Mapping[str, Sequence[Any]],
    out: str | Path,
    *,
    seeds: int = 3,
    epochs: float | None = None,
    settings: Mapping[str, Any] | None = None,
    baseline: Mapping[str, Any] | None = None,
    metric: str | None = None,
) -> Sweep:
    """Train a recipe with each value of each setting, everything else unchanged, and plot the results.

    The score of a run is its last measurement on images held out of the training set, never on test images. Call it
    again to continue an interrupted sweep: finished runs are not repeated.

    Args:
        data: see `manyviews.pretrain`.
        recipe: a name, or a recipe of your own.
        vary: dotted paths and the values to try, one setting at a time: `{"method.temperature": (0.1, 0.2)}`.
        out: the sweep's folder. It holds a folder for each run, `sweep.json` and `sweep.png`.
        seeds: how many runs each value gets, with seeds 0, 1, ...
        epochs: passes over the images; the recipe's if None.
        settings: settings of all runs: see `manyviews.pretrain`.
        baseline: settings of one more point, drawn as a line, such as `{"regularizers": ()}`.
        metric: one of `METRICS`. If None, k-NN accuracy when there are labels, else RankMe.

    Raises:
        UserError: bad input, nothing measured, or another sweep in the folder.
    """
    if recipe == AUTO:
        raise UserError("A sweep compares trainings of one recipe: name it, such as --recipe photos_cpu_small.")
    if not vary or not all(vary.values()):
        raise UserError("There is nothing to vary: give a setting and its values, such as method.temperature=0.1,0.2.")
    if seeds < 1:
        raise UserError(f"A sweep needs 1 seed or more, not {seeds}.")
    if metric is not None and metric not in METRICS:
        raise UserError(f"The metric of a sweep is one of {', '.join(METRICS)}, not '{metric}'.")
    if any("seed" in given for given in (vary, settings or {}, baseline or {})):
        raise UserError("A sweep sets the seeds 0, 1, ... itself: choose how many with --seeds, and set no seed.")
    base = changed(recipe, epochs, settings or {})
    if base.data.holdout == 0:
        raise UserError("A sweep compares runs on held-out images: set data.holdout above 0.")
    folder = Path(out)
    wanted = [(path, value, changed(base, None, {path: value})) for path, values in vary.items() for value in values]
    if baseline is not None:
        wanted.append(("", ", ".join(f"{k}={v}" for k, v in baseline.items()), changed(base, None, baseline)))
    _check_measured(open_source(data), metric, [r for *_, r in wanted])
    distributed.start()  # the first of several processes makes the folder
    _begin(folder, data, wanted)

    trainings = _trainings(folder, wanted, seeds)
    left = _Left(trainings)
    left.tell(data, base)
    found: list[tuple[str, str, list[Run]]] = []
    done: dict[str, Run] = {}  # by recipe: points of two settings may be the same run
    for path, value, setting in wanted:
        runs = []
        for seed in range(seeds):
            key = to_json(override(setting, "seed", seed))
            if key not in done:
                with left.training(key, f"{path or 'baseline'} {value}, seed {seed}"):
                    done[key] = _train(data, *trainings[key])
            runs.append(done[key])
        found.append((path, str(value), runs))

    seen = [run.summary["last"] for _, _, runs in found for run in runs if run.summary]
    if not seen:
        raise UserError("None of these runs came to an end: their losses are not finite.")
    metric = metric or ("knn" if all("monitor/knn" in last for last in seen) else "rankme")
    if not all(f"monitor/{metric}" in last for last in seen):
        labels = ", and labels" if metric in ("knn", "linear") else ""
        raise UserError(f"These runs did not measure {metric}: it needs 16 held-out images or more{labels}.")
    points = [_point(folder, path, value, runs, metric) for path, value, runs in found]
    result = Sweep(folder, metric, [p for p in points if p.setting], next((p for p in points if not p.setting), None))
    if distributed.rank() == 0:
        write_text(folder / "sweep.json", json.dumps(result.to_dict(), indent=2))
        plots.sweep(result.to_dict(), folder / "sweep.png")
    return result


def _trainings(folder: Path, wanted: Sequence[tuple[str, Any, Recipe]], seeds: int) -> dict[str, tuple[Recipe, Path]]:
    """Every training once, by its recipe, with its folder."""
    found: dict[str, tuple[Recipe, Path]] = {}
    for path, value, setting in wanted:
        for seed in range(seeds):
            seeded = override(setting, "seed", seed)
            key = to_json(seeded)
            name = f"{_name(path, value)}-seed{seed}-{blake2b(key.encode(), digest_size=3).hexdigest()}"
            found.setdefault(key, (seeded, folder / name))
    return found


class _Left:
    """How long a sweep takes yet: at the pace measured before it, corrected by how long its trainings took.

    Args:
        trainings: every training by its recipe, as `_trainings` gives them.
    """

    def __init__(self, trainings: Mapping[str, tuple[Recipe, Path]]) -> None:
        self._total, self._number = len(trainings), 0
        finished = distributed.share([key for key, (_, where) in trainings.items() if RunFolder(where).complete])
        self._todo = {key: recipe for key, (recipe, _) in trainings.items() if key not in finished}
        self._pace: Pace | None = None
        self._spent = self._expected = 0.0

    def tell(self, data: Any, base: Recipe) -> None:
        """Say how many trainings there are, and how long they take."""
        text = f"Sweep: {self._total} training{'s' * (self._total > 1)}"
        if len(self._todo) < self._total:
            text += f", {self._total - len(self._todo)} of them finished before"
        if self._todo:
            recipe, source = fitted(base, open_source(data))
            self._pace = measure(recipe, source, distributed.start())
            seconds = self._seconds()
            text += "; how long they take is said after the first" if seconds is None else ""
            text += "" if seconds is None else f": about {duration(seconds)} on this machine"
        _say(f"{text}.")

    @contextmanager
    def training(self, key: str, what: str) -> Iterator[None]:
        """The training of this recipe, with words on what it varies."""
        self._number += 1
        title = f"sweep {self._number} of {self._total}"
        recipe = self._todo.get(key)
        if recipe is None:  # finished before
            yield
            return
        seconds = self._seconds()
        _say(f"S{title[1:]}: {what}{'' if seconds is None else f'; about {duration(seconds)} left of the sweep'}.")
        del self._todo[key]
        begun = time.monotonic()
        with within(Outer(title, self._seconds(), "pretrain")):
            yield
        self._spent += time.monotonic() - begun
        self._expected += self._cost(recipe)

    def _cost(self, recipe: Recipe) -> float:
        """The seconds of a training at the measured pace; if none could be measured, its epochs."""
        if self._pace is None:
            return recipe.all_epochs
        return sum(self._pace.seconds(part.recipe) for part in parts(recipe))  # all at the pace of the first

    def _seconds(self) -> float | None:
        """The seconds of all that is to be done; None if nobody knows."""
        if self._pace is None and not self._spent:
            return None
        return sum(map(self._cost, self._todo.values())) * (self._spent / self._expected if self._spent else 1.0)


def _say(text: str) -> None:
    if distributed.rank() == 0:
        say(text)


def _train(data: Any, recipe: Recipe, where: Path) -> Run:
    """Train a run to its end. A loss that becomes infinite or NaN is a result of the sweep, not the end of it."""
    try:
        if not distributed.share(RunFolder(where).started):
            return pretrain(data, recipe, out=where)
        if RunFolder(where).recipe != recipe:
            raise UserError(f"{where} holds a run of another recipe: give another --out.")
        return resume(where, data)
    except FloatingPointError as e:
        if distributed.rank() == 0:
            say(f"Sweep: this run broke down. {e}")
        return Run(where)


def _check_measured(source: Source, metric: str | None, wanted: Sequence[Recipe]) -> None:
    """Raise UserError if the metric cannot be measured. Checked before hours of training, not after them."""
    if metric in ("knn", "linear") and (source.labels is None or len(set(source.labels.tolist())) < 2):
        raise UserError(
            f"{source.name} has no labels of two classes or more, which the metric {metric} needs: use --metric rankme."
        )
    for share in sorted({recipe.data.holdout for recipe in wanted}):
        held = len(hold_out(source, share)[1])
        if held < FEWEST:
            raise UserError(
                f"A sweep needs {FEWEST} held-out images or more, and data.holdout={share:g} of {len(source)} images "
                f"is {held}: raise it."
            )


def _begin(folder: Path, data: Any, wanted: Sequence[tuple[str, Any, Recipe]]) -> None:
    """Make the sweep's folder, or continue the same sweep. The first process acts, and all of them learn the result."""
    refusal = None
    if distributed.rank() == 0:
        points = [[path, str(value), json.loads(to_json(recipe))] for path, value, recipe in wanted]
        plan = json.dumps({"images": fingerprint(open_source(data)), "points": points}, indent=2)
        try:
            claim(folder, "plan.json", plan, "another sweep")
        except UserError as e:
            refusal = str(e)
    refusal = distributed.share(refusal)
    if refusal:
        raise UserError(refusal)


def _name(path: str, value: Any) -> str:
    """A setting and its value, as a name that every file system allows."""
    return re.sub(r"[^\w.=+-]+", "_", f"{path}={value}" if path else "baseline").strip("_")[:80]


def _point(folder: Path, path: str, value: str, runs: Sequence[Run], metric: str) -> Point:
    last = [run.summary["last"] for run in runs if run.summary]
    return Point(
        path,
        value,
        [float(row[f"monitor/{metric}"]) for row in last],
        sum(row["monitor/spread"] < COLLAPSED for row in last) + len(runs) - len(last),
        [str(run.folder.relative_to(folder)) for run in runs],
    )
