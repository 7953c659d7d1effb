"""Plots of runs and evaluations, as PNG files."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from manyviews.checkpoint import write_atomically
from manyviews.data import BadImage, Source
from manyviews.evaluation import Report, test_transform
from manyviews.evaluation.protocols import title
from manyviews.evaluation.report import NAMES
from manyviews.reporting.text import ends, unmathed
from manyviews.reporting.words import named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
"""Rows of a run's log: numbers by name, with "step". A number that is not finite is a string."""

_COLORS = {"trained": "#1b6ca8", "untrained": "#e08e45", "pixels": "#8a8a8a"}
_RIGHT, _WRONG = "#2e7d32", "#b23a3a"
_STYLE: Any = {
    "text.usetex": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}
_THUMBNAIL = 64


def training(rows: Rows, folder: Path) -> list[Path]:
    """Plot a run's log into a folder, made if needed: `loss.png` and, if anything was monitored, `monitor.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    if _series(rows, "loss")[0]:
        files.append(loss(rows, folder / "loss.png"))
    if any(name.startswith("monitor/") for row in rows for name in row):
        files.append(monitor(rows, folder / "monitor.png"))
    return files


def evaluation(report: Report, folder: Path, source: Source | None = None, test: Source | None = None) -> list[Path]:
    """Plot a report into a folder, made if needed.

    `classes.png` if there are accuracies, `spectrum.png`, `knn.png` if k-NN was evaluated, and `nearest.png` if the
    evaluated images are given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [per_class(report, folder / "classes.png")] if report.protocols else []
    files.append(spectrum(report, folder / "spectrum.png"))
    if "knn" in report.protocols:
        files.append(knn_by_k(report, folder / "knn.png"))
    if source is not None:
        files.append(nearest(report, folder / "nearest.png", source, test))
    return files


def loss(rows: Rows, path: Path) -> Path:
    """The loss and its terms, the learning rate, and images per second, by step."""
    terms = sorted({name for row in rows for name in row if name.startswith("loss/")})
    with _figure(path, 8, 6) as figure:
        top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
        top.plot(*_series(rows, "loss"), color=_COLORS["trained"], linewidth=1.5, label="loss")
        for name in terms:
            top.plot(
                *_series(rows, name), linewidth=1, alpha=0.8, label=unmathed(named(name)[0].removeprefix("loss: "), 40)
            )
        if terms:
            top.legend()
        top.set_title("loss")
        for axes, name in ((middle, "lr"), (bottom, "images_per_second")):
            axes.plot(*_series(rows, name), color=_COLORS["pixels"], linewidth=1.2)
            axes.set_title({"lr": "learning rate", "images_per_second": "training images per second"}[name])
            axes.set_ylim(bottom=0)
        bottom.set_xlabel("step")
    return path


def monitor(rows: Rows, path: Path) -> Path:
    """Measurements on held-out images, by step: accuracies, effective rank, and geometry on the sphere."""
    groups = {
        "accuracy on images held out of training": {
            "knn": "nearest neighbors (k-NN)",
            "linear": "linear probe",
            "old_knn": "nearest neighbors on the old images",
        },
        "dimensions that the features use (RankMe)": {"rankme": "RankMe"},
        "kept of the start": {
            "cka": "likeness of features (CKA): 1 is all",
            "cosine": "cosine of features",
            "moved": "distance of weights, relative",
        },
        "features on the sphere": {
            "spread": "spread: 0 is collapse",
            "alignment": "distance between views (alignment)",
            "uniformity": "evenness (uniformity): 0 is collapse",
        },
    }
    found = {
        title: lines
        for title, names in groups.items()
        if (lines := {label: s for k, label in names.items() if (s := _series(rows, f"monitor/{k}"))[0]})
    }
    with _figure(path, 8, 0.8 + 2.2 * len(found)) as figure:
        panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, lines) in zip(panels, found.items(), strict=True):
            for label, (x, y) in lines.items():
                axes.plot(x, y, marker="o", markersize=3, label=label)
            axes.set_title(title)
            if len(lines) > 1:
                axes.legend()
        panels[-1].set_xlabel("step")
    return path


