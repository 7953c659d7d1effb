"""Teach a small backbone, on unlabeled images, to see as a larger one does."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from manyviews import checkpoint, distributed, machine
from manyviews.backbones import Encoder
from manyviews.errors import UserError
from manyviews.evaluation.features import weights_digest
from manyviews.methods._teacher import ANSWER
from manyviews.settings import Recipe
from manyviews.verbs._common import loaded, say_once
from manyviews.verbs._student import keep_student
from manyviews.verbs.auto import AUTO
from manyviews.verbs.pretrain import pretrain
from manyviews.verbs.run import Run
from manyviews.weights import Pretrained
from manyviews.weights.model import Model

Target = Literal["features", "relations", "prototypes", "soft", "hard"]


def distill(
    teacher: str | Path | Pretrained,
    data: Any,
    student: str = "resnet18",
    *,
    target: Target = "features",
    view: Literal["clean", "same"] = "clean",
    recipe: str | Recipe = AUTO,
    epochs: float | None = None,
    budget: str | float | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> Run:
    """Teach a small backbone, on unlabeled images, to see as a larger one does: a run of the method `distill`.

    The teacher is frozen. It becomes a part of the run, which then needs no other file. A student that learned labels
    is also a model, with the classes of the teacher, in the folder `model` of the run.

    Args:
        teacher: weights that `manyviews.load` reads, or the folder of a model that `adapt` wrote.
        data: unlabeled images: see `manyviews.pretrain`.
        student: timm's name of the backbone that learns.
        target: what is learned: the teacher's "features", its "relations" between images, its soft assignments to
            "prototypes", or with a model as teacher its "soft" or "hard" labels.
        view: "clean": the teacher looks at each image once, before the run; its features are kept in the user's cache
            for further students. "same": it sees the student's view in each step.
        recipe: a recipe of the method; "auto" is distill_cpu or distill_gpu, by the device.
        epochs: passes over the images; the recipe's if None.
        budget: how long the run may take: "30m", "2h", or seconds.
        settings: dotted paths and new values, such as `{"method.temperature": 4}`.
        out: a new or empty folder for the run; `runs/<recipe>-<date>` if None.

    Raises:
        UserError: bad input, such as labels of a teacher without classes.
        engine.Stopped: interrupted by SIGINT or SIGTERM; the run is saved and can be resumed.
    """
    found = loaded(teacher)
    if target in ("soft", "hard") and isinstance(found, Model) and found.task != "classes":
        raise UserError(
            f"{found.name} gives {found.task}, and {target} labels are of one class: take --target features."
        )
    if target in ("soft", "hard") and not isinstance(found, Model):
        raise UserError(
            f"{found.name} has no classes to give {target} labels: distill the folder of a model that `manyviews "
            "adapt` wrote, or take another target, such as features."
        )
    if found.note and distributed.rank() == 0:
        say_once(found.note)
    if recipe == AUTO:
        recipe = "distill_cpu" if machine.device().type == "cpu" else "distill_gpu"
    ours = {
        "backbone.name": student,
        "method.teacher": str(_file(found)),
        "method.target": target,
        "method.teacher_view": view,
        **_channels(found),
    }
    changed = {**ours, **(settings or {})}
    run = pretrain(data, recipe, epochs=epochs, budget=budget, settings=changed, out=out)
    keep_student(run, data)
    return run


def _channels(teacher: Pretrained) -> dict[str, Any]:
    """How the student reads images, if the teacher reads them in another way than as RGB."""
    read = teacher.reading
    return {} if read is None or read.count == 3 else {"data.channels": read.channels}


def _file(teacher: Pretrained) -> Path:
    """The file in the user's cache that says all of a teacher: encoder, head, and the images that it expects."""
    encoder = teacher.encoder
    if not isinstance(encoder, Encoder):
        raise UserError(f"{teacher.name} is a bare module, which cannot be saved: distill weights that `load` reads.")
    look = {"mean": teacher.mean, "std": teacher.std, "test_size": teacher.test_size}
    facts: dict[str, Any] = {"encoder": encoder.spec, **look, "name": teacher.name}
    tensors, digest = dict(encoder.model.state_dict()), weights_digest(encoder)
    if isinstance(teacher, Model):
        facts |= {"head": dict(teacher.head_spec), "classes": teacher.classes, "temperature": teacher.temperature}
        tensors |= {f"{ANSWER}{k}": v for k, v in teacher.head.state_dict().items()}
        digest += f"{weights_digest(teacher.head)} {teacher.classes} {teacher.temperature}"
    key = blake2b(f"{digest} {look}".encode(), digest_size=16).hexdigest()
    path = machine.cache_folder("teachers") / f"{key}.safetensors"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.save_tensors(path, tensors, facts)
        except OSError as e:
            raise UserError(f"The teacher cannot be kept in {path.parent} ({e.strerror}): set XDG_CACHE_HOME.") from e
    return path
