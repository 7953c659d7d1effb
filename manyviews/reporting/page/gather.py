"""The numbers of runs that the page shows, as text, numbers, lists and dicts that JSON can hold."""

from __future__ import annotations

import math
import re
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manyviews.data.files import shown
from manyviews.errors import UserError, printable
from manyviews.evaluation import protocols as registry
from manyviews.evaluation.report import COLLAPSED_SPREAD, NAMES, Report, percent
from manyviews.reporting import summary
from manyviews.reporting.text import MOST_CLASSES, ends
from manyviews.reporting.words import LOSS, PROTOCOLS, capital, named

Facts = dict[str, Any]

MOST_POINTS = 1000
"""How many points a curve has at most. A longer one keeps the least and the greatest value of each stretch."""

_DIGITS = 6
_NAMED = 3  # other runs that a card names

# Curves in their order: name in the log, factor, unit, logarithmic axis or not. Terms of the loss come before "lr".
_CURVES: tuple[tuple[str, float, str, bool], ...] = (
    ("loss", 1, "", False),
    ("monitor/knn", 100, "%", False),
    ("monitor/linear", 100, "%", False),
    ("monitor/old_knn", 100, "%", False),
    ("monitor/cka", 1, "", False),
    ("monitor/moved", 1, "", False),
    ("monitor/rankme", 1, "", False),
    ("monitor/spread", 1, "", False),
    ("monitor/alignment", 1, "", False),
    ("monitor/uniformity", 1, "", False),
    ("watch/information", 1, "nats", False),
    ("watch/kl", 1, "nats", False),
    ("watch/teacher_entropy", 1, "", False),
    ("watch/perplexity", 1, "", False),
    ("watch/unused", 100, "%", False),
    ("watch/target_spread", 1, "", False),
    ("monitor/patch_rankme", 1, "", False),
    ("monitor/patch_cosine", 1, "", False),
    ("lr", 1, "", False),
    ("momentum", 1, "", False),
    ("grad_norm", 1, "", True),
    ("grad_peak", 1, "", True),
    ("images_per_second", 1, "images/s", False),
    ("data_wait", 100, "% of the time", False),
)
_NOISY = {"loss", "grad_norm", "grad_peak", "images_per_second", "data_wait"}
_FIRST = {key for key, *_ in _CURVES} - {"momentum", "grad_peak", "watch/unused", "watch/teacher_entropy"}
_LABELED = {"monitor/knn", "monitor/linear"}
# Numbers that are logged for each layer: what their names begin with, and the number of all layers.
_BY_LAYER = {"monitor/cka/": "monitor/cka", "monitor/moved/": "monitor/moved"}
_FLOORS = {"monitor/spread": COLLAPSED_SPREAD}
_NOT_CURVES = {"step", "epoch", "stage", "alarm", "monitor/dim", "monitor/patch_dim", "monitor/projection_dim"}


def run_facts(run: Any, name: str) -> Facts:
    """Everything about a `manyviews.Run` except its curves and its evaluation.

    Returns:
        "name", "quoted" (the folder, quoted for a shell), "what" (one line), "facts" (pairs), "warnings" (sentences),
        "missing" (pairs of what is missing and the command that adds it), "unfinished" (or not), "steps_per_epoch"
        (None when unknown).
    """
    recipe, ended, log = run.recipe, run.summary, run.log
    where, about = shlex.quote(printable(run.folder)), summary.facts_of(run)
    method, backbone = recipe.method.name, recipe.backbone.name
    missing = []
    if ended is None:
        missing.append((f"It is {about['state']}. To continue it:", f"manyviews resume {where}"))
    if not summary.reports(run.folder):
        missing.append(("It has not been evaluated yet.", f"manyviews evaluate {where} --data LABELED_IMAGES"))
    shown = ("data", "recipe", "machine", "state", "time", "speed", "loss", "kept", "left out")
    started = run.facts.get("started")
    return {
        "name": name,
        "quoted": where,
        "what": f"{method} on {backbone}, {recipe.all_epochs:g} epochs",
        "facts": [
            ("folder", printable(run.folder)),
            *((k, printable(about[k], 200)) for k in shown if about.get(k)),
            *([("started", printable(started, 40))] if started else []),
        ],
        "warnings": list(_warnings(log, ended)),
        "missing": missing,
        "unfinished": ended is None,
        "steps_per_epoch": _steps_per_epoch(log),
    }


