"""The pictures of the page: images, views, patches and attention, as small files beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from manyviews.backbones import Encoder, patch_features
from manyviews.data import BadImage, Source
from manyviews.data.measure import with_reading
from manyviews.data.room import ROOM
from manyviews.errors import UserError, printable
from manyviews.evaluation.features import frozen, normalize, test_transform
from manyviews.methods import Method
from manyviews.regularizers import canvas_size
from manyviews.reporting.plots import in_colors
from manyviews.reporting.views import drawn, reconstructions_of, titled, views_of, words_of
from manyviews.settings import Recipe

Facts = dict[str, Any]

SIDE = 128
"""Side of a picture in a gallery, in pixels."""

_ROWS = 5  # images whose views are shown
_HEADS = 6  # attention heads shown, at most
_GAP = 6  # pixels between the views of one column
_QUALITY = 80
_SMALL = 64  # pictures up to this many pixels wide are enlarged without smoothing


@dataclass
class Pictures:
    """Numbered WebP files in the folder `pictures` of a page; an image that is shown twice is written once.

    A picture is a dict for the template: `src` (relative to the page), `width`, `height`, and `small` (or not).
    """

    page: Path
    count: int = 0
    known: dict[tuple[int, int], Facts] = field(default_factory=dict)

    def save(self, pixels: np.ndarray, lossless: bool = False) -> Facts:
        """Write a picture from uint8 `h w 3`, or `h w 4` with an alpha channel."""
        (self.page / "pictures").mkdir(exist_ok=True)
        src = f"pictures/{self.count}.webp"
        self.count += 1
        Image.fromarray(pixels).save(self.page / src, "WEBP", quality=_QUALITY, lossless=lossless)
        height, width = pixels.shape[:2]
        return {"src": src, "width": width, "height": height, "small": width <= _SMALL}

    def of(self, source: Source, i: int) -> Facts:
        """The picture of image `i`, with its "name" and its "label" (None without labels)."""
        key = id(source), i
        if key not in self.known:
            named = {"name": printable(source.where(i), 200), "label": label(source, i)}
            self.known[key] = self.save(thumbnail(source, i, SIDE, enlarge=False)) | named
        return self.known[key]


def thumbnail(source: Source, i: int, side: int, enlarge: bool = True) -> np.ndarray:
    """The central square of an image, uint8 `side side 3`; smaller if a small image is not enlarged.

    An image that can no longer be read is gray.
    """
    try:
        image = source.show(i, at_least=2 * side)
    except BadImage:
        return np.full((side, side, 3), 128, dtype=np.uint8)
    side = side if enlarge else min(side, *image.size)
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC))


def label(source: Source, i: int) -> str | None:
    """The name of an image's class; None without labels."""
    if source.labels is None or source.classes is None:
        return None
    return printable(source.classes[source.labels[i]], 80)


# -- views -------------------------------------------------------------------------------------------------------


