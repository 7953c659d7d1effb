"""A run and its evaluation on one screen.

Names and labels come from other people's data. They are shown as `rich.text.Text`, never as markup.
"""

from __future__ import annotations

import dataclasses
import io
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from manyviews.data.files import shown
from manyviews.errors import printable
from manyviews.evaluation import Metric
from manyviews.evaluation.dense import Dense
from manyviews.evaluation.protocols import title
from manyviews.evaluation.report import NAMES, Report, Score, percent
from manyviews.progress import duration
from manyviews.settings import Component, Recipe

WIDTH = 100  # characters, where there is no terminal

_SHOWN = 3  # unreadable images that are named
_COLUMNS = 3  # protocols in one table
_DETAILS = 12  # details of a measure that are printed


def summary(facts: Mapping[str, Any], report: Report | None = None) -> RenderableType:
    """A summary of a run, for `rich.print`.

    Args:
        facts: facts about the run; every one may be missing. `name` is the title. `data`, `recipe`, `state`, `time`,
            `speed`, `loss` and others are lines, in their order. `files` and `next` are lists of lines: the run's
            files, and commands to run next.
        report: report of its latest evaluation.
    """
    parts: list[RenderableType] = []
    if "name" in facts:
        parts.append(Text(printable(facts["name"]), style="bold"))
    lines = {k: v for k, v in facts.items() if k not in ("name", "files", "next") and v is not None}
    if lines:
        parts.append(_grid([(k, str(v)) for k, v in lines.items()]))
    if report is not None:
        for start in range(0, len(report.protocols), _COLUMNS):
            parts += ["", _scores(report, report.protocols[start : start + _COLUMNS])]
        for start in range(0, len(report.measures), _COLUMNS):
            parts += ["", _measures(report, report.measures[start : start + _COLUMNS])]
        parts += ["", Text(report.verdict, style="bold")]
        parts += [Text(printable(note, 300), style="yellow") for note in report.notes]
        parts += _remarks(report)
    for part in ("files", "next"):
        if facts.get(part):
            parts += ["", Text(part), *(Padding(Text(printable(line)), (0, 0, 0, 2)) for line in facts[part])]
    return Group(*parts)


def plain(facts: Mapping[str, Any], report: Report | None = None, width: int = WIDTH) -> str:
    """`summary` as text without colors, for files and pipes."""
    return _plain(summary(facts, report), width)


def _plain(content: RenderableType, width: int = WIDTH) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(content)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def show(report: Report, facts: Mapping[str, Any] | None = None) -> None:
    """Print an evaluation, and facts about the run, to standard output."""
    _print(facts or {}, report)


def show_run(run: Any) -> None:
    """Print a run and its latest evaluation to standard output; `run` is a `manyviews.Run`."""
    _print(facts_of(run), latest(run.folder))


def show_sweep(found: Mapping[str, Any]) -> None:
    """Print a sweep (`manyviews.verbs.sweep.Sweep.to_dict()`) to standard output, with the best value in bold."""
    scale, unit = (1.0, "") if found["metric"] == "rankme" else (100.0, " %")
    points = [*found["baselines"], *found["points"]]
    best = max(points, key=lambda p: sum(p["scores"]) / len(p["scores"]) if p["scores"] else -np.inf)
    table = _table("setting", "value", found["metric"], "seeds", "")
    for point in points:
        scores = np.array(point["scores"]) * scale
        spread = f" ± {scores.std(ddof=1):.1f}" if len(scores) > 1 else ""
        collapsed = f"{point['collapsed']} collapsed" if point["collapsed"] else ""
        score = f"{scores.mean():.1f}{unit}{spread}" if len(scores) else "-"
        cells = (point["setting"] or "baseline", point["value"], score)
        style = "bold" if point is best else ""
        table.add_row(*(Text(printable(c), style=style) for c in (*cells, str(len(scores)), collapsed)))
    files = [f"{found['folder']}/sweep.png", f"{found['folder']}/sweep.json"]
    _show(
        Group(
            table,
            "",
            Text(f"{found['metric']}: {found['words']}."),
            "",
            Text("files"),
            *(Padding(Text(printable(f)), (0, 0, 0, 2)) for f in files),
        )
    )


