"""DINOv2: iBOT with a head for class tokens and one for patches, and a teacher that uses all prototypes equally.

Class tokens learn from the other views' class tokens, hidden patches from what the teacher sees there. Sinkhorn's
algorithm balances the teacher's outputs over the batch of all processes, in the place of a center. KoLeo keeps class
tokens apart: it is a term of any method, which the recipes add.

DINOv2: Learning Robust Visual Features without Supervision, Oquab et al. 2024.

    L = mean over pairs (teacher view s, student view t != s) of  H( Q(class token of s), P(class token of t) )
      + mean over global views of  mean over hidden patches i of  H( Q'(patch i), P'(patch i) )
      + 0.1 sum over global views of  KoLeo( class tokens )

Q and Q' are balanced, over the class tokens of both global views and over all hidden patches. Their images are hidden
from with probability 1/2 each, of which the authors' code takes exactly half, with shares evenly spaced. The paper
prints KoLeo for the first global view; its authors' code has it for both, and so do the recipes. The teacher is kept.
"""

from __future__ import annotations

from typing import Literal

from manyviews.backbones import Encoder
from manyviews.methods.ibot import IBOT
from manyviews.schedules import Cosine, Linear, Schedule
from manyviews.views import DINO_LOCAL, DINO_PAIR, Blocks, Global, Local, Masking, View


class DINOv2(IBOT):
    """See the module's docstring. The loss is iBOT's, and the settings decide what differs."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: tuple[View, ...] = (
            Global(2, area=(0.32, 1.0), color=DINO_PAIR),
            Local(8, size=98, area=(0.05, 0.32), color=DINO_LOCAL),
        ),
        masking: Masking = Blocks((0.1, 0.5), p=0.5),
        prototypes: int = 131072,
        patch_prototypes: int | None = None,
        shared_head: bool = False,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        centering: Literal["center", "sinkhorn"] = "sinkhorn",
        student_temperature: float = 0.1,
        teacher_temperature: Schedule | float = Linear(0.04, 0.07, epochs=30),
        patch_temperature: Schedule | float = Linear(0.04, 0.07, epochs=30),
        center_momentum: float = 0.9,
        momentum: Schedule | float = Cosine(0.994, 1.0),
        freeze_epochs: int = 1,
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
