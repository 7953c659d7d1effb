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
from manyviews.evaluation import Protocol, protocols
from manyviews.evaluation.features import fingerprint
from manyviews.evaluation.sets import check_labels, check_targets
from manyviews.evaluation.unlabeled.spectrum import COLLAPSED
from manyviews.progress import Outer, duration, within
from manyviews.reporting import plots
from manyviews.settings import Recipe, override, parts, to_json
from manyviews.verbs._common import claim, opened
from manyviews.verbs.auto import AUTO
from manyviews.verbs.evaluate import evaluate
from manyviews.verbs.pretrain import changed, fitted, pretrain
from manyviews.verbs.resume import resume
from manyviews.verbs.run import Run

METRICS = {
    "knn": "k-NN (k = 20) on at most 1,000 held-out training images, among at most 1,000 of the others",
    "ridge": "ridge regression on at most 1,000 training images, accuracy on at most 1,000 held-out ones",
    "rankme": "effective rank (RankMe) of at most 1,000 held-out training images, without labels",
}
"""Metrics that a run measures while it trains. Any protocol is one too, of the network at the end."""

_LOGGED = {"ridge": "linear"}  # names in the logs of runs


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
        metric: one of `METRICS`, or a protocol.
        words: what the metric is of which images.
        points: a point for every value, in the order given.
        baselines: the points of the settings to compare with.
    """

    folder: Path
    metric: str
    words: str
    points: list[Point]
    baselines: list[Point]

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
    baseline: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    metric: str | Protocol | None = None,
    test: Any = None,
) -> Sweep:
    """Train a recipe with each value of each setting, everything else unchanged, and plot the results.

    The score of a run is its last measurement on images held out of the training set. Or, as in papers, it is that of
    a protocol at the end: it learns from all labels of the training images, and is judged on the held-out ones, or on
    test images if they are given. Call it again to continue an interrupted sweep: finished runs are not repeated.

    Args:
        data: see `manyviews.pretrain`.
        recipe: a name, or a recipe of your own.
        vary: dotted paths and the values to try, one setting at a time: `{"method.temperature": (0.1, 0.2)}`.
        out: the sweep's folder. It holds a folder for each run, `sweep.json` and `sweep.png`.
        seeds: how many runs each value gets, with seeds 0, 1, ...
        epochs: passes over the images; the recipe's if None.
        settings: settings of all runs: see `manyviews.pretrain`.
        baseline: settings of one more point, drawn as a line, such as `{"regularizers": ()}`; or of several, as figure
            5 of "Rescuing easy samples" has them: `[{"regularizers": ()}, {"regularizers": (), "epochs": 200}]`.
        metric: one of `METRICS`; or the name of a protocol, such as "linear_augmented", or one with settings of its
            own. If None, k-NN accuracy when there are labels, else RankMe.
        test: labeled images that a protocol is judged on.

    Raises:
        UserError: bad input, nothing measured, or another sweep in the folder.
    """
    if recipe == AUTO:
        raise UserError("A sweep compares trainings of one recipe: name it, such as --recipe photos_cpu_small.")
    if not vary or not all(vary.values()):
        raise UserError("There is nothing to vary: give a setting and its values, such as method.temperature=0.1,0.2.")
    if seeds < 1:
        raise UserError(f"A sweep needs 1 seed or more, not {seeds}.")
    protocol = _protocol(metric)
    if test is not None and protocol is None:
        raise UserError("Test images are for protocols: name one as the metric, such as linear_augmented.")
    beside = [baseline] if isinstance(baseline, Mapping) else list(baseline or [])
    if any("seed" in given for given in (vary, settings or {}, *beside)):
        raise UserError("A sweep sets the seeds 0, 1, ... itself: choose how many with --seeds, and set no seed.")
    base = changed(recipe, epochs, settings or {})
    if base.data.holdout == 0:
        raise UserError("A sweep compares runs on held-out images: set data.holdout above 0.")
    folder = Path(out)
    wanted = [(path, value, changed(base, None, {path: value})) for path, values in vary.items() for value in values]
    wanted += [("", ", ".join(f"{k}={v}" for k, v in given.items()), changed(base, None, given)) for given in beside]
    _check_measured(open_source(data), metric, protocol is not None, [r for *_, r in wanted])
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
    if protocol is not None:
        scores = _judged(folder, protocol, data, test, [run for *_, runs in found for run in runs if run.summary])
        name = protocol.name
        words = f"{protocol.title} on {'test images' if test is not None else 'held-out training images'}"
    else:
        name, words = str(metric), METRICS[str(metric)]
        key = f"monitor/{_LOGGED.get(name, name)}"
        if not all(key in last for last in seen):
            labels = ", and labels" if name in ("knn", "ridge") else ""
            raise UserError(f"These runs did not measure {name}: it needs 16 held-out images or more{labels}.")
        scores = {run.folder: float(run.summary["last"][key]) for *_, runs in found for run in runs if run.summary}
    points = [_point(folder, path, value, runs, scores) for path, value, runs in found]
    parts = [[p for p in points if bool(p.setting) == varied] for varied in (True, False)]
    result = Sweep(folder, name, words, *parts)
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
        return resume(where, data)  # its name has a hash of the recipe, to which it adds what is measured of the images
    except FloatingPointError as e:
        if distributed.rank() == 0:
            say(f"Sweep: this run broke down. {e}")
        return Run(where)


def _protocol(metric: str | Protocol | None) -> Protocol | None:
    """The protocol that is asked for; None for a metric of the runs themselves.

    Raises:
        UserError: there is no such metric.
    """
    if isinstance(metric, Protocol) or metric is None or metric in METRICS:
        return metric if isinstance(metric, Protocol) else None
    if metric not in protocols.names():
        known = ", ".join(METRICS)
        raise UserError(
            f"The metric of a sweep is {known} or a protocol (see `manyviews list protocols`), not '{metric}'."
        )
    return protocols.get(metric)()


def _judged(folder: Path, protocol: Protocol, data: Any, test: Any, runs: Sequence[Run]) -> dict[Path, float]:
    """The number of a protocol for each run, by its folder; measured once, and then read from the sweep's folder."""
    held = None if test is None else opened(test)
    key = [repr(protocol), "" if held is None else fingerprint(held)]
    found: dict[Path, float] = {}
    for run in dict.fromkeys(run.folder for run in runs):
        file = folder / f"{run.name}-{protocol.name}.json"
        known = distributed.share(file.read_text(encoding="utf-8") if file.exists() else "")
        if known:
            facts = json.loads(known)
        if not known or facts["of"] != key:
            recipe = RunFolder(run).recipe
            train, rest = hold_out(open_source(data), recipe.data.holdout)
            report = evaluate(run, train, rest if held is None else held, protocols=(protocol,), baselines=False)
            ours = report.representations["trained"]
            score = ours.scores[protocol.name].top1 if ours.scores else ours.measures[protocol.name].value
            facts = {"of": key, "value": score}
            if distributed.rank() == 0:
                write_text(file, json.dumps(facts))
        found[run] = facts["value"]
    return found


def _check_measured(source: Source, metric: str | Protocol | None, judged: bool, wanted: Sequence[Recipe]) -> None:
    """Raise UserError if the metric cannot be measured. Checked before hours of training, not after them."""
    if judged:
        (check_targets if source.several else check_labels)(source)
    if metric in ("knn", "ridge") and (source.labels is None or len(set(source.labels.tolist())) < 2):
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


def _point(folder: Path, path: str, value: str, runs: Sequence[Run], scores: Mapping[Path, float]) -> Point:
    last = [run.summary["last"] for run in runs if run.summary]
    return Point(
        path,
        value,
        [scores[run.folder] for run in runs if run.summary],
        sum(row["monitor/spread"] < COLLAPSED for row in last) + len(runs) - len(last),
        [str(run.folder.relative_to(folder)) for run in runs],
    )
