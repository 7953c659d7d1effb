"""Choose among runs without labels, and measure with labels how good the choice was."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from manyviews import evaluation
from manyviews.data import Source
from manyviews.engine.folder import RunFolder
from manyviews.errors import UserError, printable, unknown
from manyviews.evaluation.contract import check_seed
from manyviews.evaluation.sets import frequent
from manyviews.evaluation.unlabeled.diagnosis import HEALTHY, Diagnosis, diagnose
from manyviews.progress import Note, Update, progress
from manyviews.settings import Recipe, differences
from manyviews.verbs._common import opened, preprocessing, seen_by, tell
from manyviews.weights import Pretrained, load

CRITERIA: dict[str, Callable[[Mapping[str, float | None]], float]] = {
    "rankme": lambda numbers: _number(numbers["rankme"]),
    "lidar": lambda numbers: _number(numbers["lidar"]),
    "alpha_req": lambda numbers: -abs(_number(numbers["alpha_req"]) - 1),
    "auc": lambda numbers: -_number(numbers["auc"]),
}
"""The score of a run's numbers under each criterion; higher is better. Alpha is best at 1, as its authors propose."""

METRICS = ("knn", "linear")
"""With labels, the choice is compared with these accuracies on test images."""

_WORDS = {"rankme": "RankMe", "lidar": "LiDAR", "alpha_req": "alpha-ReQ", "auc": "the spectrum's AUC"}
_TICKS = 1000  # steps of the progress bar for each run
_SHOWN = 40  # characters shown of a setting


@dataclass(frozen=True)
class Candidate:
    """One of the runs.

    Attributes:
        run: the run's folder, or a file of weights.
        method: name of its method; None for a file of weights.
        settings: the settings in which the runs differ, as text, by dotted path.
        dim: dimensions of the features.
        numbers: `rankme`, `lidar`, `alpha_req` (None where there is nothing to fit), `auc` and `spread`.
        state: state of its features: see `evaluation.unlabeled.diagnosis.Diagnosis.state`.
        accuracy: accuracies on test images by metric, in [0, 1]; empty without labels.
    """

    run: str
    method: str | None
    settings: dict[str, str]
    dim: int
    numbers: dict[str, float | None]
    state: str
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Agreement:
    """How well a choice without labels agrees with one by accuracy.

    Attributes:
        tau: Kendall's tau-b of the two orders, in [-1, 1]; None if all values of either are equal.
        pairs: share of the pairs of runs with different accuracies that the criterion puts in the same order. A tie
            counts half; 0.5 is chance. None without such pairs.
        regret: best accuracy of all runs minus that of the chosen run, in [0, 1].
        best: the most accurate run.
    """

    tau: float | None
    pairs: float | None
    regret: float
    best: str


@dataclass(frozen=True)
class Selection:
    """The runs in order, and reasons to trust or doubt it.

    Attributes:
        by: the criterion.
        data: name of the images, the same for all runs.
        images: how many images the criterion used.
        candidates: the runs, best first.
        warnings: reasons to doubt the choice, a sentence each.
        agreement: how well the choice agrees with each metric; empty without labels.
    """

    by: str
    data: str
    images: int
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...]
    agreement: dict[str, Agreement]

    @property
    def chosen(self) -> Candidate:
        """The best run by the criterion."""
        return self.candidates[0]

    def to_dict(self) -> dict[str, Any]:
        """Everything, with the chosen run's name, as JSON can hold it."""
        return dataclasses.asdict(self) | {"chosen": self.chosen.run}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def text(self) -> str:
        """A table of the runs, best first, and the conclusions, as lines to print."""
        head = ["run", *self.chosen.settings, *CRITERIA, *self.chosen.accuracy]
        rows = [
            [
                printable(c.run),
                *(printable(v, _SHOWN) for v in c.settings.values()),
                *("-" if c.numbers[k] is None else f"{c.numbers[k]:.4g}" for k in CRITERIA),
                *(f"{100 * v:.1f} %" for v in c.accuracy.values()),
            ]
            for c in self.candidates
        ]
        wide = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join(f"{cell:{w}}" for cell, w in zip(row, wide, strict=True)).rstrip() for row in [head, *rows]]
        lines += ["", f"Best by {_WORDS[self.by]}, on {self.images} images: {printable(self.chosen.run)}."]
        for metric, found in self.agreement.items():
            tau = "" if found.tau is None else f"Kendall's tau {found.tau:.2f}, "
            pairs = "" if found.pairs is None else f"{100 * found.pairs:.0f} % of pairs in the same order, "
            lines.append(
                f"Against {metric} accuracy: {tau}{pairs}{100 * found.regret:.1f} points below the best, "
                f"{printable(found.best)}."
            )
        return "\n".join(lines + [f"Careful: {warning}" for warning in self.warnings])


