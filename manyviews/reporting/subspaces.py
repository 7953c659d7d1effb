"""Plots of MAST's subspaces as PNG files, from the numbers of `manyviews.evaluation.unlabeled.subspaces.analyze`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manyviews.reporting.embedding_map import turned
from manyviews.reporting.plots import _figure
from manyviews.reporting.text import unmathed

Numbers = Mapping[str, Any]

_BAR, _ALL = "#1b6ca8", "#8a8a8a"
_MOST_NAMED = 30  # with more classes, their names would overlap


def draw(numbers: Numbers, folder: Path) -> list[Path]:
    """Plot all numbers that are there into a folder, made if needed.

    `masks.png`, `correlation.png`, `maps.png`, `invariance.png`, `uncertainty.png`, `classes.png` and
    `predictions.png`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [masks(numbers, folder / "masks.png"), correlation(numbers, folder / "correlation.png")]
    if numbers["maps"] is not None:
        files.append(maps(numbers, folder / "maps.png"))
    if numbers["invariance"]:
        files.append(invariance(numbers, folder / "invariance.png"))
    if numbers["uncertainty"] is not None:
        files.append(uncertainty(numbers, folder / "uncertainty.png"))
        if numbers["classes"] is not None:
            files.append(classes(numbers, folder / "classes.png"))
    if numbers["predictions"] is not None:
        files.append(predictions(numbers, folder / "predictions.png"))
    return files


def masks(numbers: Numbers, path: Path) -> Path:
    """Each mask as a row of its entries, by dimension (figure 3a)."""
    values = np.array(numbers["masks"])
    with _figure(path, 8, 1.2 + 0.35 * len(values)) as figure:
        axes = figure.subplots()
        picture = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, interpolation="none")
        axes.set_yticks(range(len(values)), _names(numbers))
        axes.grid(visible=False)
        axes.set_xlabel("dimension")
        axes.set_title("masks")
        figure.colorbar(picture, ax=axes)
    return path


def correlation(numbers: Numbers, path: Path) -> Path:
    """Cosine similarity of the masks of every two augmentations (figure 4a)."""
    values, names = np.array(numbers["correlation"]), _names(numbers)
    side = 3 + 0.35 * len(values)
    with _figure(path, side, side - 0.6) as figure:
        axes = figure.subplots()
        picture = axes.imshow(values, cmap="viridis", vmin=0, vmax=1)
        axes.set_xticks(range(len(values)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(values)), names)
        for i, j in np.ndindex(values.shape):
            color = "black" if values[i, j] > 0.6 else "white"
            axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=color, size=6)
        axes.grid(visible=False)
        axes.set_title("cosine similarity of masks")
        figure.colorbar(picture, ax=axes)
    return path


def maps(numbers: Numbers, path: Path) -> Path:
    """Images in two subspaces, in two dimensions, by class if there are labels (figure 3b).

    The second map is turned onto the first, so that the same images lie near each other as far as the subspaces agree.
    """
    found: Mapping[str, Any] = numbers["maps"]
    first, *rest = (np.array(positions) for positions in found["positions"])
    with _figure(path, 4.5 * len(found["positions"]), 4.5) as figure:
        panels = figure.subplots(1, len(found["positions"]), squeeze=False)[0]
        for axes, name, x in zip(panels, found["subspaces"], [first, *(turned(x, first) for x in rest)], strict=True):
            axes.scatter(*x.T, s=5, c=found["labels"] or _BAR, cmap="tab10" if found["labels"] else None)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{_words(name)}, {found['algorithm']}")
    return path


def invariance(numbers: Numbers, path: Path) -> Path:
    """Similarity of images and augmented images in each subspace, by strength (figure 7).

    The line of the augmentation's own subspace is thick, and that of a baseline black. If there are variances, their
    trace is plotted below.
    """
    from matplotlib import colormaps

    found: Mapping[str, Any] = numbers["invariance"]
    colors = colormaps["tab10" if len(numbers["subspaces"]) <= 10 else "tab20"]
    traces = all(sweep["trace"] is not None for sweep in found.values())
    with _figure(path, 3.2 * len(found) + 1.5, 5.2 if traces else 3.2) as figure:
        panels = figure.subplots(1 + traces, len(found), squeeze=False, sharex="col", sharey="row")
        for column, (name, sweep) in zip(panels.T, found.items(), strict=True):
            for k, (key, values) in enumerate(zip(numbers["subspaces"], sweep["subspaces"], strict=True)):
                style = {"linewidth": 2.5 if key in (name, "all") else 1, "color": colors(k % colors.N)}
                column[0].plot(sweep["values"], values, marker=".", label=_words(key), **style)
            column[0].plot(sweep["values"], sweep["all"], ":", color=_ALL, label="without masks")
            if "baseline" in sweep:
                column[0].plot(sweep["values"], sweep["baseline"], "--", color="black", label="baseline")
            column[0].set_title(_words(name))
            if traces:
                column[1].plot(sweep["values"], sweep["trace"], color=_BAR, marker=".")
            column[-1].set_xlabel(unmathed(sweep["strength"], 40))
            if sweep["values"][0] > sweep["values"][-1]:
                column[0].invert_xaxis()  # from weak to strong
        panels[0, 0].set_ylabel("cosine similarity")
        if traces:
            panels[1, 0].set_ylabel("trace of the variance")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return path


def uncertainty(numbers: Numbers, path: Path) -> Path:
    """Histogram of the uncertainty of images (appendix B)."""
    with _figure(path, 6, 3) as figure:
        axes = figure.subplots()
        axes.hist(numbers["uncertainty"]["values"], bins=40, range=(0, 1), color=_BAR)
        axes.set_title("uncertainty")
        axes.set_xlabel("trace of the variance, scaled to [0, 1]")
        axes.set_ylabel("images")
    return path


def classes(numbers: Numbers, path: Path) -> Path:
    """Accuracy of each class by the mean and standard deviation of its images' uncertainty (figure 5b)."""
    found = {name: c for name, c in numbers["classes"].items() if c["accuracy"] is not None}
    with _figure(path, 7, 5) as figure:
        axes = figure.subplots()
        x, error = ([c[k] for c in found.values()] for k in ("mean", "std"))
        y = [100 * c["accuracy"] for c in found.values()]
        axes.errorbar(x, y, xerr=error, fmt="o", color=_BAR, ecolor=_ALL, elinewidth=0.8, markersize=4)
        if len(found) <= _MOST_NAMED:
            for name, a, b in zip(found, x, y, strict=True):
                axes.annotate(unmathed(name), (a, b), xytext=(4, 4), textcoords="offset points", size=7)
        axes.set_title("classes")
        axes.set_xlabel("uncertainty, mean and standard deviation over images")
        axes.set_ylabel("accuracy, %")
    return path


def predictions(numbers: Numbers, path: Path) -> Path:
    """How much each subspace adds to the logit of the right class, over correctly classified images (figure 6)."""
    names = _names(numbers)
    with _figure(path, 6, 1.2 + 0.32 * len(names)) as figure:
        axes = figure.subplots()
        axes.barh(range(len(names)), numbers["predictions"], color=_BAR)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_title("prediction for the right class")
        axes.set_xlabel("logit minus bias, mean over images")
    return path


def _names(numbers: Numbers) -> Sequence[str]:
    return [_words(name) for name in numbers["subspaces"]]


def _words(name: str) -> str:
    return unmathed(name.replace("_", " "))
