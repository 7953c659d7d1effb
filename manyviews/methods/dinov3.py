"""DINOv3: DINOv2 whose patches keep the similarities that they had to each other early in the run.

In long runs class tokens improve while patches lose what they know of places. From some epoch on, the matrix of cosines
between a view's patches is anchored to that of a Gram teacher: a frozen copy of an earlier teacher, which may see the
view at a higher resolution. Features may rotate and move as long as their similarities stay.

DINOv3, Simeoni et al. 2025.

    L = L_DINOv2 + w mean over global views of  mean over pairs of patches (i, j) of  (x_i . x_j - g_i . g_j)^2

x are the student's patch features, which include hidden ones, g the Gram teacher's, all of length 1. The paper prints
the sum over pairs; the mean of its authors is used here, with their weight. The lecture has no equation and no numbers
for it: epochs, weight, heads and views are the paper's, whose 10,000 iterations count as an epoch. The KoLeo of the
paper sees groups of 16 images; ours sees a process's batch. It has a layer norm for local and one for global class
tokens, and a narrower head for patches, which we leave out. The teacher sees no jitter of positions, and is kept.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import interpolate

from manyviews.backbones import Encoder, take
from manyviews.errors import UserError
from manyviews.methods import Terms, TokenBranch
from manyviews.methods.dinov2 import DINOv2
from manyviews.objectives import gram
from manyviews.schedules import Linear, Schedule
from manyviews.targets import Snapshot
from manyviews.types import Packed, Progress
from manyviews.views import DINO_LOCAL, DINO_PAIR, Blocks, Crop, Global, Local, Masking, View, Views


class PatchBranch(TokenBranch):
    """A branch that, where patches are asked for, also gives the features of all of them, `b n d`."""

    def forward(self, x: Tensor | Packed, hide: Tensor | None = None, where: Tensor | None = None) -> Any:
        found = self.encoder.features(x, hide=hide, token=self.token)
        pooled = self.projector(found.pooled)
        return pooled if where is None else (pooled, self.patch_head(take(found.patches, where)), found.patches)


class DINOv3(DINOv2):
    """See the module's docstring.

    Args:
        gram_weight: weight of the term that anchors patches, in each global view.
        gram_start: epoch from which patches are anchored.
        gram_copies: epochs at which the Gram teacher becomes the teacher: the first at or before `gram_start`, where 0
            is the encoder as it was given; each later one refreshes it.
        gram_size: side in pixels of the view that the Gram teacher sees; the student's if None. Its features are
            resampled to the student's patches.
    """

    branch = PatchBranch

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: tuple[View, ...] = (
            Global(2, size=256, area=(0.32, 1.0), color=DINO_PAIR),
            Local(8, size=112, area=(0.05, 0.32), color=DINO_LOCAL),
        ),
        masking: Masking = Blocks((0.1, 0.5), p=0.5),
        prototypes: int = 262144,
        patch_prototypes: int | None = 98304,
        shared_head: bool = False,
        hidden_dim: int = 8192,
        bottleneck_dim: int = 512,
        centering: Literal["center", "sinkhorn"] = "sinkhorn",
        student_temperature: float = 0.1,
        teacher_temperature: Schedule | float = Linear(0.04, 0.07, epochs=10),
        patch_temperature: Schedule | float = Linear(0.04, 0.07, epochs=10),
        center_momentum: float = 0.9,
        momentum: Schedule | float = 0.999,
        freeze_epochs: int = 1,
        gram_weight: float = 2.0,
        gram_start: float = 100,
        gram_copies: tuple[float, ...] = (20, 101, 102),
        gram_size: int | None = None,
    ) -> None:
        super().__init__(
            encoder,
            views=views,
            masking=masking,
            prototypes=prototypes,
            patch_prototypes=patch_prototypes,
            shared_head=shared_head,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            centering=centering,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            patch_temperature=patch_temperature,
            center_momentum=center_momentum,
            momentum=momentum,
            freeze_epochs=freeze_epochs,
        )
        if not gram_copies or min(gram_copies) > gram_start:
            raise UserError(
                f"Patches are anchored from epoch {gram_start:g} on, to a teacher that does not exist yet: give "
                "gram_copies an epoch that is not later."
            )
        if gram_size is not None and gram_size % encoder.patch_size:
            raise UserError(f"Patches of {encoder.patch_size} pixels do not tile {gram_size}: change gram_size.")
        self.gram_teacher = Snapshot(self.teacher.module.encoder, gram_copies)
        self.gram_weight, self.gram_start, self.gram_size = gram_weight, gram_start, gram_size

    def more(self, views: Views, i: int, student: Any, at: Progress) -> Terms:
        if at.step < self.gram_start * at.steps_per_epoch:
            return {}
        anchor = self.anchor(views, i)
        return {"gram": self.gram_weight * gram(student[2], anchor) / self.views[0].count}

    def anchor(self, views: Views, i: int) -> Tensor:
        """The Gram teacher's features of the student's patches in global view `i`, `b n d`."""
        kind, encoder = self.views[0], self.kept_encoder
        assert isinstance(kind, Crop)
        size = self.gram_size or kind.size
        if size == kind.size:
            return self.gram_teacher.features(views[kind.name, i]).patches
        found = self.gram_teacher.features(views.resized(kind.name, i, size)).patches
        maps = found.mT.unflatten(2, encoder.grid(size))
        return interpolate(maps, encoder.grid(kind.size), mode="bicubic").flatten(2).mT
