"""Planted copies: edited copies of a set's own images, which show how alike copies are to an encoder."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image

from manyviews.data.decode import Picture
from manyviews.data.reading import Reading
from manyviews.data.source import Source, given

KINDS = ("compressed", "rescaled", "cropped", "brightened", "marked", "mirrored")
"""What is done to a copy. Each is then saved as a JPEG once more."""


def planted(picture: Picture, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A copy of an image, as people make them without meaning to: uint8 `h w c`.

    Args:
        picture: an image of any channels.
        kind: "compressed": JPEG of quality 30 to 80. "rescaled": to 40 to 80 % of its size. "cropped": up to 10 %
            of each side is lost. "brightened": times 0.75 to 1.25. "marked": a stripe over 5 % of it. "mirrored".
        rng: draws the strength.
    """
    x = np.atleast_3d(np.asarray(picture))
    height, width = x.shape[:2]
    quality = 85
    match kind:
        case "compressed":
            quality = int(rng.integers(30, 81))
        case "rescaled":
            share = rng.uniform(0.4, 0.8)
            size = max(8, round(width * share)), max(8, round(height * share))
            x = _by_band(x, lambda band: band.resize(size, Image.Resampling.BICUBIC))
        case "cropped":
            left, right, top, bottom = (rng.uniform(0, 0.1, 4) * (width, width, height, height)).astype(int)
            x = x[top : height - bottom, left : width - right]
        case "brightened":
            x = (x * rng.uniform(0.75, 1.25)).clip(0, 255).astype(np.uint8)
        case "marked":
            h, w = max(1, round(0.12 * height)), max(1, round(0.4 * width))
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            x = x.copy()
            part = x[top : top + h, left : left + w]
            part[:] = (0.4 * part + 0.6 * 255 * rng.integers(2)).astype(np.uint8)
        case "mirrored":
            x = x[:, ::-1]
        case _:
            raise ValueError(kind)
    return _compressed(x, quality)


def copies_of(source: Source, chosen: Sequence[int], seed: int) -> Source:
    """Planted copies of the items at these positions, the kinds in turn. Their names are "<kind> <number>"."""
    kinds = [KINDS[k % len(KINDS)] for k in range(len(chosen))]
    return Source(
        f"copies of {source.name}",
        len(chosen),
        partial(_copy, source, list(chosen), kinds, seed),
        partial(given, [f"{kind} {k}" for k, kind in enumerate(kinds)]),
        reading=Reading(source.reading.count, max_pixels=source.reading.max_pixels),
    )


def _copy(source: Source, chosen: list[int], kinds: list[str], seed: int, k: int) -> np.ndarray:
    found = planted(source.load(chosen[k]), kinds[k], np.random.default_rng([seed, k]))
    return found[..., 0] if found.shape[2] == 1 else found


def _compressed(x: np.ndarray, quality: int) -> np.ndarray:
    def saved(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    if x.shape[2] == 3:
        return np.array(saved(Image.fromarray(np.ascontiguousarray(x))))
    return _by_band(x, saved)


def _by_band(x: np.ndarray, edit: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    bands = (Image.fromarray(np.ascontiguousarray(x[..., k])) for k in range(x.shape[2]))
    return np.stack([np.asarray(edit(band)) for band in bands], axis=2)
