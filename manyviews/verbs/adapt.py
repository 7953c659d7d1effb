"""Make a model that answers from an encoder and labeled images."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from manyviews import checkpoint, machine
from manyviews.backbones import Encoder
from manyviews.data.left import listed
from manyviews.data.source import Source, unlabeled
from manyviews.errors import UserError, say, unknown
from manyviews.evaluation.contract import ImageTask, Task, check_seed
from manyviews.evaluation.features import Features, check_finite, extract, fingerprint, stamps, weights_digest
from manyviews.evaluation.subsets import stratified
from manyviews.heads.classify import folded, scaled
from manyviews.progress import duration, progress, seconds
from manyviews.settings import override, parse
from manyviews.tuning import (
    STRATEGIES,
    WAYS,
    Balance,
    Candidate,
    Goal,
    Kept,
    Numbers,
    Problem,
    Several,
    Strategy,
    climb,
    temperature,
    thresholds,
)
from manyviews.tuning.ladder import Climb
from manyviews.tuning.pace import Pace, measure
from manyviews.tuning.strategies import Late
from manyviews.verbs._common import claim, loaded, new_file, own_test, preprocessing, say_once, seen_by, tell
from manyviews.verbs._judged import Judge, judged
from manyviews.verbs._labels import TASKS, Labeled, agreeing, labeled, of_source
from manyviews.verbs._segmentation import has_masks, segmenter
from manyviews.weights import Pretrained
from manyviews.weights.inside import with_head_layers
from manyviews.weights.model import Known, Model, write
from manyviews.weights.segmenter import Segmenter

AUTO = "auto"
SHARE = 0.2
"""Share of the labeled images that choose."""

FEATURES = "features.safetensors"
"""The file of the images' features, until all is finished."""