def names(runs: Sequence[Any]) -> list[str]:
    """Names of the runs: their folders' names, with parent folders if these are not distinct."""
    parts = [Path(run.folder).absolute().parts for run in runs]
    tries = [["/".join(p[-depth:]) for p in parts] for depth in (1, 2, 3)]
    numbered = [f"{p[-1]} ({i})" for i, p in enumerate(parts, 1)]
    return [printable(name, 60) for name in next((t for t in tries if len(set(t)) == len(t)), numbered)]


# -- curves ------------------------------------------------------------------------------------------------------


def curves(runs: Sequence[Any]) -> list[Facts]:
    """A chart for every number that was logged, with a line for each run, in reading order.

    Returns:
        For each chart "id", "title", "unit", "log", "hint", "floor" (values below it mean collapse; or None), "noisy"
        (may be smoothed), "more" (of less interest) and "lines", each with "run" (its number), "x" (steps), "y", and in
        charts by layer "layer".
        Numbers that are not finite are left out.
    """
    logs = [run.log for run in runs]
    logged = list(dict.fromkeys(name for log in logs for row in log for name in row if name not in _NOT_CURVES))
    layered = [name for name in logged if name.startswith(tuple(_BY_LAYER))]
    logged = [name for name in logged if name not in layered]
    terms = sorted(name for name in logged if name.startswith(LOSS))
    charts: list[tuple[str, float, str, bool]] = []
    for chart in _CURVES:
        charts += [(term, 1, "", False) for term in terms] if chart[0] == "lr" else []
        charts.append(chart)
    known = {key for key, *_ in charts}
    charts += [(key, 1, "", False) for key in logged if key not in known]
    others = len({_held_out(run) for run in runs}) > 1
    found = []
    for key, factor, unit, log in charts:
        title, hint = named(key)
        lines: list[Facts] = [
            {"run": i, "x": x, "y": y}
            for i, rows in enumerate(logs)
            if (points := _points(rows, key, factor)) is not None
            for x, y in (points,)
        ]
        if key == "loss" and len({run.recipe.method.name for run in runs}) > 1:
            hint = "Each method has its own: do not compare them."
            log = all(min(line["y"]) > 0 for line in lines)
        if key in _LABELED and others and len(lines) > 1:
            hint += " These runs held out other images, so do not compare the curves with each other."
        if lines:
            chart_of = {"id": key, "title": capital(title), "unit": unit, "log": log, "hint": hint, "lines": lines}
            chart_of["more"] = key not in _FIRST and not key.startswith(LOSS)
            found.append(chart_of | {"floor": _FLOORS.get(key), "noisy": key in _NOISY or key.startswith(LOSS)})
    for prefix, whole in _BY_LAYER.items():
        title, hint = named(whole)
        lines = [
            {"run": i, "x": points[0], "y": points[1], "layer": printable(key.removeprefix(prefix), 40)}
            for i, rows in enumerate(logs)
            for key in layered
            if key.startswith(prefix) and (points := _points(rows, key, 1)) is not None
        ]
        if lines:
            shown = {"id": prefix, "title": f"{capital(title)}, by layer", "unit": "", "log": False, "hint": hint}
            found.append(shown | {"lines": lines, "more": True, "floor": None, "noisy": False})
    return found


def _held_out(run: Any) -> tuple[Any, ...]:
    """What decides which images of a run are held out."""
    return run.facts.get("data"), run.facts.get("images"), run.recipe.data.holdout


def _points(rows: Sequence[Mapping[str, Any]], key: str, factor: float) -> tuple[list[float], list[float]] | None:
    points = [(row["step"], factor * row[key]) for row in rows if _finite(row.get(key)) and _finite(row.get("step"))]
    if not points:
        return None
    kept = thinned(np.array([y for _, y in points]))
    return [points[i][0] for i in kept], [rounded(points[i][1]) for i in kept]