def views(recipe: Recipe, method: Method, source: Source, pictures: Pictures) -> list[Facts]:
    """The views of a method: for each kind of view its "kind", in words, "count", "side" in pixels, and "columns".

    Each column is one picture with a "title": this view of a few images from all over the set, one below the other, at
    their true relative size. The first kind is the original image, without a "side". Patches that the method hides are
    gray.
    """
    source = with_reading(source, recipe.data.reading)
    canvases, originals = drawn(source, _ROWS, canvas_size(method, recipe), recipe.seed)
    if not len(canvases):
        return []
    words, found, data = words_of(method), views_of(method, canvases, recipe), recipe.data
    cell = max(x.shape[-1] for xs in found.values() for x in xs)
    side = cell * max(1, 96 // cell)  # as large as `_column` shows the largest view
    whole = [np.asarray(ImageOps.contain(x, (side, side), Image.Resampling.BICUBIC)) for x in originals]
    first = pictures.save(_column(whole, side))
    groups: list[Facts] = [
        {"kind": "original", "count": 1, "side": None, "columns": [{"title": "original", **first, "small": False}]}
    ]
    for kind, xs in found.items():
        columns = [
            {
                "title": titled(words[kind], i, len(xs)),
                **pictures.save(_column(_pixels(x, data.mean, data.std), cell)),
            }
            for i, x in enumerate(xs)
        ]
        groups.append({"kind": words[kind], "count": len(xs), "side": xs[0].shape[-1], "columns": columns})
    return groups


def reconstructions(recipe: Recipe, method: Method, source: Source, pictures: Pictures) -> Facts | None:
    """How a method rebuilds a few images: "columns", each a picture with a "title", and "text"; None if it does not."""
    source = with_reading(source, recipe.data.reading)
    canvases, _ = drawn(source, _ROWS, canvas_size(method, recipe), recipe.seed)
    found, text = reconstructions_of(method, canvases, recipe) if len(canvases) else ([], "")
    if not found:
        return None
    mean, std = recipe.data.mean, recipe.data.std
    columns = [{"title": title, **pictures.save(_column(_pixels(x, mean, std), x.shape[-1]))} for title, x in found]
    return {"columns": columns, "text": text}


def _pixels(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> list[np.ndarray]:
    """Normalized images (`b 3 h w`) as uint8 `h w 3` each."""
    return list((255 * in_colors(x, mean, std)).round().astype(np.uint8))


def _column(images: Sequence[np.ndarray], cell: int) -> np.ndarray:
    """Images in a column of square, transparent cells; small images are enlarged by a whole factor."""
    times = max(1, 96 // cell)
    cell = cell * times
    column = np.zeros((len(images) * (cell + _GAP) - _GAP, cell, 4), dtype=np.uint8)
    for k, image in enumerate(images):
        image = image.repeat(times, 0).repeat(times, 1)
        height, width = image.shape[:2]
        top, left = k * (cell + _GAP) + (cell - height) // 2, (cell - width) // 2
        column[top : top + height, left : left + width, :3] = image
        column[top : top + height, left : left + width, 3] = 255
    return column


# -- patches -----------------------------------------------------------------------------------------------------


def patches(
    encoder: Encoder,
    images: Sequence[tuple[Source, int]],
    recipe: Recipe,
    device: torch.device | str,
    pictures: Pictures,
) -> Facts:
    """Pictures of the patch features and the attention of a few images.

    Returns:
        "grid" (rows of patches), "components" (a picture for each image: see `components`) and "attention": a picture
        for each image by name, such as "mean of 4 heads" or "head 1"; empty for encoders without a class token.

    Raises:
        UserError: the encoder has no map of features.
    """
    shown = np.stack([_seen(with_reading(source, recipe.data.reading), i, recipe.test_size) for source, i in images])
    x = normalize(torch.from_numpy(shown).to(device), recipe.data.mean, recipe.data.std)
    encoder = encoder.to(device)
    with frozen(encoder):
        found = patch_features(encoder, x).float().cpu()
        heads = attention(encoder, x)
    side = math.isqrt(found.shape[1])
    if side * side != found.shape[1]:  # it includes a token that timm does not declare
        raise UserError(f"{encoder.name} gives {found.shape[1]} patches, which is no square number.")
    colors = components(found).reshape(-1, side, side, 3)
    maps: dict[str, Tensor] = {}
    if heads is not None:
        heads = heads.float().cpu()
        count = heads.shape[1]
        maps[f"mean of {count} heads"] = heads.mean(1)
        if count > 1:
            maps |= {f"head {h + 1}": heads[:, h] for h in range(min(count, _HEADS))}
    return {
        "grid": side,
        "components": [pictures.save(c, lossless=True) for c in colors],
        "attention": {
            name: [pictures.save(a, lossless=True) for a in glow(found.reshape(-1, side, side))]
            for name, found in maps.items()
        },
    }


def components(x: Tensor) -> np.ndarray:
    """The first three principal components of patch features (`b n d`) as red, green and blue: uint8 `b n 3`.

    They are computed over all patches together: a color means the same in every image. Each component is scaled from
    its 1st to its 99th percentile.
    """
    flat = x.flatten(0, 1).double()
    flat = flat - flat.mean(0)
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    axes = vectors.flip(1)[:, :3]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    found = (flat @ (axes * largest.sign())).numpy()
    low, high = np.percentile(found, (1, 99), axis=0)
    found = ((found - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    colors = np.zeros((len(found), 3), dtype=np.uint8)
    colors[:, : found.shape[1]] = (255 * found).round()
    return colors.reshape(*x.shape[:2], 3)


def attention(encoder: Encoder, x: Tensor) -> Tensor | None:
    """How much the class token attends to each patch in each head of the last block, `b heads n`.

    The block computes the weights itself. They sum to 1 over all tokens; prefix tokens are left out here. None for
    encoders without timm's attention blocks or without a class token.
    """
    model: Any = encoder.model
    blocks = getattr(model, "blocks", None)
    inner: Any = getattr(blocks[-1], "attn", None) if blocks is not None and len(blocks) else None
    if getattr(model, "cls_token", None) is None or not hasattr(inner, "fused_attn"):
        return None
    heard: list[Tensor] = []
    fused, hook = inner.fused_attn, inner.attn_drop.register_forward_hook(lambda _, __, weights: heard.append(weights))
    try:
        inner.fused_attn = False  # the fused kernel never computes the weights
        encoder(x)
    finally:
        inner.fused_attn = fused
        hook.remove()
    return heard[0][:, :, 0, model.num_prefix_tokens :] if heard else None


def glow(maps: Tensor) -> np.ndarray:
    """Maps (`b h w`) as uint8 `b h w 3`, each from black at 0 to bright at its own maximum."""
    from matplotlib import colormaps

    relative = maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)
    colors: np.ndarray = colormaps["inferno"](relative.numpy())[..., :3]
    return (255 * colors).round().astype(np.uint8)


def _seen(source: Source, i: int, size: int) -> np.ndarray:
    try:
        with ROOM.turn():
            return test_transform(source.load(i), size)
    except BadImage:
        return np.full((source.reading.count, size, size), 128, dtype=np.uint8)