def adapt(
    weights: str | Path | Pretrained,
    data: Any,
    out: str | Path,
    *,
    strategy: str = AUTO,
    task: str | None = None,
    labels: str | Path | None = None,
    test: Any = None,
    test_labels: str | Path | None = None,
    shifted: Sequence[Any] = (),
    corruptions: bool = False,
    balance: str = "none",
    budget: str | float | None = None,
    settings: Mapping[str, Any] | None = None,
    min_per_class: int | None = None,
    refit: bool = True,
    from_head_layer: int = 0,
    seed: int = 0,
) -> Model | Segmenter:
    """Make a model that answers from an encoder and labeled images, and keep it in a folder.

    A fifth of the images of each class, by a stable hash of their names, chooses: settings, when to stop, which
    strategy, the temperature of the probabilities, and from which distance on an image is unknown. Test images choose
    nothing. How long it may take is measured and said before it starts. What is finished is kept beside `out` until the
    model is there, and the same call continues an interrupted one, on one CPU thread to the same bits.

    Args:
        weights: a run folder or weights: see `load`.
        data: labeled images.
        out: a new folder for the model.
        strategy: "linear", "mlp", "lora", "dora", "unfreeze", "lpft", "finetune", or "auto", which climbs them as far
            as it helps: see `manyviews.tuning`.
        task: what the labels are: one of the "classes" for each image, "several" of them, "numbers", or "segmentation",
            a mask of each image in a folder as `segment` takes it; None to find out, and say so: see `docs/adapt.md`.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels; or with other
            columns of labels. Columns of Parquet files, with commas between them.
        test: labeled images to test on; if None, the test images of `data` if it has folders or files of that name.
        test_labels: the same as `labels` for `test`.
        shifted: labeled images of the same classes under other conditions, to test on too. Their labels are found like
            those of `data` without `labels`.
        corruptions: whether to test on corrupted test images too.
        balance: what to do about classes of unequal size: "none", "weights", "sampling" or "logits": see
            `manyviews.tuning.Balance`.
        budget: how long it may take: "30m", "2h", or seconds.
        settings: settings of strategies: dotted paths and new values, such as `{"lora.rank": 16}` and
            `{"lpft.descent.epochs": 50}`.
        min_per_class: leave out classes with fewer images in `data`, at least 2; None to refuse them.
        refit: learn what was best again from all labeled images, those that chose too, with the same setting and as
            long. The numbers of validation images are those before.
        from_head_layer: keep so many layers of the projector that the run in `weights` was trained with, below the new
            head, as a part of the encoder (SimCLR v2, Chen et al. 2020).
        seed: seed of everything that is drawn.

    Returns:
        The model: see `manyviews.weights.Model`; one that segments is a `manyviews.weights.Segmenter`.

    Raises:
        UserError: bad input.
    """
    begun = time.monotonic()
    limit = None if budget is None else seconds(budget)
    if strategy not in (*STRATEGIES, AUTO):
        raise unknown("strategy", strategy, (*STRATEGIES, AUTO))
    if balance not in WAYS:
        raise unknown("balance", balance, WAYS)
    if task is not None and task not in TASKS:
        raise unknown("task", task, TASKS)
    check_seed(seed)
    if task == "segmentation" or (task is None and labels is None and has_masks(data)):
        given = {"test": test, "shifted": shifted, "corruptions": corruptions, "budget": budget, "labels": labels}
        _check_segmentation(strategy, {**given, "balance": balance != "none", "min_per_class": min_per_class})
        if task is None:
            say(f"{data} holds images and masks: each pixel gets a class. The test images are those of its folders.")
        found = with_head_layers(weights, from_head_layer) if from_head_layer else loaded(weights)
        if found.note:
            say_once(found.note)
        return segmenter(found, data, _new_folder(Path(out)), settings or {}, seed)
    strategies = with_settings({name: kind() for name, kind in STRATEGIES.items()}, settings or {})
    out = _new_folder(Path(out))
    learned = labeled(data, labels, task)
    held = _own_test(data, learned) if test is None else labeled(test, test_labels, learned.task)
    if held is not None and test is None:
        tell(held.source, [f"The test images are {held.source.name} ({len(held.source):,} images)."])
    if corruptions and held is None:
        raise UserError("Corrupted images are test images: give some as --test, or leave out --corruptions.")
    learned, held, others = agreeing(
        learned, held, [labeled(other, None, learned.task) for other in shifted], balance, min_per_class
    )
    found = with_head_layers(weights, from_head_layer) if from_head_layer else loaded(weights)
    if not isinstance(found.encoder, Encoder):
        raise UserError(f"{found.name} is a bare module, which cannot be kept: adapt weights that `load` reads.")
    if corruptions and len(found.mean) != 3:
        raise UserError(
            f"Corruptions change colors, and images of {len(found.mean)} channels have none: leave them out."
        )
    if found.note:
        say_once(found.note)
    source, *more = seen_by(found, learned.source, *(s.source for s in (*([] if held is None else [held]), *others)))
    learned = replace(learned, source=source)
    sets = [replace(s, source=m) for s, m in zip((*([] if held is None else [held]), *others), more, strict=True)]
    held, others = (None, sets) if held is None else (sets[0], sets[1:])

    chosen = list(strategies.values()) if strategy == AUTO else [strategies[strategy]]
    plan = _plan(found, learned, [strategy, balance, budget, seed, *map(repr, strategies.values())])
    with _continued(out, plan) as folder:
        pace = measure(found.encoder, source, found.test_size, machine.device())
        say(announced(chosen, pace, len(source), strategy, limit, refit))
        seen = _features(found, source, folder / FEATURES)
        problem, scale = _problem(found, learned, seen, cast(Any, balance), seed)
        deadline = None
        if limit is not None:  # features of what learned, and of the test images, come after it
            after = pace.features(len(source) + sum(len(s.source) for s in sets))
            deadline = begun + limit - min(after, limit / 3)
        with progress(f"adapt {strategy}") as update:
            problem = replace(problem, deadline=deadline, progress=update)
            climbed = _run(problem, strategy, strategies, pace, Kept(folder))
            best = climbed.best
            again = _again(problem, climbed, strategies, Kept(folder)) if refit else None
        model, features = _model(found, problem, climbed, scale, again, strategy, learned)
        judge = Judge(problem.task, held, tuple(others), corruptions, seed)
        own, tested = judge.all(model, features), {}
        linear = climbed.tried[0]
        if linear is not best and sets:
            plain = _answering(model, problem, linear, scale)
            tested = {"linear": judge.all(replace(plain, kept=model.kept), None)}
        facts = {**model.facts, **own, **({"instead": tested} if tested else {})}
        model = replace(model, facts={**facts, "seconds": round(time.monotonic() - begun, 1)})
        write(model, out)
    return replace(model, name=str(out))


