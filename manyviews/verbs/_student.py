"""The student of a distillation by labels, as a model that answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from manyviews import distributed, machine
from manyviews.data import Source
from manyviews.data.layout import ALL
from manyviews.data.split import split, spread_out
from manyviews.engine.build import encoder_facts, recipe_now, trained_method
from manyviews.engine.folder import RunFolder
from manyviews.errors import say
from manyviews.evaluation.features import extract
from manyviews.progress import progress
from manyviews.verbs._common import opened, preprocessing, seen_by
from manyviews.verbs.run import Run
from manyviews.weights import load
from manyviews.weights.model import Known, Model, write

FOLDER = "model"
"""The folder of the model in that of the run."""

_MOST = 5_000  # images that say what is known


def keep_student(run: Run, data: Any) -> Path | None:
    """Write the student of a finished run that learned soft or hard labels as a model, in the first process.

    Its head is the layer that learned the labels, and its classes are the teacher's. Soft labels bring the student's
    logits near the teacher's, so the teacher's temperature makes its probabilities. Which images are known is found by
    up to 5,000 of the run's images, a fifth of which sets the threshold.

    Returns:
        the folder; None for another run, or if it is there already.
    """
    if not lacks_student(run) or distributed.rank() > 0:
        return None
    method, out = run.recipe.method, run.folder / FOLDER
    answers: Any = method.settings["answers"]
    names = answers.settings["names"]
    folder = RunFolder(run.folder)
    trained, saved = trained_method(folder)
    found, recipe = load(run.folder), recipe_now(folder)
    head = cast(Any, trained).online.projector.eval().requires_grad_(False)
    source = data if isinstance(data, Source) else opened(data, split=ALL)
    (source,) = seen_by(found, source, quiet=True)
    some = source.subset(spread_out(len(source), _MOST))
    with progress("what is known") as update:
        seen = extract(found.encoder, some, progress=update, **preprocessing(found))
    parts = split(seen.ids, {"train": 0.8, "validation": 0.2}, salt="known")
    train, held = (torch.from_numpy(parts[k]) for k in ("train", "validation"))
    held = held if len(held) else train
    target = method.settings["target"]
    facts = {
        "title": f"{recipe.backbone.name} that learned {target} labels",
        "strategy": f"{target} labels",
        "from": str(method.settings["teacher"]),
        "data": source.name,
        "images": {"train": len(source), "validation": 0},
        "parameters": {"learned": _count(found.encoder), "all": _count(found.encoder)},
        "run": str(run.folder),
        "step": encoder_facts(cast(Any, found.encoder), recipe, saved["step"]).get("step"),
        "machine": machine.describe(machine.device()),
    }
    model = Model(
        encoder=found.encoder,
        mean=found.mean,
        std=found.std,
        test_size=found.test_size,
        name=str(out),
        reading=found.reading,
        head=head,
        head_spec={"kind": "linear"},
        classes=tuple(names),
        temperature=float(answers.settings["warmth"]) if target == "soft" else 1.0,
        kept=Known.of(seen.x[train], seen.x[held]),
        facts=facts,
    )
    write(model, out)
    say(f"The student is a model, too: `manyviews predict {out} DATA --out FILE` writes its classes.")
    return out


def lacks_student(run: Run) -> bool:
    """Whether a run is finished and learned labels, and its student is not there yet."""
    method = run.recipe.method
    answers = getattr(method.settings.get("answers"), "settings", {})
    labels = method.name == "distill" and method.settings.get("target") in ("soft", "hard")
    there = (run.folder / FOLDER).exists()
    return labels and answers.get("names") is not None and not there and run.summary is not None


def _count(encoder: torch.nn.Module) -> int:
    return sum(p.numel() for p in encoder.parameters())
