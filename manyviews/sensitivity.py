"""A sensitivity sweep: one setting at a time takes several values, and each is trained with several seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from manyviews import distributed, recipes
from manyviews.checkpoint import write_text
from manyviews.data import Source, open_source
from manyviews.engine.folder import RunFolder
from manyviews.engine.monitor import COLLAPSED, FEWEST, hold_out
from manyviews.errors import UserError, say
from manyviews.evaluation.features import fingerprint
from manyviews.run import Run, pretrain, resume
from manyviews.settings import Recipe, override, to_json

METRICS = ("knn", "linear", "rankme")
"""What a run can be judged by: accuracies on held-out training images, which need labels, and their effective rank."""


@dataclass(frozen=True)
class Point:
    """One value of one setting, over its seeds.

    Attributes:
        setting: dotted path; empty for the baseline.
        value: as text.
        scores: the metric of each seed's last observation; runs whose loss was no longer finite have none.
        collapsed: how many of the runs have collapsed features or no finite loss.
        runs: their folders, relative to the sweep's.
    """

    setting: str
    value: str
    scores: list[float]
    collapsed: int
    runs: list[str]


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        folder: where it and its runs lie.
        metric: what its scores are.
        points: of every value, in the order given.
        baseline: of the settings to compare with, if any were given.
    """

    folder: Path
    metric: str
    points: list[Point]
    baseline: Point | None

    def to_dict(self) -> dict[str, Any]:
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
    """Train a recipe with each value of each setting, all else as it is, and plot what becomes of it.

    Runs are judged by their last observation on images held out of the training set, never on test images. A sweep
    that was interrupted continues when it is called again: finished runs are not repeated.

    Args:
        data: see `manyviews.pretrain`.
        recipe: a name, or a recipe of one's own.
        vary: dotted paths and the values to try, one setting at a time: `{"rescue.scale": (0.25, 0.5, 1.0)}`.
        out: the sweep's folder, with a run in each folder below, `sweep.json` and `sweep.png`.
        seeds: runs of each value, with seeds 0, 1, ...
        epochs: passes over the images; the recipe's if None.
        settings: of all runs, as for `pretrain`.
        baseline: settings of one more point, drawn as a line, such as `{"rescue": None}`.
        metric: one of `METRICS`; k-NN if there are labels, else RankMe, if None.

    Raises:
        UserError: bad input, nothing observed, or another sweep in the folder.
    """
    if not vary or not all(vary.values()):
        raise UserError("There is nothing to vary: give a setting and its values, such as rescue.scale=0.25,0.5,1.")
    if seeds < 1:
        raise UserError(f"A sweep needs 1 seed or more, not {seeds}.")
    if metric is not None and metric not in METRICS:
        raise UserError(f"A sweep is judged by {', '.join(METRICS)}, not by '{metric}'.")
    if any("seed" in given for given in (vary, settings or {}, baseline or {})):
        raise UserError("A sweep trains with the seeds 0, 1, ... itself: say how many with --seeds, and set no seed.")
    base = recipes.get(recipe) if isinstance(recipe, str) else recipe
    if epochs is not None:
        base = override(base, "epochs", epochs)
    base = _with(base, settings or {})
    if base.data.holdout == 0:
        raise UserError("A sweep is judged on held-out images: set data.holdout above 0.")
    folder = Path(out)
    wanted = [(path, value, _with(base, {path: value})) for path, values in vary.items() for value in values]
    if baseline is not None:
        wanted.append(("", ", ".join(f"{k}={v}" for k, v in baseline.items()), _with(base, baseline)))
    _check_judged(open_source(data), metric, [r for *_, r in wanted])
    distributed.start()  # of several processes the first one makes the folder
    _claim(folder, data, wanted)

    found: list[tuple[str, str, list[Run]]] = []
    done: dict[str, Run] = {}  # by recipe: two settings may share a point
    for i, (path, value, changed) in enumerate(wanted):
        runs = []
        for seed in range(seeds):
            seeded = override(changed, "seed", seed)
            key = to_json(seeded)
            if key not in done:
                where = folder / f"{_name(path, value)}-seed{seed}-{blake2b(key.encode(), digest_size=3).hexdigest()}"
                if distributed.rank() == 0:
                    say(f"Sweep: {path or 'baseline'} {value}, seed {seed} ({i + 1} of {len(wanted)})")
                done[key] = _train(data, seeded, where)
            runs.append(done[key])
        found.append((path, str(value), runs))

    seen = [run.summary["last"] for _, _, runs in found for run in runs if run.summary]
    if not seen:
        raise UserError("None of these runs came to an end: their losses are not finite.")
    metric = metric or ("knn" if all("monitor/knn" in last for last in seen) else "rankme")
    if not all(f"monitor/{metric}" in last for last in seen):
        labels = ", and labels" if metric in ("knn", "linear") else ""
        raise UserError(f"These runs did not observe {metric}: it needs 16 held-out images or more{labels}.")
    points = [_point(folder, path, value, runs, metric) for path, value, runs in found]
    result = Sweep(folder, metric, [p for p in points if p.setting], next((p for p in points if not p.setting), None))
    if distributed.rank() == 0:
        from manyviews.report import plots

        write_text(folder / "sweep.json", json.dumps(result.to_dict(), indent=2))
        plots.sweep(result.to_dict(), folder / "sweep.png")
    return result


def _train(data: Any, recipe: Recipe, where: Path) -> Run:
    """A run to its end, or as far as its loss is finite: what breaks down is a result of a sweep, and not its end."""
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


def _with(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    for path, value in settings.items():
        recipe = override(recipe, path, value)
    return recipes.resolve(recipe)


def _check_judged(source: Source, metric: str | None, wanted: Sequence[Recipe]) -> None:
    """Raises UserError where nothing would be observed, which is better known before the training than after it."""
    if metric in ("knn", "linear") and (source.labels is None or len(set(source.labels.tolist())) < 2):
        raise UserError(
            f"{source.name} has no labels of two classes or more, which the metric {metric} needs: take --metric "
            "rankme."
        )
    for share in sorted({recipe.data.holdout for recipe in wanted}):
        held = len(hold_out(source, share)[1])
        if held < FEWEST:
            raise UserError(
                f"A sweep is judged on {FEWEST} held-out images or more, and data.holdout={share:g} of {len(source)} "
                f"leaves {held}: raise it."
            )


def _claim(folder: Path, data: Any, wanted: Sequence[tuple[str, Any, Recipe]]) -> None:
    """The folder is this sweep's: new, or begun by the same command. The first process finds out for all."""
    refusal = None
    if distributed.rank() == 0:
        try:
            _make(folder, fingerprint(open_source(data)), wanted)
        except UserError as e:
            refusal = str(e)
    refusal = distributed.share(refusal)
    if refusal:
        raise UserError(refusal)


def _make(folder: Path, images: str, wanted: Sequence[tuple[str, Any, Recipe]]) -> None:
    points = [[p, str(v), json.loads(to_json(r))] for p, v, r in wanted]
    plan = json.dumps({"images": images, "points": points}, indent=2)
    path = folder / "plan.json"
    if path.exists():
        if path.read_text(encoding="utf-8") != plan:
            raise UserError(
                f"{folder} holds another sweep: give another --out, or the same images and settings to continue it."
            )
        return
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: give another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, plan)


def _name(path: str, value: Any) -> str:
    """What a file system takes of a setting."""
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