def _check_segmentation(strategy: str, given: Mapping[str, Any]) -> None:
    """Raises UserError: options that a model that segments has no use for."""
    if strategy not in (AUTO, "linear"):
        raise UserError(
            f"A model that segments is a linear layer on the encoder's map: leave --strategy {strategy} out."
        )
    useless = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if useless:
        raise UserError(f"Images with masks have no use for {listed(useless)}: leave it out.")


def _own_test(data: Any, learned: Labeled) -> Labeled | None:
    """The test images of data in splits."""
    found = own_test(data, learned.source)
    return None if found is None else of_source(found, learned.task)


def _new_folder(out: Path) -> Path:
    """The path of a new folder, whose parents are made."""
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The folder {out.parent} cannot be made ({e.strerror}): give another --out.") from None
    return new_file(out)


def with_settings(strategies: Mapping[str, Strategy], settings: Mapping[str, Any]) -> dict[str, Strategy]:
    """The strategies with other settings.

    Raises:
        UserError: an unknown strategy or setting, or a value that does not fit.
    """
    found = dict(strategies)
    for path, value in settings.items():
        name, _, rest = path.partition(".")
        if name not in found:
            raise unknown("strategy", name, found)
        known = [f.name for f in fields(cast(Any, found[name]))]
        if rest.partition(".")[0] not in known:
            raise unknown(f"setting of {name}", rest, known)
        new = parse(value) if isinstance(value, str) else value
        (found[name],) = cast(Any, override)((found[name],), f"{name}.{rest}", new)
    return found


def announced(
    strategies: Sequence[Strategy], pace: Pace, images: int, name: str, limit: float | None, refit: bool
) -> str:
    """A sentence about how long it may take."""
    train = round(images * (1 - SHARE))
    twice = 1 + images / max(1, train) if refit else 1.0
    each = {s.name: twice * pace.most(s, train, images - train) for s in strategies}
    looks = pace.features(images)
    if limit is not None:
        return f"It ends after about {duration(limit)}; the features of {images:,} images take {duration(looks)}."
    if name != AUTO:
        return f"{name} takes up to {duration(looks + each[name])} on this machine."
    listed = ", ".join(f"{k} {duration(v)}" for k, v in each.items() if v >= 1 and k != "dora")
    return (
        f"linear takes {duration(looks)} on this machine; further rungs take up to: {listed}. --budget 30m ends it in "
        "time."
    )


def _plan(weights: Pretrained, learned: Labeled, how: Sequence[Any]) -> str:
    """Everything that decides what is learned."""
    assert learned.y is not None
    labels = blake2b(learned.y.numpy().tobytes() + "\n".join(learned.names).encode("utf-8", "surrogateescape"))
    plan = {
        "encoder": weights_digest(weights.encoder),
        "look": [weights.test_size, *weights.mean, *weights.std],
        "version": 2,  # of the candidates beside
        "images": f"{fingerprint(learned.source)} {stamps(learned.source)}",
        "task": learned.task,
        "labels": labels.hexdigest()[:32],
        "how": list(how),
    }
    return json.dumps(plan, indent=2)