def thinned(y: np.ndarray, most: int = MOST_POINTS) -> list[int]:
    """Indices of the values to draw: all, or the first, the last, and the least and greatest of each stretch."""
    if len(y) <= most:
        return list(range(len(y)))
    kept = {0, len(y) - 1}
    for part in np.array_split(np.arange(len(y)), most // 2 - 1):
        kept |= {int(part[y[part].argmin()]), int(part[y[part].argmax()])}
    return sorted(kept)


def _steps_per_epoch(log: Sequence[Mapping[str, Any]]) -> float | None:
    known = [r["step"] / r["epoch"] for r in log if _finite(r.get("epoch")) and r["epoch"] > 0 and _finite(r["step"])]
    return rounded(known[-1]) if known else None


def _warnings(log: Sequence[Mapping[str, Any]], ended: Mapping[str, Any] | None) -> Iterator[str]:
    """Sentences about signs of trouble in the log."""
    yield from (f"At step {row.get('step')}: {printable(row['alarm'], 300)}" for row in log if "alarm" in row)
    seen = [r for r in log if r.get("step", 0) > 0]
    held = [(r["monitor/knn"], r["step"]) for r in seen if _finite(r.get("monitor/knn"))]
    if held and max(held)[0] - held[-1][0] > 0.05:
        best, step = max(held)
        yield (
            f"Accuracy of nearest neighbors on held-out images was best at step {step} ({percent(best)}) and "
            f"{percent(held[-1][0])} at the end."
        )
    bad = sum(isinstance(row.get("loss"), str) for row in log)
    if bad:
        yield f"The loss was not finite in {bad} of the log's lines. A lower learning rate may help."
    norms = [(r["grad_norm"], r["step"]) for r in log if _finite(r.get("grad_norm")) and _finite(r.get("step"))]
    if len(norms) > 10:
        middle, (top, step) = statistics.median(n for n, _ in norms), max(norms)
        if middle > 0 and top > 20 * middle:
            yield f"The gradient's norm jumped to {top:.3g} at step {step}; its median is {middle:.3g}."
    waits = [r["data_wait"] for r in log if _finite(r.get("data_wait"))]
    if waits and statistics.median(waits) > 0.2:
        yield (
            f"Training waited for images {statistics.median(waits):.0%} of the time: `manyviews prepare` decodes them "
            "once and for all."
        )
    if ended is not None and ended.get("bad_images"):
        yield f"{ended['bad_images']} images could not be read and were left out."


# -- evaluations -------------------------------------------------------------------------------------------------


Evaluated = tuple[Report, dict[str, Facts]]
"""A report, and facts about each representation."""


def evaluated(folder: Path) -> tuple[Evaluated | None, list[str]]:
    """A run's newest evaluation, completed by older ones of the same images; None without any.

    Returns:
        The newest report, preferably one with k-NN, which verdicts are about; for each representation "dim",
        "rankme", "spread", "spectrum", "scores" and "measures" by protocol; and sentences that a reader must know.
    """
    found, remarks = list[Report](), list[str]()
    for path in sorted(summary.reports(folder), key=_number, reverse=True):
        try:
            found.append(Report.from_json(path.read_text(encoding="utf-8")))
        except (UserError, OSError) as error:
            remarks.append(f"The evaluation {path.parent.name} cannot be read: {printable(error, 120)}")
    if not found:
        return None, remarks
    same = [r for r in found if setting(r) == setting(found[0])]
    remarks += dict.fromkeys(printable(note, 300) for report in same for note in report.notes)
    parts: dict[str, Facts] = {}
    for report in same:
        for name, r in report.representations.items():
            part = parts.setdefault(
                name,
                {
                    "dim": r.dim,
                    "rankme": rounded(r.rankme),
                    "spread": rounded(r.spread),
                    "spectrum": [rounded(s) for s in r.singular_values],
                    "scores": {},
                    "measures": {},
                },
            )
            part["scores"] = {p: _score(s) for p, s in r.scores.items()} | part["scores"]
            part["measures"] = {p: _measure(m) for p, m in r.measures.items()} | part["measures"]
    return (next((r for r in same if "knn" in r.protocols), same[0]), parts), remarks


def setting(report: Report) -> tuple[Any, ...]:
    """The facts that two comparable evaluations have in common."""
    return report.source, report.test, tuple(sorted(report.images.items())), report.classes


def title(protocol: str) -> str:
    """Title of a protocol, in words where it has an abbreviation."""
    return re.sub(r"\bk-NN\b", "nearest neighbors (k-NN)", registry.title(protocol).replace("_", " "))


def hint(protocol: str) -> str:
    """What a protocol does, in plain words or in the first line of its description; "" if it is not known here."""
    if protocol in PROTOCOLS:
        return PROTOCOLS[protocol]
    found = registry.known().get(registry.canonical(protocol))
    return "" if found is None else (found.__doc__ or "").strip().partition("\n")[0]


def measured_on(run: Any, report: Report) -> str:
    """Sentences about the images that the numbers of a run's card come from."""
    others = any("monitor/knn" in row or "monitor/linear" in row for row in run.log)
    return f"Measured on {summary.conditions(report)}" + others * (
        " The accuracies under Training are other numbers: they come from images held out of training."
    )


def unlike(i: int, names: Sequence[str], reports: Sequence[Evaluated | None]) -> str:
    """A sentence about the other runs whose numbers come from other images; "" if there are none."""
    mine = reports[i]
    if mine is None:
        return ""
    others = [
        (name, found[0])
        for name, found in zip(names, reports, strict=True)
        if found is not None and setting(found[0]) != setting(mine[0])
    ]
    if not others:
        return ""
    told = "; ".join(f"{name} on {_test_images(report)}" for name, report in others[:_NAMED])
    more = f"; and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return (
        f"Evaluated on {_test_images(mine[0])}, and other runs on other images ({told}{more}): compare these numbers "
        "with this run's own baselines alone."
    )