def select(
    runs: Sequence[str | Path],
    data: Any = None,
    *,
    by: str = "rankme",
    oracle: Any = None,
    test: Any = None,
    labels: str | Path | None = None,
    test_labels: str | Path | None = None,
    images: int = 10_000,
    viewed: int = 1_000,
    views: int = 10,
    seed: int = 0,
    min_per_class: int | None = None,
) -> Selection:
    """Rank runs by a number that needs no labels, computed on the same images for all runs.

    These criteria compare settings of one method: the weight of a term, a temperature, a learning rate, when to stop
    (Garrido et al. 2023; Thilak et al. 2024). They compare neither methods nor widths.

    Args:
        runs: two or more folders of runs, or files of weights whose architecture is known. Unfinished runs are left
            out if at least two others are finished.
        data: images; their labels are ignored. If None, the images that the runs were trained on.
        by: "rankme", "lidar", "alpha_req" or "auc": see `manyviews.evaluation.unlabeled.spectrum`.
        oracle: labeled images that measure how good the choice was: k-NN and linear accuracy of every run.
        test: labeled images to test on; a fifth of `oracle` if None.
        labels: a CSV file of `path,label` for an `oracle` whose first-level folders are not the labels.
        test_labels: the same for `test`.
        images: how many images to use at most.
        viewed: how many of them are seen in several views, for LiDAR.
        views: how many views each of these gets.
        seed: seed of the views and of the probes.
        min_per_class: see `manyviews.evaluate`, for `oracle`.

    Raises:
        UserError: fewer than two runs, no such criterion, an unfinished run, or no images that all runs share.
    """
    check_seed(seed)
    if by not in CRITERIA:
        raise unknown("criterion", by, CRITERIA)
    names = [str(run) for run in runs]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise UserError("Give two runs or more to select from, each of them once.")
    unfinished = [run for run in runs if RunFolder(Path(run)).started and not RunFolder(Path(run)).encoder.exists()]
    left_out = unfinished if len(runs) - len(unfinished) >= 2 else []  # as runs of a sweep that broke down
    runs = [run for run in runs if run not in left_out]
    names = [str(run) for run in runs]
    for run in runs:
        load(run)  # may refuse it, before hours of work; not kept, because all of them together can be large
    recipes = [RunFolder(Path(run)).recipe if Path(run).is_dir() else None for run in runs]
    source = opened(_shared(runs) if data is None else data)
    train = None if oracle is None else opened(oracle, labels)
    held = None if test is None else opened(test, test_labels)
    if train is not None:
        (train, *rest), rare = frequent([train, *([] if held is None else [held])], min_per_class)
        held = rest[0] if rest else None
        tell(train, [rare] if rare else [])

    found: list[Candidate] = []
    used = 0
    notes = {f"{printable(str(run))} is not finished, and was left out.": None for run in left_out}
    settings = _settings(recipes)
    with progress("select") as update:
        for i, (run, recipe) in enumerate(zip(runs, recipes, strict=True)):
            weights = load(run)
            (mine,) = seen_by(weights, source, quiet=i > 0)
            step = _share(update, i, len(runs), names[i])
            how = preprocessing(weights) | {"seed": seed}
            seen = diagnose(
                weights.encoder, mine, images=images, viewed=viewed, views=views, baseline=False, progress=step, **how
            )
            used = seen.images
            if seen.bad:
                notes |= {f"{len(seen.bad)} images of {source.name} could not be read and were left out.": None}
            accuracy = dict[str, float]()
            if train is not None:
                accuracy, more = _accuracy(weights, train, held, how)
                notes |= dict.fromkeys(more)
            method = None if recipe is None else recipe.method.name
            found.append(Candidate(names[i], method, settings[i], seen.dim, numbers_of(seen), seen.state, accuracy))
        update(_TICKS * len(runs), _TICKS * len(runs))
    goodness = [CRITERIA[by](c.numbers) for c in found]
    order = sorted(range(len(found)), key=lambda i: -goodness[i])
    return Selection(
        by,
        source.name,
        used,
        tuple(found[i] for i in order),
        tuple([*_warnings(found, recipes), *notes]),
        {m: agreement(names, goodness, [c.accuracy[m] for c in found]) for m in (METRICS if train else ())},
    )


