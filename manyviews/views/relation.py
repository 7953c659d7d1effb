"""Where a view lies as seen from another one, and where its patches lie on the image."""

from __future__ import annotations

import torch
from torch import Tensor

from manyviews.errors import UserError
from manyviews.types import Batch
from manyviews.views.draws import Draws
from manyviews.views.kinds import Crop
from manyviews.views.view import View


@torch.no_grad()
def relation(batch: Batch, view: tuple[Crop, int], target: tuple[Crop, int], draws: Draws) -> Tensor:
    """Where a view lies as seen from a target view, and what was done to it: what a conditioned predictor is told.

    Returns:
        float32, `b 5+p`: the offset of the view's center from the target's, downwards and to the right, in units of the
        target's crop and as the target shows it; the logarithms of the ratios of their heights and widths; 1 if one is
        the mirror image of the other, else 0; and the kind's own `parameters`.
    """
    boxes, flips = [], []
    for kind, i in (view, target):
        box, flip = kind.crop(batch, kind.place(draws, i))
        boxes.append(box.float())
        flips.append(flip)
    (corner, size), (its_corner, its_size) = (box.chunk(2, 1) for box in boxes)
    offset = (corner + size / 2 - its_corner - its_size / 2) / its_size
    offset[:, 1] *= torch.where(flips[1], -1.0, 1.0)
    mirrored = (flips[0] ^ flips[1])[:, None].float()
    own = view[0].parameters(view[0].place(draws, view[1]))
    return torch.cat([offset, (size / its_size).log(), mirrored, own], 1)


@torch.no_grad()
def positions(batch: Batch, kind: Crop, i: int, grid: tuple[int, int], draws: Draws) -> Tensor:
    """Where the centers of a view's patches lie on the image.

    Args:
        batch: the images.
        kind: the view's type.
        i: number of the view.
        grid: rows and columns of patches.
        draws: the batch's draws.

    Returns:
        float32, `b n 2`: row and column from 0 to 1, from the image's top and left, patches row by row.

    Raises:
        UserError: views of this kind are more than crops: they turn the image or move parts of it.
    """
    if not kind.is_plain:
        raise UserError(f"Patches of {kind.name} views have no places on the image: take global or local views.")
    box, flip = kind.crop(batch, kind.place(draws, i))
    rows, columns = ((torch.arange(side, device=box.device) + 0.5) / side for side in grid)
    columns = torch.where(flip[:, None], 1 - columns, columns)
    top, left, tall, wide = (box.float() / batch.extent.repeat(1, 2))[:, :, None].unbind(1)
    y, x = top + tall * rows, left + wide * columns
    return torch.stack([y[:, :, None].expand(-1, -1, grid[1]), x[:, None, :].expand(-1, grid[0], -1)], 3).flatten(1, 2)


def relation_dim(kind: View) -> int:
    """How many numbers `relation` gives for a kind of view."""
    draws = Draws(0, 0, torch.zeros(1, dtype=torch.int64))
    return 5 + kind.parameters(kind.place(draws, 0)).shape[1]