def _test_images(report: Report) -> str:
    what = printable(report.test or report.source, 60)
    return f"{report.images['test']} test images of {what} in {len(report.classes)} classes"


def accuracies(runs: Sequence[Facts], reports: Sequence[Evaluated | None]) -> Facts:
    """Accuracies and measures of all runs and their baselines.

    Args:
        runs: results of `run_facts`.
        reports: first results of `evaluated`, one for each run.

    Returns:
        "protocols" and "measures", lists of "id", "title" and "rows". A row has "run", "kind" ("trained",
        "untrained", "pixels"), "label", "value", "low" and "high" (percent, or a measure's own unit; None without an
        interval); rows of measures also have "details". "on" says the
        test images of a row. "remarks" are sentences, and "unlike" those about different images. "by_class" and "by_k"
        are charts or None.
    """
    there = {i: found for i, found in enumerate(reports) if found is not None}
    several = len(runs) > 1
    protocols: dict[str, Facts] = {}
    measures: dict[str, Facts] = {}
    # Raw pixels belong to no run: they come last, once for all evaluations of the same images at the same size.
    pixels = {
        (setting(report), report.test_size): (i, "pixels")
        for i, (report, parts) in reversed(there.items())
        if "pixels" in parts
    }
    order = [(i, kind) for i, (_, parts) in there.items() for kind in parts if kind != "pixels"]
    order += sorted(pixels.values())
    for i, kind in order:
        part, label = there[i][1][kind], NAMES.get(kind, kind)
        if several and kind == "trained":
            label = runs[i]["name"]
        elif several and (kind != "pixels" or len(pixels) > 1):
            label = f"{label.removesuffix(' encoder')} ({runs[i]['name']})"
        row = {"run": i, "kind": kind, "label": printable(label, 80), "on": _test_images(there[i][0])}
        for p, score in part["scores"].items():
            chart = protocols.setdefault(p, {"id": p, "title": title(p), "hint": hint(p), "rows": []})
            chart["rows"].append(row | score)
        for p, measure in part["measures"].items():
            chart = measures.setdefault(p, {"id": p, "title": title(p), "name": measure["name"], "rows": []})
            chart["rows"].append(row | measure)
    remarks, differ = list[str](), list[str]()
    if len({setting(report) for report, _ in there.values()}) > 1:
        differ.append(
            "These runs were evaluated on different images: compare each with its own baselines, not with other runs."
        )
    for i, (report, _) in there.items():
        who = f"{runs[i]['name']}: " if several else ""
        remarks.append(who + summary.conditions(report))
        if report.bad:
            remarks.append(f"{who}{len(report.bad)} images could not be read and were left out.")
    return {
        "protocols": list(protocols.values()),
        "measures": list(measures.values()),
        "remarks": remarks,
        "unlike": differ,
        "by_class": _by_class(runs, there),
        "by_k": _by_k(order, there),
    }


def _by_class(runs: Sequence[Facts], there: Mapping[int, Evaluated]) -> Facts | None:
    """Accuracy by class under the first run's headline protocol, for the runs evaluated on the same images."""
    if not there:
        return None
    first, parts = next(iter(there.values()))
    scored = parts["trained"]["scores"]
    headline = next((p for p in ("knn", *scored) if p in scored), None)
    if headline is None:
        return None
    lines = []
    for i, (report, found) in there.items():
        if setting(report) != setting(first):
            continue
        for kind in ("trained", "untrained"):
            if kind in found and headline in found[kind]["scores"]:
                label = runs[i]["name"] if kind == "trained" else f"untrained ({runs[i]['name']})"
                lines.append(
                    {"run": i, "kind": kind, "label": label, "values": found[kind]["scores"][headline]["by_class"]}
                )
    order = [k for k, v in enumerate(lines[0]["values"]) if v is not None]
    order.sort(key=lambda k: -lines[0]["values"][k])
    left_out = max(0, len(order) - MOST_CLASSES)
    order = list(ends(order))
    return {
        "title": f"{title(headline)} by class",
        "classes": [printable(first.classes[k], 80) for k in order],
        "lines": [line | {"values": [line["values"][k] for k in order]} for line in lines],
        "left_out": left_out,
    }


