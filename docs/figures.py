"""Draw the views of each method with the library itself: the figures of the pages in docs/methods.

python docs/figures.py [--missing] [NAME ...]

A method's figure shows its declared views, so a new method needs nothing here. The figures in DRAWN show more. The
photographs come with scikit-learn: china.jpg by danielbuechele and flower.jpg by vultilion, both CC BY 2.0.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn.functional import pad

from manyviews import methods, recipes
from manyviews.backbones import Encoder
from manyviews.data.canvas import to_canvas
from manyviews.reporting import plots
from manyviews.types import Batch, Canvases
from manyviews.views import IMAGENET_MEAN, IMAGENET_STD, Crop, Global, Strong, Views

FOLDER = Path(__file__).parent / "methods" / "figures"
WIDTH = 840  # pixels: as wide as a page shows them

Pictures = list[tuple[str, Tensor]]
"""(title, normalized views `2 3 size size`) for each column."""


def declared(name: str) -> Pictures:
    """Every view of a method's default settings, and the parts of the first one if it hides patches."""
    method = build(name)
    found = [*image(), *columns(*(kind for kind in method.views if isinstance(kind, Crop)))]
    return found if method.masking is None else found + masked(method)


def tasks() -> Pictures:
    """One view of each of MULAN's types, as its recipes have them."""
    given = (recipes.get(name).method.settings["tasks"] for name in ("byol_conditioned", "byol_cutmix"))
    kinds = {kind.name: kind for kind in chain(*given)}
    views = Views(photos(), tuple(kinds.values()), seed=6)
    return [*image(), *((name, views[name, 0]) for name in kinds)]


def masked(method: methods.Method) -> Pictures:
    """The patches that the encoder gets of the first view, and those that are hidden."""
    views, kind = Views(photos(), method.views), method.views[0]
    assert isinstance(kind, Crop)
    x, (rows, across) = views[kind.name, 0], method.kept_encoder.grid(kind.size)
    hidden = method.mask(views).hidden.view(-1, 1, rows, across)
    hidden = hidden.repeat_interleave(kind.size // rows, 2).repeat_interleave(kind.size // across, 3)
    return [("seen", x.masked_fill(hidden, 0)), ("hidden", x.masked_fill(~hidden, 0))]


def staged() -> Pictures:
    """MAST's pairs of views, in the first half of a run and at its end."""
    (kind,) = build("mast").views
    found = image()
    for progress in (0.25, 1.0):
        pair = columns(kind, seed=3, progress=progress)
        found += [(f"{i} at {100 * progress:.0f} %", x) for i, (_, x) in enumerate(pair)]
    return found


def rescue() -> Pictures:
    """SimCLR's two views, and strong ones: the rescue's figure 3."""
    return [*image(), *columns(*build("simclr").views), *columns(Strong(3), seed=2)]


DRAWN: dict[str, Callable[[], Pictures]] = {"mast": staged, "rescue": rescue, "byol_tasks": tasks}
FIGURES = {name: partial(declared, name) for name in methods.names()} | DRAWN


@cache
def photos() -> Batch:
    """The photographs as canvases."""
    images = load_sample_images().images
    canvases = Canvases.packed([to_canvas(Image.fromarray(x), 256) for x in images])
    return Batch(torch.arange(len(images)), canvases)


def image() -> Pictures:
    """The central square of each photograph."""
    whole = Global(1, area=(1.0, 1.0), ratio=(1.0, 1.0), color=None, flip=0.0)
    return [("image", Views(photos(), (whole,))["global", 0])]


def columns(*kinds: Crop, seed: int = 0, progress: float = 0.0) -> Pictures:
    """A column for each view; small views share one, by fours."""
    views, largest = Views(photos(), kinds, seed, progress=progress), max(k.size for k in kinds)
    found: Pictures = []
    for kind in kinds:
        each = views.all(kind.name)
        step = 4 if 2 * kind.size <= largest else 1
        for i in range(0, kind.count, step):
            several = each[i : i + step]
            last = i + len(several) - 1
            title = f"{kind.name} {i}" if last == i else f"{kind.name} {i}-{last}"
            found.append((title, tiled(several) if step > 1 else several[0]))
    return found


def tiled(views: Sequence[Tensor]) -> Tensor:
    """Up to four views `b 3 s s` in a square, on white."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    white = (1 - mean) / std
    framed = [pad(x - white, (4, 4, 4, 4)) for x in views]
    framed += [torch.zeros_like(framed[0])] * (4 - len(framed))
    return torch.cat([torch.cat(framed[:2], 3), torch.cat(framed[2:], 3)], 2) + white


def build(name: str) -> methods.Method:
    """A method with its default settings and without memory for its weights."""
    backbone = {"fcmae": "convnextv2_atto", "sscd": "resnet18"}.get(name, "vit_tiny_patch16_224")
    with torch.device("meta"):
        return methods.get(name)(Encoder(backbone))


def draw(name: str) -> Path:
    """Draw one figure into the folder."""
    path = plots.views(FIGURES[name](), FOLDER / f"{name}.png", IMAGENET_MEAN, IMAGENET_STD)
    with Image.open(path) as drawn:
        figure = drawn.convert("RGB")
    figure.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    figure.save(path, optimize=True)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the views of methods.")
    parser.add_argument("name", nargs="*", help="figures to draw; by default all")
    parser.add_argument("--missing", action="store_true", help="only figures that are not in the folder")
    given = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name in given.name or FIGURES:
        if not (given.missing and (FOLDER / f"{name}.png").exists()):
            print(draw(name))
