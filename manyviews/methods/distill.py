"""Distillation: a small network learns from unlabeled images to see as a frozen larger one does.

The teacher may come from anywhere: a run, a file, timm, or a model with classes. The student may be any backbone. A
linear layer on the student's features predicts, for each view, one of five targets:

    features    the teacher's features t:                 L = |z/|z| - t/|t||^2                                  (1)
    relations   its similarities to a queue of images:    L = H( softmax(cos(t, d)/r), softmax(cos(z, d)/s) )    (2)
    prototypes  its similarities to k-means centers c:    L = H( softmax(cos(t, c)/r), softmax(cos(z, c)/s) )    (3)
    soft        its probabilities of classes:             L = T^2 KL( softmax(l/T) || softmax(z/T) )             (4)
    hard        its likeliest class:                      L = -log softmax(z)_argmax(l)

(1) SimReg, Navaneet et al. 2021; (2) SEED, Fang et al. 2021; (3) DINO's loss, Caron et al. 2021, with centers in the
place of a head that learns; (4) Hinton et al. 2015, and on unlabeled images SimCLR v2, Chen et al. 2020, eq. 2.

The teacher sees the student's view, or each clean image once before training begins: its features are then looked up,
and further students of the same images find them. SimReg predicts with an MLP; here the layer is linear.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as classify

from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.heads import Prototypes, Watch
from manyviews.heads.prototypes import centers
from manyviews.methods import Branch, Method, See, Terms
from manyviews.methods._teacher import described, file_of, head_of, read
from manyviews.objectives import cross_entropy, relation_cross_entropy, softened_divergence, squared_distance
from manyviews.settings import Component
from manyviews.targets import Queue, Teacher
from manyviews.types import Progress
from manyviews.views import Crop, Global, View, Views

# The student's temperature and the teacher's, where nobody gives them: SEED's, DINO's.
_TEMPERATURES = {"relations": (0.2, 0.01), "prototypes": (0.1, 0.04), "soft": (2.0, 2.0)}


class Distill(Method):
    """See the module's docstring.

    Args:
        encoder: the student, trained and kept.
        view: the view type, one or more of each image.
        target: what of the teacher is predicted: "features", "relations", "prototypes", and for a teacher with classes
            "soft" or "hard".
        teacher: a run folder, or a safetensors file that `manyviews.export` or `manyviews.distill` wrote; "" for a
            random network, which is for tests.
        teacher_view: what the teacher sees: the "same" view as the student, in each step, or the "clean" image, once.
        size: side in pixels of what the teacher sees; 0 for that of the student's view, or of a file's images if clean.
        network: backbone of the teacher, taken from its file; None for one like the student.
        answers: head of the teacher, taken from its file, with the number of classes; None for a teacher without one.
        prototypes: number of centers, at most the number of images.
        queue_size: earlier images to which similarities are compared.
        temperature: the student's; None for 0.2 with relations, 0.1 with prototypes, and 2 with soft labels.
        teacher_temperature: the teacher's; None for 0.01 with relations and 0.04 with prototypes. Soft labels have one.
    """

    table: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        view: Crop = Global(1, color=None),
        target: Literal["features", "relations", "prototypes", "soft", "hard"] = "features",
        teacher: str = "",
        teacher_view: Literal["same", "clean"] = "same",
        size: int = 0,
        network: Component | None = None,
        answers: Component | None = None,
        prototypes: int = 1024,
        queue_size: int = 65536,
        temperature: float | None = None,
        teacher_temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.views, self.target, self.clean, self.size = (view,), target, teacher_view == "clean", size or view.size
        if self.clean and type(view).blend is not View.blend:
            raise UserError(
                f"{view.name} views blend images, and a clean image has no blend: set teacher_view to same."
            )
        made = Encoder.from_spec(encoder.spec) if network is None else Encoder(network.name, **network.settings)
        if made.channels != encoder.channels:
            raise UserError(f"The teacher takes images of {made.channels} channels, not of {encoder.channels}.")
        made.check_size(self.size, self.size)
        dims = made.embed_dim
        if target in ("soft", "hard"):
            if answers is None:
                raise UserError(
                    f"{target} labels are those of a teacher with classes: distill the folder of a model that "
                    "`manyviews adapt` wrote, or take --target features."
                )
            dims = answers.settings["classes"]
        self.teacher = Teacher(made, None if answers is None else head_of(answers, made.embed_dim))
        self.online = Branch(encoder, nn.Linear(encoder.embed_dim, dims))
        usual = _TEMPERATURES.get(target, (1.0, 1.0))
        self.temperature = usual[0] if temperature is None else temperature
        self.teacher_temperature = usual[1] if teacher_temperature is None else teacher_temperature
        if target == "relations":
            self.queue = Queue(queue_size, dims)
        if target == "prototypes":
            self.prototypes = Prototypes(dims, prototypes).requires_grad_(False)
            self.register_buffer("found", torch.tensor(False))  # whether the centers are of the images
        self.watch = Watch()
        # Features of clean images; no part of the state, because they can be found again.
        self.register_buffer("table", torch.empty(0, made.embed_dim), persistent=False)
        # A run that goes on has the teacher in its checkpoint, and needs the file no more.
        self._path = teacher
        if teacher and file_of(teacher).is_file():
            read(file_of(teacher), self.teacher)

    @classmethod
    def settle(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        if not settings["teacher"] or settings["network"] is not None:
            return settings
        network, answers, side = described(settings["teacher"])
        size = settings["size"] or (side if settings["teacher_view"] == "clean" else 0)
        found = {"teacher": str(Path(settings["teacher"]).expanduser().absolute()), "size": size}
        return {**settings, **found, "network": network, "answers": answers}

    def begin(self, images: int) -> None:
        if self.clean:
            self.table = self.table.new_zeros(images, self.table.shape[1])

    def look(self, see: See) -> None:
        self._check_loaded()
        finds = self.target == "prototypes" and not self.found
        if not self.clean and not finds:
            return
        teacher = self.teacher
        seen = see(teacher.encoder, self.size, teacher.mean.tolist(), teacher.std.tolist())
        if self.clean:
            self.table = seen
        if finds:
            self.prototypes.weight.copy_(centers(seen, len(self.prototypes.weight)))
            self.found.fill_(True)  # type: ignore[operator]

    def loss(self, views: Views, at: Progress) -> Iterator[Terms]:
        self._check_loaded()
        count = self.views[0].count

        def term(kind: View, i: int, z: Tensor) -> Terms:
            return {self.target: self._compare(z, self._seen(views, kind, i)) / count}

        yield from views.terms(self.online, term)

    def _seen(self, views: Views, kind: View, i: int) -> Tensor:
        """The teacher's features for view `i`, `b d`."""
        if self.clean:
            return self.table[views.batch.index]
        assert isinstance(kind, Crop)
        x = views[kind.name, i] if self.size == kind.size else views.resized(kind.name, i, self.size)
        found: Tensor = self.teacher(x, views.mean, views.std)
        return found

    def _compare(self, z: Tensor, t: Tensor) -> Tensor:
        if self.target == "features":
            return squared_distance(z, t)
        if self.target == "relations":
            self.queue.push(t)
            return relation_cross_entropy(z, t, self.queue.rows, self.temperature, self.teacher_temperature)
        if self.target == "prototypes":
            p, scores = (self.prototypes(t) / self.teacher_temperature).softmax(-1), self.prototypes(z)
            self.watch.distributions(p, scores, self.temperature)
            return cross_entropy(p, scores, self.temperature)
        logits = self.teacher.answer(t)
        if self.target == "hard":
            return classify(z.float(), logits.argmax(-1))
        return softened_divergence(z, logits, self.temperature)

    def _check_loaded(self) -> None:
        if self._path and not self.teacher.loaded:
            raise UserError(f"There is no teacher in {self._path}: give a run folder, or a file of weights.")