def numbers_of(seen: Diagnosis) -> dict[str, float | None]:
    """The numbers that the criteria use."""
    return {k: getattr(seen, k) for k in ("rankme", "lidar", "alpha_req", "auc", "spread")}


def agreement(names: Sequence[str], goodness: Sequence[float], accuracy: Sequence[float]) -> Agreement:
    """How well the scores of runs (`goodness`; higher is better) agree with their accuracies."""
    from scipy.stats import kendalltau

    finite = [max(g, -1e300) for g in goodness]  # infinities are ordered too, but their difference is NaN
    tau = float(kendalltau(finite, accuracy).statistic)
    votes = [
        0.5 if finite[i] == finite[j] else float((finite[i] > finite[j]) == (accuracy[i] > accuracy[j]))
        for i, j in combinations(range(len(names)), 2)
        if accuracy[i] != accuracy[j]
    ]
    chosen = max(range(len(names)), key=lambda i: finite[i])
    best = max(range(len(names)), key=lambda i: accuracy[i])
    return Agreement(
        None if math.isnan(tau) else tau,
        sum(votes) / len(votes) if votes else None,
        accuracy[best] - accuracy[chosen],
        names[best],
    )


def _number(value: float | None) -> float:
    """The value; minus infinity, the worst, if it could not be computed."""
    return -math.inf if value is None else value


def _shared(runs: Sequence[str | Path]) -> str:
    """Address of the images that all runs were trained on."""
    places = {RunFolder(Path(run)).facts.get("data") if Path(run).is_dir() else None for run in runs}
    place = places.pop()
    if places or place is None:
        raise UserError("These runs do not record that they were trained on the same images: give images as --data.")
    return str(place)


def _settings(recipes: Sequence[Recipe | None]) -> list[dict[str, str]]:
    """The settings in which the runs differ, for each run."""
    known = [recipe for recipe in recipes if recipe is not None]
    changes = [{} if r is None else {path: new for path, _, new in differences(known[0], r)} for r in recipes]
    usual = {path: old for r in known for path, old, _ in differences(known[0], r)}
    return [
        {path: "-" if r is None else str(mine.get(path, old)) for path, old in usual.items()}
        for r, mine in zip(recipes, changes, strict=True)
    ]


def _accuracy(
    weights: Pretrained, train: Source, test: Source | None, how: Mapping[str, Any]
) -> tuple[dict[str, float], list[str]]:
    """Accuracy by metric, and notes on the images."""
    train, *rest = seen_by(weights, train, *([] if test is None else [test]), quiet=True)
    test = rest[0] if rest else None
    report = evaluation.evaluate(weights.encoder, train, test, protocols=METRICS, baselines=False, **how)
    notes = [*report.notes, *([f"{len(report.bad)} labeled images could not be read."] if report.bad else [])]
    return {m: report.representations["trained"].scores[m].top1 for m in METRICS}, notes


def _warnings(found: Sequence[Candidate], recipes: Sequence[Recipe | None]) -> list[str]:
    methods = sorted({c.method for c in found if c.method is not None})
    widths = sorted({c.dim for c in found})
    backbones = {json.dumps([r.backbone.name, dict(r.backbone.settings)], default=str) for r in recipes if r}
    warnings = []
    if len(methods) > 1:
        warnings.append(
            f"these are runs of {', '.join(methods)}: no such criterion compares methods (Garrido et al. 2023)."
        )
    if len(widths) > 1:
        warnings.append(
            f"their features have {', '.join(map(str, widths))} dimensions: wider features have higher ranks without "
            "being better."
        )
    elif len(backbones) > 1:
        warnings.append("they have different backbones, whose spectra are not comparable.")
    for c in found:
        if c.state != HEALTHY:
            warnings.append(f"{printable(c.run)}: {c.state}.")
    return warnings


def _share(update: Update, i: int, of: int, name: str) -> Update:
    """Progress of one run among several."""

    def step(done: float, total: float, note: Note = "") -> None:
        update(_TICKS * i + int(_TICKS * done / max(1, total)), _TICKS * of, printable(name, _SHOWN))

    return step