def _by_k(order: Sequence[tuple[int, str]], there: Mapping[int, Evaluated]) -> list[Facts] | None:
    lines = []
    for i, kind in order:
        others = there[i][1][kind]["scores"].get("knn", {}).get("others", {})
        points = sorted((int(m[1]), v) for k, v in others.items() if (m := re.fullmatch(r"k=(\d+) weighted", k)))
        if points:
            lines.append({"run": i, "kind": kind, "x": [k for k, _ in points], "y": [v for _, v in points]})
    return lines or None


def _score(score: Any) -> Facts:
    low, high = score.interval
    seeds = _seeds([100 * accuracy for accuracy in score.by_seed], 1)
    return {
        "value": rounded(100 * score.top1),
        "text": f"{100 * score.top1:.1f}",
        "low": rounded(100 * low),
        "high": rounded(100 * high),
        "top5": None if score.top5 is None else rounded(100 * score.top5),
        "by_class": [None if a is None else rounded(100 * a) for a in score.per_class],
        "others": {printable(k, 60): rounded(100 * v) for k, v in score.others.items()},
        "setting": ", ".join(filter(None, [_words(score.setting), seeds])),
    }


def _measure(measure: Any) -> Facts:
    low, high = measure.interval or (None, None)
    details = {printable(k, 60): rounded(v) for k, v in measure.details.items() if _finite(v)}
    return {
        "name": printable(measure.name, 60),
        "value": rounded(measure.value) if _finite(measure.value) else None,
        "low": None if low is None else rounded(low),
        "high": None if high is None else rounded(high),
        "details": details,
        "curve": _curve(details),
        "setting": ", ".join(filter(None, [_words(measure.setting), _seeds(measure.by_seed, 3)])),
    }


def _seeds(values: Sequence[float], digits: int) -> str:
    return f"{len(values)} seeds, {min(values):.{digits}f} to {max(values):.{digits}f}" if len(values) > 1 else ""


def _words(setting: Mapping[str, float]) -> str:
    return ", ".join(
        f"{'learning rate' if k == 'lr' else printable(k, 40).replace('_', ' ')} {v:g}" for k, v in setting.items()
    )


def _curve(details: Mapping[str, float]) -> Facts | None:
    """The curve of details whose names differ in one number, such as "recall at 1", "recall at 5"; or None."""
    parts = [re.fullmatch(r"(\D*?)(-?\d+(?:\.\d+)?(?:e-?\d+)?)(\D*)", name) for name in details]
    known = [m for m in parts if m is not None]
    if len(known) < 3 or len(known) < len(parts) or len({(m[1], m[3]) for m in known}) > 1:
        return None
    points = sorted(zip((float(m[2]) for m in known), details.values(), strict=True))
    label = f"{known[0][1].strip(' =@')}{known[0][3]}".strip() or "setting"
    return {"x": [x for x, _ in points], "y": [y for _, y in points], "label": label}


def tone(verdict: str) -> str:
    """The tone of a verdict: "good", "weak", "bad" or "plain"."""
    if "collapsed" in verdict:
        return "bad"
    if "not better" in verdict:
        return "weak"
    return "good" if verdict.startswith(("The features are good", "The features are better")) else "plain"


# -- settings ----------------------------------------------------------------------------------------------------


def settings(runs: Sequence[Any]) -> Facts:
    """Settings that "differ" (name and a value for each run) and settings that are the "same" (name and value)."""
    found = [{k: printable(v, 3000) for k, v in summary.settings(run.recipe)} for run in runs]
    for values, run in zip(found, runs, strict=True):
        values["images"] = printable(
            f"{shown(run.facts.get('data') or 'in memory')}, {run.facts.get('images', '?')}", 300
        )
    every = list(dict.fromkeys(k for values in found for k in values))
    parts = list(dict.fromkeys(k.partition(".")[0] for k in every))
    every.sort(key=lambda k: parts.index(k.partition(".")[0]))
    rows = [(printable(k, 80), [values.get(k, "") for values in found]) for k in every]
    return {
        "differ": [row for row in rows if len(set(row[1])) > 1],
        "same": [(k, values[0]) for k, values in rows if len(set(values)) == 1],
    }


def rounded(x: float) -> float:
    """Round to six digits: a page of thousands of numbers needs no more."""
    return float(f"{x:.{_DIGITS}g}")


def _finite(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def _number(path: Path) -> int:
    return int(path.parent.name) if path.parent.name.isdigit() else -1