def show_transfer(rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> None:
    """Print the table and the notes of a suite (`manyviews.verbs.transfer.Transfer`) to standard output."""
    names = " or ".join(sorted({name for row in rows for name in row["metric"].split(" and ")}, reverse=True))
    table = _table("set", "protocol", f"{names} (95 % interval)", "mean per class", "untrained", "test images")
    for row in rows:
        style = "bold" if row["set"] == "mean" else ""
        interval = " ({:.1f} to {:.1f})".format(*(100 * v for v in row["interval"])) if row["interval"] else ""
        if row["deviation"] is not None:
            interval += f", ± {100 * row['deviation']:.1f} over seeds"
        table.add_row(
            Text(printable(row["set"]), style=style),
            Text(title(row["protocol"]), style=style),
            Text(_named(row), style=style).append(interval, style="dim"),
            "-" if row["mean_per_class"] is None else percent(row["mean_per_class"]),
            "-" if row["untrained"] is None else percent(row["untrained"]),
            str(row["images"] or ""),
        )
    _show(Group(table, *(Text(printable(note), style="yellow") for note in notes)))


def show_model(facts: Mapping[str, Any]) -> None:
    """Print what a model is and how good it is (its model.json) to standard output."""
    classes, images, learned = facts["classes"], facts["images"], facts["parameters"]
    rows = [
        (
            "numbers" if facts.get("task") == "numbers" else "classes",
            f"{len(classes)}: {', '.join(map(str, classes[:8]))}{', ...' if len(classes) > 8 else ''}",
        ),
        ("from", f"{facts['from']}, adapted by {facts['strategy']}"),
        ("learned", f"{learned['learned']:,} of {learned['all']:,} parameters and the head"),
        ("images", f"{images['train']:,} of {facts['data']} to learn from, {images['validation']:,} to choose with"),
        ("balance", facts["balance"] if facts.get("balance", "none") != "none" else ""),
        ("probabilities", f"of logits / {facts['temperature']:.2f}" if facts.get("task") not in _PLAIN else ""),
        ("time", duration(facts["seconds"]) if "seconds" in facts else ""),
    ]
    task = facts.get("task", "classes")
    table = _table("images", "", *_JUDGED_IN[task])
    other = facts.get("instead", {})
    for name, found in ((facts["strategy"], facts), *other.items()):
        parts = {part: found[part] for part in ("validation", "test", "corruptions") if part in found}
        for part, numbers in {**parts, **found.get("shifted", {})}.items():
            if task == "numbers" and "numbers" in numbers:
                for column, one in numbers["numbers"].items():
                    table.add_row(*_judged(part, f"{name}, {column}", one, task))
            else:
                table.add_row(*_judged(part, name, numbers, task))
    why = [Padding(Text(printable(text, 300)), (0, 0, 0, 2)) for text in facts.get("why", ())]
    title = Text(printable(facts.get("title", "A model")), style="bold")
    _show(Group(title, _grid([row for row in rows if row[1]]), "", table, *([""] if why else []), *why))


_PLAIN = ("numbers", "segmentation")  # without a temperature
_JUDGED_IN = {
    "classes": ("accuracy (95 % interval)", "mean per class", "calibration error"),
    "several": ("mAP (95 % interval)", "F1", "all labels right"),
    "numbers": ("mean absolute error (95 % interval)", "R²", ""),
    "segmentation": ("mIoU (95 % interval)", "pixel accuracy", "mean class accuracy"),
}
_KEYS = {
    "classes": ("accuracy", "mean_per_class", "calibration_error"),
    "several": ("mAP", "f1", "all_right"),
    "numbers": ("mae", "r2", ""),
    "segmentation": ("mIoU", "pixel accuracy", "mean class accuracy"),
}


def _judged(part: str, name: str, found: Mapping[str, Any], task: str) -> Iterator[Text]:
    """The row of what a model gets right on some images."""
    first, *others = _KEYS[task]
    shown = "{:.4g}".format if task == "numbers" else percent
    yield Text(printable(part, 40))
    yield Text(printable(name, 60), style="dim")
    value = Text(shown(found[first]) if first in found else "")
    if "interval" in found and first in found:
        low, high = (v if task == "numbers" else 100 * v for v in found["interval"])
        value.append(f" ({low:.4g} to {high:.4g})" if task == "numbers" else f" ({low:.1f} to {high:.1f})", style="dim")
    yield value
    for key in others:
        yield Text((f"{found[key]:.3f}" if task == "numbers" else percent(found[key])) if key in found else "")


def flat(facts: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every fact with its dotted path; lists stay whole."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _named(row: Mapping[str, Any]) -> str:
    """The value of a row, with the name of its metric unless it is an accuracy."""
    return percent(row["value"]) + ("" if row["metric"] == "top-1" else f" {row['metric']}")


def show_dense(found: Dense) -> None:
    """Print the result of a dense evaluation to standard output."""
    table = _table("", found.metric)
    for name, value in found.per_class.items():
        table.add_row(Text(printable(name, 40)), "-" if value is None else percent(value))
    others = ", ".join(f"{printable(name, 40)} {value:.3f}" for name, value in found.details.items())
    chosen = ", ".join(f"{name} {value:g}" for name, value in found.setting.items())
    lines = [f"{len(found.bad)} files could not be used and were left out."] if found.bad else []
    lines += [f"{printable(where, 80)}: {printable(reason, 80)}" for where, reason in found.bad[:_SHOWN]]
    lines += [f"{others}." if others else "", f"With {chosen}, in {duration(found.seconds)}."]
    shown = [Text(line, style="dim") for line in lines if line]
    _show(Group(table, "", Text(found.verdict, style="bold"), *shown))


def show_choice(found: Any) -> None:
    """Print candidates side by side, and what follows: a `manyviews.verbs.choose.Choice`."""
    labeled = any(c.linear is not None for c in found.candidates)
    accuracies = ("k-NN (95 % interval)", "linear (95 % interval)") if labeled else ()
    table = _table("backbone", *accuracies, "weights", "images/s", "effective rank", "regions at edges")
    for c in found.candidates:
        style = "bold" if c.name == found.best else ""
        scores = ((c.knn, c.knn_interval), (c.linear, c.linear_interval)) if labeled else ()
        cells = [
            Text(percent(value), style=style).append(f" ({percent(low)} to {percent(high)})", style="dim")
            for value, (low, high) in scores
        ]
        rank = f"{c.spectrum['rankme']:.0f} of {c.dim}"
        name = Text(printable(c.name, 60), style=style).append(
            f"\n{printable(c.backbone, 40)}, {c.test_size} px", "dim"
        )
        table.add_row(
            name,
            *cells,
            f"{c.parameters / 1e6:.1f} M, {c.memory / 2**20:.0f} MiB",
            f"{c.images_per_second:.0f}",
            rank,
            "" if c.edges is None else f"{100 * c.edges:.0f} %",
        )
    if found.pixels is not None:
        knn, linear = (Text(percent(v)) for v in found.pixels)
        table.add_row(Text("raw pixels"), knn, linear, "", "", "", "")
    words = [Text(printable(text, 1000), style="bold" if i == 0 else "") for i, text in enumerate(found.words)]
    left = [Text(printable(f"Left out {name}: {why}", 300), style="yellow") for name, why in found.skipped.items()]
    _show(Group(table, "", *words, *left))


def _print(facts: Mapping[str, Any], report: Report | None) -> None:
    _show(summary(facts, report))


def _show(content: RenderableType) -> None:
    console = Console()
    if console.is_terminal:
        console.print(content)
    else:
        print(_plain(content), end="")


def reports(folder: Path) -> list[Path]:
    """The reports among a run's evaluations. What is no plain file is left out: a pipe would wait for its writer."""
    return [f for f in (folder / "evaluations").glob("*/report.json") if f.is_file()]


def latest(folder: Path) -> Report | None:
    """The newest report among a run's evaluations."""
    found = [f for f in reports(folder) if f.parent.name.isdigit()]
    if not found:
        return None
    return Report.from_json(max(found, key=lambda f: int(f.parent.name)).read_text(encoding="utf-8"))


def facts_of(run: Any) -> dict[str, Any]:
    """Facts about a `manyviews.Run`, as `summary` takes them."""
    recipe, about, ended, folder = run.recipe, run.facts, run.summary, run.folder
    log = run.log
    logged = [row for row in log if "loss" in row]
    last = logged[-1] if logged else {}
    # A budget or an early end decides otherwise than the recipe.
    epochs = recipe.all_epochs if ended is None else ended.get("epochs", recipe.all_epochs)
    facts: dict[str, Any] = {
        "name": recipe.name,
        "data": f"{shown(about.get('data') or 'images in memory')}, {about.get('images', '?')} images",
        "recipe": f"{recipe.method.name}, {recipe.backbone.name}, {epochs:.4g} epochs of batches of "
        f"{recipe.data.batch_size}, seed {recipe.seed}",
        "machine": about.get("machine"),
    }
    if ended is None:
        facts["state"] = f"unfinished, {last.get('epoch', 0):.1f} of {recipe.all_epochs:g} epochs"
    else:
        facts["time"] = duration(ended["seconds"])
    rates = [row["images_per_second"] for row in logged if _is_number(row.get("images_per_second"))]
    if rates:
        waits = [row["data_wait"] for row in logged if _is_number(row.get("data_wait"))]
        waiting = f", waiting for images {statistics.median(waits):.1%} of the time" if waits else ""
        facts["speed"] = f"{statistics.median(rates):.0f} images/s{waiting}"
    if _is_number(last.get("loss")):
        facts["loss"] = f"{logged[0]['loss']:.3f} at the start, {last['loss']:.3f} at the end"
    facts["kept"] = kept(log)
    if ended is not None and ended.get("bad_images"):
        facts["left out"] = f"{ended['bad_images']} images that cannot be read"
    facts["files"] = [str(folder / name) for name in ("encoder.safetensors", "plots") if (folder / name).exists()]
    where = shlex.quote(str(folder))
    if ended is None:
        facts["next"] = [f"manyviews resume {where}"]
    else:
        form = "timm" if recipe.backbone.settings.get("stem", "native") == "native" else "onnx"
        facts["next"] = [
            f"manyviews evaluate {where} --data LABELED_IMAGES",
            f"manyviews embed {where} IMAGES --out features.parquet",
            f"manyviews export {where} --format {form} --out backbone{'' if form == 'timm' else '.onnx'}",
        ]
    return facts


def kept(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What a run from weights has kept of them and what it has forgotten, in a few sentences; None if it has none."""
    seen = [row for row in rows if _is_number(row.get("monitor/cka"))]
    if len(seen) < 2:
        return None
    first, last = seen[0], seen[-1]
    inside = {k.removeprefix("monitor/cka/"): v for k, v in last.items() if k.startswith("monitor/cka/")}
    cka, moved = last["monitor/cka"], last["monitor/moved"]
    text = f"the features are {_LIKE[sum(cka < limit for limit in _LIMITS)]} those at the start (CKA {cka:.2f}"
    if inside:
        least = min(inside, key=lambda name: inside[name])
        text += f", least {inside[least]:.2f} in {least}"
    text += f"); the weights moved by {moved:.1%}"
    for name, images in (("monitor/old_knn", "the old images"), ("monitor/knn", "these")):
        if _is_number(first.get(name)) and _is_number(last.get(name)):
            text += f"; k-NN on {images} went from {percent(first[name])} to {percent(last[name])}"
    return f"{text}."


_LIMITS = (0.95, 0.8, 0.5)
_LIKE = ("nearly", "much like", "partly like", "unlike")
"""Words for a CKA of at least each limit, and of less."""


def settings(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Every setting of a recipe: dotted path and value."""

    def walk(x: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(x, Component):
            yield f"{path}.name", x.name
            for name, value in x.settings.items():
                yield f"{path}.{name}", value
        elif dataclasses.is_dataclass(x) and type(x).__module__ == Recipe.__module__:
            for field in dataclasses.fields(x):
                yield from walk(getattr(x, field.name), f"{path}.{field.name}" if path else field.name)
        else:
            yield path, x

    return walk(recipe, "")


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float))


def _table(*columns: str) -> Table:
    """A table without lines, with these column titles."""
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(Text(column))
    return table


def _grid(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(printable(name)), Text(printable(value, 200)))
    return table


def _scores(report: Report, protocols: Sequence[str]) -> Table:
    table = _table("top-1 (95 % interval)", *(title(p) for p in protocols))
    for column in table.columns[1:]:
        column.no_wrap = True
    for name, found in report.representations.items():
        style = "bold" if name == "trained" else ""
        cells = [_cell(found.scores[p], style) if p in found.scores else Text("-", style="dim") for p in protocols]
        table.add_row(Text(NAMES.get(name, name), style=style), *cells)
    return table


def _measures(report: Report, measures: Sequence[str]) -> Table:
    trained = report.representations["trained"]
    titles = (f"{title(name)}: {trained.measures[name].name}" for name in measures)
    table = _table("measured (95 % interval)", *titles)
    for name, found in report.representations.items():
        style = "bold" if name == "trained" else ""
        cells = [
            _measured(found.measures[m], style) if m in found.measures else Text("-", style="dim") for m in measures
        ]
        table.add_row(Text(NAMES.get(name, name), style=style), *cells)
    return table


def _measured(measure: Metric, style: str) -> Text:
    text = Text(f"{measure.value:.3f}", style=style)
    if measure.interval is None:
        return text
    low, high = measure.interval
    return text.append(f" ({low:.3f} to {high:.3f})", style="dim")


def _cell(score: Score, style: str) -> Text:
    low, high = score.interval
    return Text(percent(score.top1), style=style).append(f" ({100 * low:.1f} to {100 * high:.1f})", style="dim")


def conditions(report: Report) -> str:
    """The images, the size, the seed and the time of an evaluation, in a sentence."""
    count = report.images
    return (
        f"{count['test']} test images of {printable(report.test or report.source, 60)} in {len(report.classes)} "
        f"classes, {count['train']} to learn from, {count['validation']} to choose on; at {report.test_size} pixels, "
        f"{'' if report.features == 'pooled' else f'features {report.features}, '}seed {report.seed}, in "
        f"{duration(report.seconds)}."
    )


def _by_class(report: Report) -> tuple[float | None, ...]:
    """Accuracy of each class under the headline protocol, if there is one."""
    if report.headline is None:
        return (None,) * len(report.classes)
    return report.representations["trained"].scores[report.headline].per_class


def _remarks(report: Report) -> list[Text]:
    trained = report.representations["trained"]
    remarks = []
    for name, measure in trained.measures.items():
        shown = [f"{printable(k, 40)} {v:.3f}" for k, v in list(measure.details.items())[:_DETAILS]]
        more = f" and {len(measure.details) - _DETAILS} more" if len(measure.details) > _DETAILS else ""
        if shown:
            remarks.append(f"{title(name)}: {', '.join(shown)}{more}.")
        if measure.by_seed:
            remarks.append(
                f"{title(name)}: mean of {len(measure.by_seed)} seeds, standard deviation "
                f"{statistics.stdev(measure.by_seed):.3f}."
            )
    top5 = [f"{title(p)} {percent(found.top5)}" for p, found in trained.scores.items() if found.top5 is not None]
    if top5:
        remarks.append(f"Top-5 accuracy: {', '.join(top5)}.")
    for protocol, found in trained.scores.items():
        if "images" in found.setting:
            remarks.append(
                f"{title(protocol)}: {found.setting['images']:g} images; learning rate "
                f"{found.setting['lr']:g} and {found.setting['epochs']:g} epochs chosen on the validation images."
            )
    several = {p: s.by_seed for p, s in trained.scores.items() if len(s.by_seed) > 1}
    for protocol, by_seed in several.items():
        spread = statistics.stdev(by_seed)
        remarks.append(f"{title(protocol)}: mean of {len(by_seed)} seeds, standard deviation {percent(spread)}.")
    accuracies = [(a, name) for a, name in zip(_by_class(report), report.classes, strict=True) if a is not None]
    if len(accuracies) > 1:
        (low, hardest), (high, easiest) = min(accuracies), max(accuracies)
        remarks.append(
            f"From {percent(low)} for '{printable(hardest, 40)}' to {percent(high)} for '{printable(easiest, 40)}'."
        )
    remarks.append(f"{conditions(report)} RankMe {trained.rankme:.1f} of {trained.dim}.")
    if report.bad:
        named = "; ".join(f"{printable(where, 80)}: {printable(reason, 80)}" for where, reason in report.bad[:_SHOWN])
        more = f"; and {len(report.bad) - _SHOWN} more" if len(report.bad) > _SHOWN else ""
        remarks.append(f"{len(report.bad)} images could not be read and were left out ({named}{more}).")
    return [Text(remark, style="dim") for remark in remarks]
