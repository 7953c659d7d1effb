"""iBOT: DINO on class tokens, and the same on patches that the student cannot see.

In each global view a learned token replaces some of the student's patches. The student must give the teacher's
distribution of the other views' class tokens, and of each hidden patch, which the teacher sees. One head serves both.

iBOT: Image BERT Pre-Training with Online Tokenizer, Zhou et al. 2022.

    L = mean over pairs (teacher view s, student view t != s) of  H( P(class token of s), P'(class token of t) )
      + mean over global views of  mean over hidden patches i of  H( P(patch i), P'(patch i) )

The lecture prints the second term as a sum over hidden patches; here it is a mean over those of each image. Blocks hide
10 to 50 % of half of the images, and nothing of the others (the 75 % of the text is MAE's). The teacher is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor

from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.heads import DINOHead, Watch, others
from manyviews.methods import Method, Terms, TokenBranch, paired, sum_of
from manyviews.objectives import cross_entropy, masked_cross_entropy
from manyviews.schedules import Cosine, Linear, Schedule, value
from manyviews.targets import EMA, Balance, Center
from manyviews.types import Progress
from manyviews.views import DINO_LOCAL, DINO_PAIR, Blocks, Global, Local, Masking, View, Views


class IBOT(Method):
    """See the module's docstring.

    Args:
        encoder: a vision transformer, which is trained; its moving average, the teacher, is kept.
        views: view types; the teacher sees the global ones.
        masking: patches of global views that the student does not see.
        prototypes: dimensions of the distributions.
        patch_prototypes: dimensions of the patches' distributions, if they have a head of their own; `prototypes` if
            None.
        shared_head: one head for class tokens and patches; otherwise one for each.
        hidden_dim: width of the heads' hidden layers.
        bottleneck_dim: dimensions of the heads' normalized bottleneck.
        centering: what keeps the teacher from giving all images one distribution: a "center", the moving mean of its
            outputs, or "sinkhorn", which uses all prototypes equally in each batch.
        student_temperature: temperature of the student's softmax.
        teacher_temperature: temperature of the teacher's softmax for class tokens, lower.
        patch_temperature: temperature of the teacher's softmax for patches.
        center_momentum: momentum of the two moving averages that center the teacher's outputs.
        momentum: momentum of the teacher's moving average.
        freeze_epochs: epochs in which the heads' last layer stays as it was initialized.
    """

    branch: type[TokenBranch] = TokenBranch

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: tuple[View, ...] = (
            Global(2, area=(0.25, 1.0), color=DINO_PAIR),
            Local(10, area=(0.05, 0.25), color=DINO_LOCAL),
        ),
        masking: Masking = Blocks((0.1, 0.5), p=0.5),
        prototypes: int = 8192,
        patch_prototypes: int | None = None,
        shared_head: bool = True,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        centering: Literal["center", "sinkhorn"] = "center",
        student_temperature: float = 0.1,
        teacher_temperature: Schedule | float = Linear(0.04, 0.07, epochs=30),
        patch_temperature: Schedule | float = Linear(0.04, 0.07, epochs=30),
        center_momentum: float = 0.9,
        momentum: Schedule | float = Cosine(0.996, 1.0),
        freeze_epochs: int = 1,
    ) -> None:
        super().__init__()
        if shared_head and patch_prototypes not in (None, prototypes):
            raise UserError("A shared head has one number of prototypes: leave out patch_prototypes, or share no head.")
        self.views = tuple(sorted(paired(*views, target="global"), key=lambda kind: kind.name != "global"))
        numbers = [prototypes] if shared_head else [prototypes, patch_prototypes or prototypes]
        heads = [DINOHead(encoder.embed_dim, k, hidden_dim, bottleneck_dim) for k in numbers]
        self.student = self.branch(encoder, *heads)
        self.teacher = EMA(self.student, momentum)
        self.center, self.patch_center = (
            Balance() if centering == "sinkhorn" else Center(k, center_momentum) for k in (numbers[0], numbers[-1])
        )
        self.masking, self.student_temperature, self.freeze_epochs = masking, student_temperature, freeze_epochs
        self.teacher_temperature, self.patch_temperature = teacher_temperature, patch_temperature
        self.scored, self.watch = (self.student.projector.last, student_temperature), Watch()

    @property
    def online(self) -> TokenBranch:  # type: ignore[override]
        return self.student

    @property
    def kept_encoder(self) -> Encoder:
        return self.teacher.module.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        masks = [self.mask(views, i) for i in range(self.views[0].count)]
        where = [m.blocks[0] for m in masks]
        hidden = [m.hidden.gather(1, w) for m, w in zip(masks, where, strict=True)]
        tokens, patches, *_ = zip(*views.all("global", self.teacher, lambda _, i: {"where": where[i]}), strict=True)
        targets = self.center.targets(tokens, value(self.teacher_temperature, at))
        patch_targets = self.patch_center.targets(patches, value(self.patch_temperature, at), hidden)
        pairs = len(targets) * (sum(v.count for v in self.views) - 1)

        def inputs(kind: View, i: int) -> Mapping[str, Tensor]:
            return {"hide": masks[i].hidden, "where": where[i]} if kind.name == "global" else {}

        def term(kind: View, i: int, s: Any) -> Terms:
            target = views.blend(kind.name, i, sum_of(t for _, t in others(targets, kind, i)))
            if kind.name != "global":
                return {kind.name: cross_entropy(target, s, self.student_temperature) / pairs}
            patch = masked_cross_entropy(patch_targets[i], s[1], hidden[i], self.student_temperature)
            token = cross_entropy(target, s[0], self.student_temperature)
            self.watch.distributions(targets[i - 1], s[0], self.student_temperature)
            self.watch.distributions(patch_targets[i], s[1], self.student_temperature, mask=hidden[i], name="patch_")
            return {"global": token / pairs, "patches": patch / len(masks), **self.more(views, i, s, at)}

        yield from views.terms(self.student, term, inputs=inputs)

    def more(self, views: Views, i: int, student: Any, at: Progress) -> Terms:
        """Further terms of global view `i`, of which `student` is the branch's output."""
        return {}

    def before_update(self, at: Progress) -> None:
        if at.epoch < self.freeze_epochs:
            heads: tuple[Any, ...] = (self.student.projector, self.student.patch_head)
            for head in heads:
                head.last.zero_grad()
