"""View types that are compositions of single augmentations: MAST's staged ones, and the strong views of RandAugment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from manyviews.errors import UserError, require
from manyviews.types import Batch
from manyviews.views.augmentations import (
    MAST_5,
    RANDAUGMENT,
    Augmentation,
    Erase,
    GaussianBlur,
    HorizontalFlip,
    ResizedCrop,
)
from manyviews.views.draws import Draws
from manyviews.views.kinds import Crop, Paint, neighbor, sharp
from manyviews.views.regions import apply_to, inside
from manyviews.views.tampering import COPIED
from manyviews.views.view import Range


@dataclass(frozen=True)
class Composed(Crop):
    """The whole image under a composition of single augmentations, staged over the run (MAST, section 3.2).

    In the first half of the run an image gets one random augmentation; in the second half a random set of them, whose
    size grows linearly from 1 to all. All views of an image share the set. Each view draws for itself with what
    parameters, and with the augmentation's own probability whether one of the set is applied. Augmentations are
    applied in the order of the tuple, after the crop. Without a crop a view is the central square, of `area` and
    `ratio`.

    The paper leaves open whether the set is drawn for an image or for a batch: see `choose`. And an augmentation that
    is alone is always applied to one of the views, a random one, or the mask of a rare one would hardly be trained.

    Attributes:
        augmentations: single augmentations of distinct names.
        staged: whether the sets grow. If not, every image has all augmentations throughout.
        choose: a set for each "image", or the same for the whole "batch".
    """

    count: int = 2
    size: int = 224
    area: Range = (1.0, 1.0)
    color: None = None
    ratio: Range = (1.0, 1.0)
    flip: float = 0.0
    augmentations: tuple[Augmentation, ...] = MAST_5
    staged: bool = True
    choose: Literal["image", "batch"] = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {a.name for a in self.augmentations}
        require(0 < len(names) == len(self.augmentations), self, "augmentations", "one or more, of distinct names")
        require(self.choose in ("image", "batch"), self, "choose", '"image" or "batch"')
        _check_blurs(self, self.augmentations)

    @property
    def resolution(self) -> int:
        crops = [a.area for a in self.augmentations if isinstance(a, ResizedCrop)]
        return max(sharp(self.size, area) for area in (self.area, *crops))

    @property
    def is_plain(self) -> bool:
        return False  # augmentations may turn the image

    @property
    def of_rgb(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.augmentations if a.of_rgb)

    def applied(self, draws: Draws) -> Tensor:
        """Which augmentations a view gets: bool, `b K`, given the draws of that view."""
        k = len(self.augmentations)
        shared = replace(draws, place=(*draws.place[:-1], self.name))
        if self.choose == "batch":
            shared = shared.shared()
        stage = max(0.0, 2 * draws.progress - 1) if self.staged else 1.0
        device = draws.index.device
        common = {name: u.to(device) for name, u in shared.uniforms({"rounding": 1, "surely": 1}).items()}
        size = (1 + (k - 1) * stage + common["rounding"]).floor()
        chosen = shared.permutation("set", k).to(device) < size
        own = draws.uniforms({a.name: 1 for a in self.augmentations})
        kept = torch.cat([own[a.name] < a.p for a in self.augmentations], 1)
        view = int(draws.place[-1].rpartition("/")[2])
        surely = (common["surely"] * self.count).long() == view
        return chosen & (kept | ((size == 1) & surely))

    def crop(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        boxes, flip = super().crop(batch, draws)
        applied = self.applied(draws)
        for k, a in enumerate(self.augmentations):
            if isinstance(a, ResizedCrop):
                own = a.boxes(draws.at(a.name), batch.extent)
                boxes = torch.where(applied[:, k, None], own, boxes)
            elif isinstance(a, HorizontalFlip):
                flip = flip ^ applied[:, k]
        return boxes, flip

    def paint(self, i: int, draws: Draws) -> Paint:
        applied = self.applied(draws)
        drawn = [
            (a, applied[:, k], a.draw(draws.at(a.name), self.size))
            for k, a in enumerate(self.augmentations)
            if not isinstance(a, ResizedCrop | HorizontalFlip)  # done with the crop
        ]
        return lambda x, rows: reduce(lambda x, d: apply_to(d[1][rows], d[0].apply, x, d[2][rows]), drawn, x)

    def parameters(self, draws: Draws) -> Tensor:
        """1 for each augmentation that is applied, else 0."""
        return self.applied(draws).float()


@dataclass(frozen=True)
class Copied(Composed):
    """The image as people make copies of it, and now and then mixed with another one (SSCD, Pizzi et al. 2022).

    Half of the mixed views are MixUp (Zhang et al. 2018): both images, at weights of Beta(2, 2). Half are CutMix (Yun
    et al. 2019): a square of the other image, whose share has the same distribution before what sticks out is cut off.
    As in `CutMix`, images mix with their neighbors in the batch, the same view of which is laid over.

    Attributes:
        mix: probability of a mixed view.
    """

    augmentations: tuple[Augmentation, ...] = COPIED
    staged: bool = False
    mix: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.mix <= 1, self, "mix", "between 0 and 1")

    def transform(self, x: Tensor, draws: Draws) -> Tensor:
        if not self.mix:
            return x
        own = self.parameters(draws)
        side = ((1 - own).sqrt() * self.size).round().long().clamp(min=1)
        corner = (draws.uniform("center", 2) * self.size).long() - side // 2
        square = inside(torch.cat([corner, side, side], 1), self.size, self.size)
        other = draws.bernoulli("cut", 0.5)[:, None, None, None]
        share = torch.where(other, square.float(), 1 - own[:, :, None, None])
        return torch.lerp(x, x[neighbor(x)], share * (own < 1)[:, :, None, None])

    def parameters(self, draws: Draws) -> Tensor:
        """The image's own share in each view, 1 unless it is mixed: float32, `b 1`."""
        # The middle one of three uniform numbers has the distribution Beta(2, 2).
        share = draws.uniform("share", 3).median(1, keepdim=True).values
        return torch.where(draws.bernoulli("mix", self.mix)[:, None], share, 1)


