"""Make a model that answers from an encoder and labeled images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from manyviews import machine
from manyviews.backbones import Encoder
from manyviews.data.source import Source, unlabeled
from manyviews.errors import UserError, say, unknown
from manyviews.evaluation import metrics
from manyviews.evaluation.contract import ImageTask, LabeledTask, Task, check_seed
from manyviews.evaluation.features import Features, check_finite, extract
from manyviews.evaluation.protocols._probe import Classifier
from manyviews.evaluation.protocols.corruptions import Corruptions
from manyviews.evaluation.protocols.shifted import Shifted
from manyviews.evaluation.sets import check_labels, frequent
from manyviews.evaluation.subsets import stratified
from manyviews.evaluation.unlabeled.duplicates import across
from manyviews.heads.classify import folded
from manyviews.progress import duration, progress, seconds
from manyviews.settings import override, parse
from manyviews.tuning import (
    STRATEGIES,
    WAYS,
    Balance,
    Candidate,
    Problem,
    Strategy,
    calibration_error,
    climb,
    temperature,
)
from manyviews.tuning.ladder import Climb
from manyviews.tuning.pace import Pace, measure
from manyviews.verbs._common import doubted, loaded, new_file, opened, own_test, preprocessing, say_once, seen_by, tell
from manyviews.weights import Pretrained
from manyviews.weights.model import Known, Model, write

AUTO = "auto"
SHARE = 0.2
"""Share of the labeled images that choose."""

_FEWEST = 2  # images of a class: one to learn from and one to choose with


def adapt(
    weights: str | Path | Pretrained,
    data: Any,
    out: str | Path,
    *,
    strategy: str = AUTO,
    labels: str | Path | None = None,
    test: Any = None,
    test_labels: str | Path | None = None,
    shifted: Sequence[Any] = (),
    corruptions: bool = False,
    balance: str = "none",
    budget: str | float | None = None,
    settings: Mapping[str, Any] | None = None,
    min_per_class: int | None = None,
    seed: int = 0,
) -> Model:
    """Make a model that answers from an encoder and labeled images, and keep it in a folder.

    A fifth of the images of each class, by a stable hash of their names, chooses: settings, when to stop, which
    strategy, the temperature of the probabilities, and from which distance on an image is unknown. Test images choose
    nothing. How long it may take is measured and said before it starts.

    Args:
        weights: a run folder or weights: see `load`.
        data: labeled images, one label each.
        out: a new folder for the model.
        strategy: "linear", "mlp", "lora", "dora", "unfreeze", "lpft", "finetune", or "auto", which climbs them as far
            as it helps: see `manyviews.tuning`.
        labels: a CSV file of `path,label` for a folder whose first-level folders are not the labels.
        test: labeled images to test on; if None, the test images of `data` if it has folders or files of that name.
        test_labels: the same as `labels` for `test`.
        shifted: labeled images of the same classes under other conditions, to test on too.
        corruptions: whether to test on corrupted test images too.
        balance: what to do about classes of unequal size: "none", "weights", "sampling" or "logits": see
            `manyviews.tuning.Balance`.
        budget: how long it may take: "30m", "2h", or seconds.
        settings: settings of strategies: dotted paths and new values, such as `{"lora.rank": 16}` and
            `{"lpft.descent.epochs": 50}`.
        min_per_class: leave out classes with fewer images in `data`, at least 2; None to refuse them.
        seed: seed of everything that is drawn.

    Returns:
        The model: see `manyviews.weights.Model`.

    Raises:
        UserError: bad input.
    """
    begun = time.monotonic()
    limit = None if budget is None else seconds(budget)
    if strategy not in (*STRATEGIES, AUTO):
        raise unknown("strategy", strategy, (*STRATEGIES, AUTO))
    if balance not in WAYS:
        raise unknown("balance", balance, WAYS)
    check_seed(seed)
    strategies = with_settings({name: kind() for name, kind in STRATEGIES.items()}, settings or {})
    out = _new_folder(Path(out))
    source = opened(data, labels)
    held = own_test(data, source) if test is None else opened(test, test_labels)
    if held is not None and test is None:
        tell(held, [f"The test images are {held.name} ({len(held):,} images)."])
    if corruptions and held is None:
        raise UserError("Corrupted images are test images: give some as --test, or leave out --corruptions.")
    further = [opened(other) for other in shifted]
    (source, *more), left_out = frequent(
        [source, *([] if held is None else [held]), *further], min_per_class, least=_FEWEST
    )
    held, further = (None, more) if held is None else (more[0], more[1:])
    if left_out:
        say(left_out)
    else:
        doubted(source)
    named = check_labels(source, _FEWEST, "an adaptation")
    classes = [named[i] for i in np.unique(cast(np.ndarray, source.labels))]  # of a part of a set, some have no images
    source = source.with_classes(classes)
    held, further = (None if held is None else held.with_classes(classes)), [s.with_classes(classes) for s in further]
    found = loaded(weights)
    if not isinstance(found.encoder, Encoder):
        raise UserError(f"{found.name} is a bare module, which cannot be kept: adapt weights that `load` reads.")
    if corruptions and len(found.mean) != 3:
        raise UserError(
            f"Corruptions change colors, and images of {len(found.mean)} channels have none: leave them out."
        )
    if found.note:
        say_once(found.note)
    source, *more = seen_by(found, source, *([] if held is None else [held]), *further)
    held, further = (None, more) if held is None else (more[0], more[1:])

    chosen = list(strategies.values()) if strategy == AUTO else [strategies[strategy]]
    pace = measure(found.encoder, source, found.test_size, machine.device())
    say(announced(chosen, pace, len(source), strategy, limit))
    with progress("features") as update:
        seen = extract(found.encoder, source, progress=update, **preprocessing(found))
    for where, reason in seen.bad:
        say(f"Skipped {where}: {reason}")
    check_finite(seen.x)
    problem = _problem(found, source, seen, classes, cast(Any, balance), seed)
    deadline = None
    if limit is not None:  # features of what learned, and of the test images, come after it
        after = pace.features(len(source) + sum(map(len, (*further, *([] if held is None else [held])))))
        deadline = begun + limit - min(after, limit / 3)
    with progress(f"adapt {strategy}") as update:
        problem = replace(problem, deadline=deadline, progress=update)
        climbed = _run(problem, strategy, strategies, pace)
    model, learned = _model(found, problem, climbed, strategy, source)
    tested = {climbed.best.strategy: _tested(model, problem, learned, held, further, corruptions, seed)}
    linear = climbed.tried[0]
    if linear is not climbed.best and (held is not None or further):
        warm = temperature(linear.logits, problem.task.frozen.val_y)
        plain = replace(model, temperature=warm, **_parts(linear))
        tested["linear"] = _tested(plain, problem, None, held, further, corruptions, seed)
    own = tested.pop(climbed.best.strategy)
    facts = {**model.facts, **own}
    if tested:
        facts["instead"] = tested
    facts["seconds"] = round(time.monotonic() - begun, 1)
    model = replace(model, facts=facts)
    write(model, out)
    return replace(model, name=str(out))


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


def announced(strategies: Sequence[Strategy], pace: Pace, images: int, name: str, limit: float | None) -> str:
    """A sentence about how long it may take."""
    train = round(images * (1 - SHARE))
    each = {s.name: pace.most(s, train, images - train) for s in strategies}
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


def _problem(
    weights: Pretrained, source: Source, seen: Features, classes: list[str], balance: Any, seed: int
) -> Problem:
    """Images and features in two parts."""
    assert seen.labels is not None
    train, val = stratified(seen.ids, seen.labels, SHARE, "adaptation")
    if not len(val) or len(seen.labels.unique()) < len(classes):
        raise UserError(f"{source.name} has classes without two images that can be read: add some.")
    device = machine.device()
    (train_x, train_y), (val_x, val_y) = (
        (seen.x[rows].to(device), seen.labels[rows].to(device)) for rows in (train, val)
    )
    task = Task(train_x, train_y, val_x, val_y, train_x[:0], len(classes), tuple(classes))
    images = replace(source.subset(seen.index[torch.cat([train, val])].numpy()), annotate=unlabeled)
    encoder = weights.encoder.to(device).eval()
    look = (weights.test_size, weights.mean, weights.std, device)
    again = ImageTask(encoder, task, images, images.subset(()), *look)
    return Problem(again, Balance(balance, torch.bincount(train_y, minlength=len(classes))), seed)


def _run(problem: Problem, name: str, strategies: Mapping[str, Strategy], pace: Pace) -> Climb:
    """What was asked for; with the linear layer that others begin with."""
    if name == AUTO:
        return climb(problem, strategies, pace, say)
    linear = strategies["linear"].run(problem)
    if name == "linear":
        return Climb(linear, (linear,), ())
    strategy = strategies[name]
    most = pace.most(strategy, len(problem.task.frozen.train_y), len(problem.task.frozen.val_y))
    if problem.left < most:
        strategy = strategy.shortened(problem.left / most)
        say(f"{name} would take up to {duration(most)}: it gets fewer epochs.")
    found = strategy.run(problem, linear)
    return Climb(found, (linear, found), ())


def _parts(found: Candidate) -> dict[str, Any]:
    """The fields of a model that a candidate decides, but for what is measured."""
    return {
        "encoder": found.encoder,
        "head": folded(found.head).to(next(found.encoder.parameters()).device),
        "head_spec": found.head_spec,
    }


def _model(
    weights: Pretrained, problem: Problem, climbed: Climb, strategy: str, source: Source
) -> tuple[Model, Tensor]:
    """The best candidate, calibrated on validation images, and its features of training and validation images."""
    best, task = climbed.best, problem.task
    parts = _parts(best)
    encoder, y = best.encoder, task.frozen.val_y.cpu()
    if encoder is problem.encoder:
        train_x, val_x = task.frozen.train_x.cpu(), task.frozen.val_x.cpu()
    else:
        look = {"test_size": task.size, "mean": task.mean, "std": task.std, "device": task.device}
        with progress("features") as update:
            x = extract(encoder, task.trainval, progress=update, **cast(Any, look)).x
        train_x, val_x = x[: len(task.frozen.train_y)], x[len(task.frozen.train_y) :]
    with torch.no_grad():
        logits = parts["head"](val_x.to(task.device)).float().cpu()
    warm = temperature(logits, y)
    before, after = logits.softmax(1), (logits / warm).softmax(1)
    validation = {
        **numbers_of(after, y),
        "images": len(y),
        "calibration_error": calibration_error(after, y),
        "uncalibrated": calibration_error(before, y),
    }
    facts = {
        "title": f"{Path(weights.name).name} adapted by {best.strategy}",
        "strategy": best.strategy,
        "asked": strategy,
        "from": weights.name,
        "data": source.name,
        "images": {"train": len(task.frozen.train_y), "validation": len(y)},
        "balance": problem.balance.way,
        "seed": problem.seed,
        "parameters": {"learned": best.learned, "all": sum(p.numel() for p in encoder.parameters())},
        "setting": dict(best.setting),
        "history": list(best.history),
        "validation": validation,
        "tried": [
            {
                "strategy": c.strategy,
                "accuracy": c.score.accuracy,
                "certainty": c.score.certainty,
                "seconds": round(c.seconds, 1),
            }
            for c in climbed.tried
        ],
        "why": list(climbed.why),
        "machine": machine.describe(task.device),
    }
    made = Model(
        mean=weights.mean,
        std=weights.std,
        test_size=weights.test_size,
        name=weights.name,
        reading=weights.reading,
        classes=task.frozen.names,
        temperature=warm,
        kept=Known.of(train_x, val_x),
        facts=facts,
        **parts,
    )
    return made, torch.cat([train_x, val_x])


def numbers_of(probability: Tensor, y: Tensor) -> dict[str, Any]:
    """Accuracies of probabilities, `m classes`, with an interval, and the mean cross-entropy of the labels."""
    right = probability.argmax(1) == y
    each = metrics.per_class(right, y, probability.shape[1])
    present = [a for a in each if a is not None]
    sure = probability.double().gather(1, y[:, None]).clamp(min=1e-12).log()
    return {
        "accuracy": right.double().mean().item(),
        "interval": metrics.bootstrap(right),
        "mean_per_class": float(np.mean(present)),
        "per_class": each,
        "cross_entropy": -sure.mean().item(),
    }


def _tested(
    model: Model,
    problem: Problem,
    learned: Tensor | None,
    held: Source | None,
    further: Sequence[Source],
    corruptions: bool,
    seed: int,
) -> dict[str, Any]:
    """Numbers on test images and on images under other conditions.

    Args:
        model: the model.
        problem: what it learned.
        learned: its features of training and validation images, to find test images among them; None not to look.
        held: test images.
        further: images under other conditions.
        corruptions: whether to test on corrupted test images.
        seed: seed of corruptions and intervals.
    """
    found: dict[str, Any] = {}
    if held is None and not further:
        return found
    look = preprocessing(model)
    known = replace(problem.task.frozen, test_x=problem.task.frozen.train_x[:0])
    test_y = known.train_y[:0]
    images = problem.task.test
    if held is not None:
        with progress("test") as update:
            seen = extract(model.encoder, held, progress=update, **look)
        assert seen.labels is not None
        check_finite(seen.x)
        with torch.no_grad():
            logits = model.head(seen.x.to(look["device"])).float().cpu()
        probability = (logits / model.temperature).softmax(1)
        found["test"] = {
            "data": held.name,
            "images": len(seen),
            "unreadable": len(seen.bad),
            **numbers_of(probability, seen.labels),
            "calibration_error": calibration_error(probability, seen.labels),
        }
        if learned is not None:  # the images themselves are read only where features cannot tell them apart
            before = Features(learned, None, torch.arange(len(learned)), [], [])
            twice = across(problem.task.trainval, held, before, seen)
            near = model.kept.distance(seen.x) <= model.kept.threshold
            found["test"]["known"] = near.double().mean().item()
            found["test"]["learned_from"] = len({j for _, j in twice})
        known = replace(known, test_x=seen.x.to(look["device"]))
        test_y = seen.labels.to(look["device"])
        images = replace(held.subset(seen.index.numpy()), annotate=unlabeled)
    task = LabeledTask(
        model.encoder,
        known,
        problem.task.trainval,
        images,
        model.test_size,
        tuple(model.mean),
        tuple(model.std),
        look["device"],
        test_y=test_y,
    )
    judge = Classifier(_inferring(model), {})
    if corruptions:
        with progress("corruptions") as update:
            measured = Corruptions().judge(replace(task, progress=update), judge, seed)
        found["corruptions"] = {"accuracy": measured.value, "interval": measured.interval, **measured.details}
    for other in further:
        with progress(other.name) as update:
            measured = Shifted(other, doubt=False).judge(replace(task, progress=update), judge, seed)
        found.setdefault("shifted", {})[other.name] = {
            "accuracy": measured.value,
            "interval": measured.interval,
            **measured.details,
        }
    return found


def _inferring(model: Model) -> Any:
    def logits(x: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = model.head(x).float()
        return found

    return logits
