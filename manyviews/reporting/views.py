"""The views of a method as a person sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from manyviews.data import BadImage, Source, load_canvases
from manyviews.errors import printable
from manyviews.evaluation.features import frozen
from manyviews.methods import Method
from manyviews.objectives import patchify, restored, unpatchify
from manyviews.regularizers import inner
from manyviews.reporting import plots
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
        found["seen"] = [found[kinds[0].name][0].masked_fill(_hidden(method, views), 0)]
    return found


def _hidden(method: Method, views: Views) -> Tensor:
    """Which pixels of the first view are hidden: bool, `b 1 h w`."""
    kind = method.views[0]
    assert isinstance(kind, Crop)
    rows, columns = method.kept_encoder.grid(kind.size)
    hidden = method.mask(views).hidden.view(-1, 1, rows, columns)
    return hidden.repeat_interleave(kind.size // rows, 2).repeat_interleave(kind.size // columns, 3)


def rebuilt_of(method: Method, views: Views) -> Tensor:
    """The first view as a method predicts it, `b c h w`, for methods that predict pixels.

    Patches that are predicted standardized get their true mean and deviation.
    """
    pixels, x, size = method.predicted_pixels(views), views[method.views[0].name, 0], method.kept_encoder.patch_size
    assert pixels is not None
    if method.normalize_pixels:
        pixels = restored(pixels, patchify(x, size))
    return unpatchify(pixels, size, (x.shape[2], x.shape[3]))


def reconstructions_of(method: Method, batch: Batch, recipe: Recipe) -> tuple[list[tuple[str, Tensor]], str]:
    """The first view of a few images, what is seen of it and how it is rebuilt: titles and pixels, and a sentence.

    Of the rebuilt image, visible patches are the true ones. Empty for methods that rebuild nothing.
    """
    if type(method).predicted_pixels is Method.predicted_pixels:
        return [], ""
    data, masks = recipe.data, method.masking is not None
    batch = batch.to(next(method.parameters()).device)
    views = Views(batch, method.views, recipe.seed, 0, data.mean, data.std, progress=1.0)
    with frozen(method):
        x, rebuilt = views[method.views[0].name, 0], rebuilt_of(method, views)
    if not masks:
        return [("image", x), ("rebuilt", rebuilt)], "Images and what the network makes of their code."
    hidden = _hidden(method, views)
    text = "Hidden patches are predicted, the others true."
    if method.normalize_pixels:
        text += " Brightness and contrast of a predicted patch are the true ones: only its pattern is predicted."
    return [("image", x), ("seen", x.masked_fill(hidden, 0)), ("rebuilt", x.where(~hidden, rebuilt))], text


def draw_reconstructions(method: Method, batch: Batch, recipe: Recipe, path: Path, step: int) -> None:
    """Write a picture of up to 8 images and how they are rebuilt, if the method rebuilds any."""
    found, text = reconstructions_of(inner(method), batch[:8], recipe)
    if found:
        path.parent.mkdir(exist_ok=True)
        heading = f"Held-out images at step {step}. {text}"
        plots.views(found, path, recipe.data.mean, recipe.data.std, heading=heading)


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
