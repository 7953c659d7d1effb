"""DINO: a student matches a teacher's distribution over prototypes, the teacher being its own moving average.

The teacher sees the global views, the student all of them; each student view is trained to give the distribution that
the teacher gave every other global view. The teacher's output is centered (against one prototype taking all) and
sharpened (against the uniform distribution).

Emerging Properties in Self-Supervised Vision Transformers, Caron et al. 2021.

    L = mean over pairs (teacher view s, student view t != s) of  H( softmax((t_s - c) / tau_t), softmax(s_t / tau_s) )

The mean over the 2 (n + 1) pairs is used where the document's two listings disagree, and the center is the teacher's,
updated after it was used. The teacher is what is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from manyviews.backbones import Encoder
from manyviews.heads import DINOHead, Watch, others
from manyviews.methods import Branch, Method, Terms, paired, sum_of
from manyviews.objectives import cross_entropy
from manyviews.schedules import Cosine, Linear, Schedule, value
from manyviews.targets import EMA, Center
from manyviews.types import Progress
from manyviews.views import DINO_LOCAL, DINO_PAIR, Global, Local, View, Views


class DINO(Method):
    """See the module's docstring.

    Args:
        encoder: the network that is trained; its moving average, the teacher, is kept.
        views: view types; the teacher sees the global ones.
        prototypes: dimensions of the distributions.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: dimensions of the head's normalized bottleneck.
        head_norm: BatchNorm in the head's hidden layers, as its authors have it for ResNets.
        student_temperature: temperature of the student's softmax.
        teacher_temperature: temperature of the teacher's softmax, lower.
        center_momentum: momentum of the moving average that centers the teacher's output.
        momentum: momentum of the teacher's moving average.
        freeze_epochs: epochs in which the head's last layer stays as it was initialized.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        views: tuple[View, ...] = (
            Global(2, area=(0.4, 1.0), color=DINO_PAIR),
            Local(8, area=(0.05, 0.4), color=DINO_LOCAL),
        ),
        prototypes: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        head_norm: bool = False,
        student_temperature: float = 0.1,
        teacher_temperature: Schedule | float = Linear(0.04, 0.07, epochs=30),
        center_momentum: float = 0.9,
        momentum: Schedule | float = Cosine(0.996, 1.0),
        freeze_epochs: int = 1,
    ) -> None:
        super().__init__()
        self.views = paired(*views, target="global")
        self.student = Branch(encoder, DINOHead(encoder.embed_dim, prototypes, hidden_dim, bottleneck_dim, head_norm))
        self.teacher = EMA(self.student, momentum)
        self.center = Center(prototypes, center_momentum)
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.freeze_epochs = freeze_epochs
        self.scored, self.watch = (self.student.projector.last, student_temperature), Watch()

    @property
    def online(self) -> Branch:  # type: ignore[override]
        return self.student

    @property
    def kept_encoder(self) -> Encoder:
        return self.teacher.module.encoder

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        outputs = views.all("global", self.teacher)
        targets = self.center.targets(outputs, value(self.teacher_temperature, at))
        pairs = len(targets) * (sum(v.count for v in self.views) - 1)

        def term(kind: View, i: int, s: Tensor) -> Tensor:
            # Cross-entropy is linear in its targets: of their sum, it takes one pass over the student's distribution.
            if kind.name == "global":
                self.watch.distributions(targets[i - 1], s, self.student_temperature)
            target = views.blend(kind.name, i, sum_of([t for _, t in others(targets, kind, i)]))
            return cross_entropy(target, s, self.student_temperature) / pairs

        yield from views.terms(self.student, term)

    def before_update(self, at: Progress) -> None:
        if at.epoch < self.freeze_epochs:
            self.student.projector.last.zero_grad()