@contextmanager
def _continued(out: Path, plan: str) -> Iterator[Path]:
    """A folder beside `out` for what is finished, until all is."""
    folder = out.with_name(f"{out.name}.parts")
    claim(folder, "plan.json", plan, "an adaptation of other images or with other settings")
    there = sorted(p.stem for p in folder.glob("*.safetensors") if p.name != FEATURES)
    if there:
        say(f"Continues an adaptation that was interrupted: {', '.join(there)} is there already.")
    try:
        yield folder
    except UserError:
        if not any(p.name != FEATURES for p in folder.glob("*.safetensors")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except KeyboardInterrupt:
        say("Interrupted. The same command goes on with the strategy that was being learned.")
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _features(weights: Pretrained, source: Source, path: Path) -> Features:
    """The features of the images that can be read; from a file, if it is there."""
    if path.exists():
        tensors, facts = checkpoint.load_tensors(path)
        ids = [source.ids[i] for i in tensors["index"].tolist()]
        return Features(tensors["x"], None, tensors["index"], ids, [tuple(b) for b in facts["bad"]])
    with progress("features") as update:
        seen = extract(weights.encoder, source, progress=update, **preprocessing(weights))
    for where, reason in seen.bad:
        say(f"Skipped {where}: {reason}")
    check_finite(seen.x)
    checkpoint.save_tensors(path, {"x": seen.x, "index": seen.index}, {"bad": seen.bad})
    return seen


def _problem(
    weights: Pretrained, learned: Labeled, seen: Features, balance: Any, seed: int
) -> tuple[Problem, tuple[Tensor, Tensor]]:
    """Images and features in two parts, and what standardized numbers are multiplied by, and get added."""
    assert learned.y is not None
    y, classes, device = learned.y[seen.index], len(learned.names), machine.device()
    train, val = stratified(seen.ids, _strata(learned.task, y), SHARE, "adaptation")
    if learned.task == "classes" and (not len(val) or len(y.unique()) < classes):
        raise UserError(f"{learned.source.name} has classes without two images that can be read: add some.")
    std, mean = torch.ones(classes), torch.zeros(classes)
    goal: Goal
    if learned.task == "numbers":
        std, mean = torch.std_mean(y[train], 0, correction=0)
        if not (std > 0).all():
            name = learned.names[int((std <= 0).nonzero()[0])]
            raise UserError(f"All training images of {learned.source.name} have the same {name}: leave it out.")
        y, goal = (y - mean) / std, Numbers()
    elif learned.task == "several":
        goal = Several()
    else:
        goal = Balance(balance, torch.bincount(y[train], minlength=classes).to(device))
    (train_x, train_y), (val_x, val_y) = ((seen.x[rows].to(device), y[rows].to(device)) for rows in (train, val))
    task = Task(train_x, train_y, val_x, val_y, train_x[:0], classes, learned.names)
    images = replace(learned.source.subset(seen.index[torch.cat([train, val])].numpy()), annotate=unlabeled)
    encoder = weights.encoder.to(device).eval()
    look = (weights.test_size, weights.mean, weights.std, device)
    again = ImageTask(encoder, task, images, images.subset(()), *look)
    return Problem(again, goal, seed), (mean, std)


def _strata(task: str, y: Tensor) -> Tensor:
    """Groups of which each gives its fifth: the classes; the rarest class of each image; quarters of the numbers."""
    if task == "classes":
        return y
    if task == "several":
        rarest = torch.where(y, y.sum(0), len(y) + 1).argmin(1)
        return torch.where(y.any(1), rarest, y.shape[1])
    return (4 * y[:, 0].argsort(stable=True).argsort(stable=True)).div(len(y), rounding_mode="floor")


def _run(problem: Problem, name: str, strategies: Mapping[str, Strategy], pace: Pace, run: Kept) -> Climb:
    """What was asked for; with the linear layer that others begin with."""
    if name == AUTO:
        return climb(problem, strategies, pace, say, run)
    linear = run(strategies["linear"], problem, None)
    if name == "linear":
        return Climb(linear, (linear,), ())
    strategy = strategies[name]
    most = pace.most(strategy, len(problem.task.frozen.train_y), len(problem.task.frozen.val_y))
    if problem.left < most:
        strategy = strategy.shortened(problem.left / most)
        say(f"{name} would take up to {duration(most)}: it gets fewer epochs.")
    found = run(strategy, problem, linear)
    return Climb(found, (linear, found), ())


def _again(problem: Problem, climbed: Climb, strategies: Mapping[str, Strategy], run: Kept) -> Candidate | None:
    """The best candidate learned again from all images; None if there is no time left for it."""
    best = climbed.best
    if problem.left < (1 + SHARE / (1 - SHARE)) * best.seconds:
        say(_NO_TIME.format(best.strategy))
        return None
    heads = [c for c in climbed.tried if c.encoder is problem.encoder and c.strategy in ("linear", "mlp")]
    first = best if best in heads else max(heads, key=lambda c: c.score)
    start = run.again(strategies[first.strategy], problem, first, first)
    try:
        return start if first is best else run.again(strategies[best.strategy], problem, best, start)
    except Late:
        say(_NO_TIME.format(best.strategy))
        return None


_NO_TIME = "There is no time left to learn {} again from the images that chose, too."


def _answering(model: Model, problem: Problem, found: Candidate, scale: tuple[Tensor, Tensor]) -> Model:
    """A model with a candidate in the place of its encoder and head, calibrated on validation images."""
    head = scaled(folded(found.head), *scale).to(problem.task.device)
    warm, limits = calibrated(model.task, found.logits, problem.task.frozen.val_y)
    return replace(
        model, encoder=found.encoder, head=head, head_spec=found.head_spec, temperature=warm, thresholds=limits
    )


def calibrated(task: str, logits: Tensor, y: Tensor) -> tuple[float, tuple[float, ...]]:
    """A temperature, and with "several" a threshold for each class, by validation images."""
    if task == "numbers":
        return 1.0, ()
    warm = temperature(logits, y)
    return warm, thresholds((logits / warm).sigmoid(), y) if task == "several" else ()


def _model(
    weights: Pretrained,
    problem: Problem,
    climbed: Climb,
    scale: tuple[Tensor, Tensor],
    again: Candidate | None,
    strategy: str,
    learned: Labeled,
) -> tuple[Model, Tensor]:
    """The best candidate, calibrated on validation images, and its features of training and validation images.

    Args:
        weights: the encoder as it came.
        problem: what was learned.
        climbed: what was tried.
        scale: mean and deviation of numbers.
        again: the best candidate, learned again from all images; None to keep it as it was chosen.
        strategy: what was asked for.
        learned: the images.
    """
    best, task = climbed.best, problem.task
    final = best if again is None else again
    encoder, y = final.encoder, task.frozen.val_y.cpu()
    if encoder is problem.encoder:
        train_x, val_x = task.frozen.train_x.cpu(), task.frozen.val_x.cpu()
    else:
        look = {"test_size": task.size, "mean": task.mean, "std": task.std, "device": task.device}
        with progress("features") as update:
            x = extract(encoder, task.trainval, progress=update, **cast(Any, look)).x
        train_x, val_x = x[: len(task.frozen.train_y)], x[len(task.frozen.train_y) :]
    outputs = best.logits * scale[1] + scale[0]
    wanted = y * scale[1] + scale[0] if learned.task == "numbers" else y
    warm, limits = calibrated(learned.task, outputs, wanted)
    validation = {**judged(learned.task, outputs, wanted, learned.names, warm, limits), "images": len(y)}
    why = list(climbed.why)
    if again is not None:
        said = (
            f"{best.strategy} learned again from all {len(train_x) + len(y):,} labeled images, those that chose too; "
            "the numbers of validation images are those before."
        )
        say(said)
        why.append(said)
    facts = {
        "title": f"{Path(weights.name).name} adapted by {best.strategy}",
        "strategy": best.strategy,
        "asked": strategy,
        "from": weights.name,
        "data": learned.source.name,
        "images": {"train": len(task.frozen.train_y), "validation": len(y)},
        "balance": problem.goal.way,
        "seed": problem.seed,
        "parameters": {"learned": best.learned, "all": sum(p.numel() for p in encoder.parameters())},
        "setting": dict(best.setting),
        "history": list(best.history),
        "validation": validation,
        "tried": [
            {
                "strategy": c.strategy,
                **problem.noted(c.score),
                "seconds": round(c.seconds, 1),
            }
            for c in climbed.tried
        ],
        "refit": again is not None,
        "why": why,
        "machine": machine.describe(task.device),
    }
    made = Model(
        mean=weights.mean,
        std=weights.std,
        test_size=weights.test_size,
        name=weights.name,
        reading=weights.reading,
        classes=task.frozen.names,
        task=learned.task,
        temperature=warm,
        thresholds=limits,
        kept=Known.of(train_x, val_x),
        facts=facts,
        encoder=encoder,
        head=scaled(folded(final.head), *scale).to(task.device),
        head_spec=final.head_spec,
    )
    return made, torch.cat([train_x, val_x])