def spectrum(report: Report, path: Path) -> Path:
    """Singular values of the encoders' features, relative to the largest, on logarithmic axes."""
    with _figure(path, 6, 4) as figure:
        axes = figure.subplots()
        for name, found in report.representations.items():
            values = np.array(found.singular_values)
            values = values[values > 1e-8 * values.max(initial=1e-300)]
            if name != "pixels" and len(values):
                label = f"{NAMES[name]}: about {found.rankme:.0f} of {found.dim} (RankMe)"
                axes.loglog(np.arange(1, len(values) + 1), values / values[0], color=_COLORS[name], label=label)
        axes.set_title("how strongly the features use each dimension")
        axes.set_xlabel("dimension")
        axes.set_ylabel("singular value, relative")
        axes.legend()
    return path


def per_class(report: Report, path: Path) -> Path:
    """Accuracy on each class under the headline protocol; of many classes, the easiest and the hardest."""
    headline = report.headline
    assert headline is not None
    score = report.representations["trained"].scores[headline]
    known = [(a, i) for i, a in enumerate(score.per_class) if a is not None]
    known.sort(reverse=True)
    order = [i for _, i in ends(known)]
    rows = np.arange(len(order))
    scores = {name: r.scores[headline] for name, r in report.representations.items() if headline in r.scores}
    height = 0.8 / len(scores)
    with _figure(path, 7, 1.2 + 0.32 * len(order)) as figure:
        axes = figure.subplots()
        for j, (name, found) in enumerate(scores.items()):
            values = [100 * (found.per_class[i] or 0.0) for i in order]
            axes.barh(rows + j * height, values, height, color=_COLORS[name], label=NAMES[name])
        axes.set_yticks(rows + 0.4 - height / 2, [unmathed(report.classes[i]) for i in order])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy, %")
        axes.set_title(f"{title(headline)} by class")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
        axes.grid(axis="y", visible=False)
    return path


def knn_by_k(report: Report, path: Path) -> Path:
    """k-NN accuracy by the number of neighbors, weighted and by majority."""
    with _figure(path, 6, 4) as figure:
        axes = figure.subplots()
        for name, found in report.representations.items():
            for kind, line in (("weighted", "-"), ("majority", ":")):
                points = {
                    int(k.removeprefix("k=").split()[0]): 100 * accuracy
                    for k, accuracy in found.scores["knn"].others.items()
                    if k.endswith(kind)
                }
                label = f"{NAMES[name]}, {kind}"
                axes.plot(list(points), list(points.values()), line, color=_COLORS[name], marker=".", label=label)
        axes.set_xscale("log")
        axes.set_xticks(list(points), [str(k) for k in points], minor=False)
        axes.minorticks_off()
        axes.set_title("accuracy by the number of neighbors that vote (k-NN)")
        axes.set_xlabel("neighbors")
        axes.set_ylabel("accuracy, %")
        axes.legend(fontsize=7)
    return path


def nearest(report: Report, path: Path, source: Source, test: Source | None = None) -> Path:
    """A few test images, each with its nearest training images and their classes."""
    tested = source if test is None else test.with_classes(report.classes)
    rows, columns = len(report.nearest), 1 + max(len(n.items) for n in report.nearest)
    wide, high = _THUMBNAIL + 8, _THUMBNAIL + 22
    # One picture with many labels. A figure with axes for each thumbnail takes seconds to lay out.
    sheet = np.full((high * rows, wide * columns, 3), 255, dtype=np.uint8)
    with _figure(path, wide * columns / 70, high * rows / 70 + 0.3) as figure:
        axes = figure.subplots()
        for i, found in enumerate(report.nearest):
            truth = _class(tested, found.query)
            for j, (origin, item) in enumerate([(tested, found.query), *((source, k) for k in found.items)]):
                top, left = high * i + 18, wide * j + 4
                sheet[top : top + _THUMBNAIL, left : left + _THUMBNAIL] = _thumbnail(origin, item)
                name = _class(origin, item)
                color = "black" if j == 0 else _RIGHT if name == truth else _WRONG
                weight = "bold" if j == 0 else "normal"
                words = unmathed(name, 14)
                axes.text(left + _THUMBNAIL / 2, top - 3, words, color=color, weight=weight, size=7, ha="center")
        axes.imshow(sheet)
        axes.axis("off")
        axes.set_title("test images and their nearest training images")
    return path


