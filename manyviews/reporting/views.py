"""The views of a method as a person sees them."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from manyviews.data import BadImage, Source, load_canvases
from manyviews.errors import printable
from manyviews.methods import Method
from manyviews.settings import Recipe
from manyviews.types import Batch
from manyviews.views import Crop, View, Views

_WORDS = {
    "Crop": "crop",
    "Global": "large crop",
    "Local": "small crop",
    "Cutout": "crop with a hole",
    "Rotation": "turned crop",
    "Shuffle": "shuffled patches",
    "CutMix": "mix of two images",
    "Composed": "augmented image",
    "Strong": "strongly augmented",
}
_SEEN = "what the encoder sees"
_SPARE = 4  # images drawn in place of those that cannot be read
_SIDE = 256  # pixels of an original, at least, if it has them


def views_of(method: Method, batch: Batch, recipe: Recipe) -> dict[str, list[Tensor]]:
    """Make the views of a batch of canvases: normalized pixels (float32 `b 3 h w`) of each view, by kind.

    Views that change during training are at their strongest. Views that are no crops, such as captions, are left out.
    If the method hides patches of its first view, "seen" is that view with the hidden patches in gray.
    """
    data, kinds = recipe.data, tuple(kind for kind in method.views if isinstance(kind, Crop))
    views = Views(batch, kinds, recipe.seed, 0, data.mean, data.std, progress=1.0)
    found = {kind.name: views.all(kind.name) for kind in kinds}
    if method.masking is not None:
        kind = kinds[0]
        rows, columns = method.kept_encoder.grid(kind.size)
        hidden = method.mask(views).hidden.view(-1, 1, rows, columns)
        hidden = hidden.repeat_interleave(kind.size // rows, 2).repeat_interleave(kind.size // columns, 3)
        found["seen"] = [found[kind.name][0].masked_fill(hidden, 0)]
    return found


def words_of(method: Method) -> dict[str, str]:
    """What the kinds of `views_of` are, in plain words: "global" is "large crop"."""
    found = {kind.name: _words(kind) for kind in method.views if isinstance(kind, Crop)}
    return found if method.masking is None else {**found, "seen": _SEEN}


def _words(kind: View) -> str:
    name, usual = type(kind).__name__, type(kind).__name__.lower()
    words = _WORDS.get(name, usual)
    return words if kind.name == usual else f"{printable(kind.name, 30)}: {words}"


def titled(words: str, i: int, count: int) -> str:
    """The title of view `i`, from 0, of `count` views of a kind: "large crop 2"; no number if there is only one."""
    return f"{words} {i + 1}" if count > 1 else words


def drawn(source: Source, count: int, size: int, seed: int) -> tuple[Batch, list[Image.Image]]:
    """Canvases of images that are drawn at random over a source, and the images themselves, in RGB.

    Sets are often sorted by class: their first images show one of many. `count` is the most; images that cannot be read
    are replaced by others as far as possible. `size` is that of the canvases.
    """
    chosen = np.random.default_rng(seed).permutation(len(source))[: count + _SPARE]
    batch, _ = load_canvases(source.subset(chosen), size)
    batch = batch[:count]
    return batch, [_shown(source, int(i)) for i in chosen[batch.index.numpy()]]


def _shown(source: Source, i: int) -> Image.Image:
    try:
        return source.show(i, at_least=_SIDE)
    except BadImage:  # it could be read a moment ago
        return Image.new("RGB", (1, 1), "gray")
