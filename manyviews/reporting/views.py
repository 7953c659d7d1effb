"""The views of a method as a person sees them."""

from __future__ import annotations

from torch import Tensor

from manyviews.methods import Method
from manyviews.settings import Recipe
from manyviews.types import Batch
from manyviews.views import Crop, Views


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


def titled(kind: str, i: int, count: int) -> str:
    """The title of view `i`, from 0, of `count` views of a kind: "global 2", or "cutout" if there is only one."""
    return f"{kind} {i + 1}" if count > 1 else kind