def views(
    pictures: Sequence[tuple[str, Tensor]],
    path: Path,
    mean: Sequence[float],
    std: Sequence[float],
    originals: Sequence[Image.Image] = (),
    heading: str = "",
) -> Path:
    """A grid of training views: a row for each image, a column for each view, in their true relative sizes.

    Args:
        pictures: title and normalized pixels (float32 `b c h w`) of each view; up to 8 images are shown.
        path: path of the PNG file.
        mean: mean of each channel that was subtracted.
        std: standard deviation of each channel that was divided by.
        originals: the whole images in RGB, for a first column.
        heading: a line above the grid.
    """
    count, first = min(8, len(pictures[0][1])), int(bool(originals))
    columns = first + len(pictures)
    cell = 4 + max(x.shape[-1] for _, x in pictures)
    sheet = np.ones((cell * count, cell * columns, 3), dtype=np.float32)
    titles = [_lines(title, 17) + f"\n{x.shape[-1]} px" for title, x in pictures]
    above = _lines(heading, 16 * columns)
    # Inches: of a cell, of the titles, of the heading.
    inch, low, high = 1.3, 0.14 * max(t.count("\n") + 1 for t in titles) + 0.08, 0.16 * (above.count("\n") + 1) + 0.1
    high *= bool(heading)
    width, height = inch * columns, inch * count + low + high
    with _figure(path, width, height, layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, inch * count / height))
        for j, ((_, x), title) in enumerate(zip(pictures, titles, strict=True), first):
            side = x.shape[-1]
            margin = (cell - side) // 2
            for i, picture in enumerate(in_colors(x[:count], mean, std)):
                top, left = cell * i + margin, cell * j + margin
                sheet[top : top + side, left : left + side] = picture
            axes.text(cell * (j + 0.5), -1, title, size=8, ha="center", va="bottom")
        axes.imshow(sheet)
        for i, image in enumerate(originals[:count]):
            longest = max(image.size) / (cell - 4)
            right, down = image.width / longest / 2, image.height / longest / 2
            x0, y0 = cell / 2 - 0.5, cell * (i + 0.5) - 0.5
            axes.imshow(image, extent=(x0 - right, x0 + right, y0 + down, y0 - down))
        if originals:
            axes.text(cell / 2, -1, "original", size=8, ha="center", va="bottom", weight="bold")
        axes.set(xlim=(-0.5, cell * columns - 0.5), ylim=(cell * count - 0.5, -0.5))
        axes.axis("off")
        figure.text(0.08 / width, 1 - 0.06 / height, above, size=9, va="top")
    return path


def _lines(text: str, width: int) -> str:
    """Text of other people in lines of at most `width` letters."""
    return "\n".join(textwrap.wrap(unmathed(text, 400), width))