@dataclass(frozen=True)
class Strong(Crop):
    """The whole image, strongly augmented: RandAugment with operations of random severity, then a hole.

    What "Rescuing easy samples" (Wang et al.) shows the network of its easiest images. It follows FixMatch (Sohn et
    al. 2020): 14 operations, of which each image gets `operations` at random, with repetition, at a severity drawn for
    it. The image is the central square.

    Attributes:
        augmentations: to draw from.
        operations: how many each image gets, one after the other; 2 in FixMatch.
        hole: cut out at the end, of gray; None for none.
    """

    count: int = 1
    size: int = 224
    area: Range = (1.0, 1.0)
    color: None = None
    ratio: Range = (1.0, 1.0)
    flip: float = 0.0
    augmentations: tuple[Augmentation, ...] = RANDAUGMENT
    operations: int = 2
    hole: Erase | None = Erase()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.augmentations) > 0, self, "augmentations", "one or more")
        require(self.operations >= 0, self, "operations", "0 or more")
        _check_blurs(self, self.augmentations)

    @property
    def is_plain(self) -> bool:
        return False  # operations may turn the image

    @property
    def of_rgb(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.augmentations if a.of_rgb)

    def paint(self, i: int, draws: Draws) -> Paint:
        drawn: list[tuple[Augmentation, Tensor, Tensor]] = []
        for turn in range(self.operations):
            which = (draws.uniform(f"operation {turn}", 1)[:, 0] * len(self.augmentations)).long()
            for k, a in enumerate(self.augmentations):
                drawn.append((a, which == k, a.draw(draws.at(f"{turn} {a.name}"), self.size)))
        if self.hole is not None:
            everyone = torch.ones_like(draws.index, dtype=torch.bool)
            drawn.append((self.hole, everyone, self.hole.draw(draws.at("hole"), self.size)))
        return lambda x, rows: reduce(lambda x, d: apply_to(d[1][rows], d[0].apply, x, d[2][rows]), drawn, x)


def _check_blurs(view: Crop, augmentations: Sequence[Augmentation]) -> None:
    for a in augmentations:
        if isinstance(a, GaussianBlur) and a.kernel_at(view.size) // 2 >= view.size:
            raise UserError(
                f"{type(view).__name__} of {view.size} pixels is too small for a blur of {a.kernel_at(view.size)}: set "
                "a smaller `kernel`."
            )