def in_colors(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo the normalization of images (`b c h w`): float64 `b h w 3`, in [0, 1].

    Of more than three channels the first three become the colors; one or two are shown in gray.
    """
    pixels = x.detach().float().cpu().permute(0, 2, 3, 1).numpy() * np.array(std) + np.array(mean)
    found: np.ndarray = (pixels[..., :3] if pixels.shape[3] > 2 else pixels[..., [0, 0, 0]]).clip(0, 1)
    return found


def sweep(found: Mapping[str, Any], path: Path) -> Path:
    """A panel for each setting that was varied: the metric by value, with its spread over seeds, and the baseline.

    Like figures 5 and 6 of "Rescuing easy samples", with all baselines; gray marks values with a collapsed run.

    Args:
        found: `manyviews.verbs.sweep.Sweep.to_dict()`.
        path: path of the PNG file.
    """
    settings = list(dict.fromkeys(p["setting"] for p in found["points"]))
    scale, unit = (1, "") if found["metric"] == "rankme" else (100, ", %")
    ylabel = _lines(found["words"], 40) + unit

    def summary(point: Mapping[str, Any]) -> tuple[float, float]:
        scores = scale * np.array(point["scores"])
        return float(scores.mean()), float(scores.std(ddof=1)) if len(scores) > 1 else 0.0

    with _figure(path, 1 + 4 * len(settings), 3.6) as figure:
        panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
        for axes, setting in zip(panels, settings, strict=True):
            points = [p for p in found["points"] if p["setting"] == setting]
            numbers = [_number(p["value"]) for p in points]
            x = [n for n in numbers if n is not None]
            if len(x) < len(points):  # some values are words or None: keep their order
                x = list(range(len(points)))
                axes.set_xticks(x, [unmathed(p["value"], 14) for p in points])
            else:
                if min(x) > 0 and max(x) > 8 * min(x):
                    axes.set_xscale("log")
                    axes.minorticks_off()
                axes.set_xticks(x, [f"{v:g}" for v in x])
            scored = sorted((place, *summary(p)) for place, p in zip(x, points, strict=True) if p["scores"])
            if scored:
                axes.errorbar(*zip(*scored, strict=True), color=_COLORS["trained"], marker="o", markersize=4, capsize=3)
            for place, point in zip(x, points, strict=True):
                if point["collapsed"]:
                    axes.axvline(place, color="#cccccc", linewidth=8, zorder=0, label="collapsed")
            for color, point in zip(cycle((_WRONG, _RIGHT, _COLORS["untrained"])), found["baselines"], strict=False):
                if point["scores"]:
                    mean, spread = summary(point)
                    label = "baseline" if len(found["baselines"]) == 1 else f"baseline: {unmathed(point['value'], 30)}"
                    axes.axhline(mean, color=color, linestyle="--", linewidth=1, label=label)
                    axes.axhspan(mean - spread, mean + spread, color=color, alpha=0.08)
            axes.set_xlabel(unmathed(setting))
            handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
            if handles:
                axes.legend(handles.values(), handles.keys())
        panels[0].set_ylabel(ylabel)
    return path


def radar(values: Mapping[str, Mapping[str, float]], path: Path, title: str = "") -> Path:
    """A closed line for each encoder, with an axis for each set: figure 4 of "Rescuing easy samples".

    Args:
        values: for each encoder, by name, its number on each set, in [0, 1]; sets that some lack are left out.
        path: path of the PNG file.
        title: a line above the plot.
    """
    names = [name for name in next(iter(values.values())) if all(name in line for line in values.values())]
    around = 2 * np.pi * np.arange(len(names)) / len(names)
    least = min(100 * line[name] for line in values.values() for name in names)
    with _figure(path, 7, 6) as figure:
        axes: Any = figure.add_subplot(projection="polar")
        for encoder, line in values.items():
            numbers = [100 * line[name] for name in names]
            axes.plot(
                [*around, around[0]], [*numbers, numbers[0]], marker="o", markersize=3, label=unmathed(encoder, 40)
            )
        # From the center the next ten below the lowest: lines that are close are told apart.
        axes.set_ylim(max(0.0, 10 * np.floor(least / 10 - 0.5)), 100)
        axes.set_xticks(around, [unmathed(name, 20) for name in names])
        axes.set_title(f"{title}, %" if title else "%")
        axes.legend(loc="upper left", bbox_to_anchor=(-0.15, 1.1))
    return path


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@contextmanager
def _figure(
    path: Path, width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Iterator[Figure]:
    """An empty figure of this size in inches, written to `path` at the end of the block."""
    # Not pyplot: it keeps figures alive and may open windows.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE), warnings.catch_warnings():
        # The font may lack the letters of a class name; it draws boxes instead.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(width, height), layout=layout, dpi=130)
        yield figure
        write_atomically(path, lambda part: figure.savefig(part, format="png"))


def _series(rows: Rows, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one logged number, without values that are not finite."""
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]
    return [float(x) for x, _ in points], [float(y) for _, y in points]


def _thumbnail(source: Source, item: int) -> np.ndarray:
    try:
        return test_transform(source.show(item), _THUMBNAIL).transpose(1, 2, 0)
    except BadImage:  # it was readable when it was evaluated
        return np.full((_THUMBNAIL, _THUMBNAIL, 3), 225, dtype=np.uint8)


def _class(source: Source, item: int) -> str:
    return "" if source.labels is None or source.classes is None else source.classes[source.labels[item]]
