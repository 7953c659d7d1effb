"""The judgment: an encoder next to what it must beat, under the same protocols, on the same images.

Nothing is chosen with test labels: protocols do not see them. Settings are fixed in advance, such as those of k-NN
(k = 20, temperature 0.1), or chosen on validation images.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from manyviews.backbones import Encoder, ExternalEncoder, Kind, reinitialized, width
from manyviews.data.source import NAME_LABELS, Source, unlabeled
from manyviews.data.split import split
from manyviews.errors import UserError, unknown
from manyviews.evaluation import metrics
from manyviews.evaluation.clustering import clustering
from manyviews.evaluation.corruptions import corruptions, shifted
from manyviews.evaluation.duplicates import across
from manyviews.evaluation.features import Chosen, Features, Pixels, check_finite, extract_all, fingerprint
from manyviews.evaluation.finetune import finetune, finetune_vit, linear_augmented, semi_1, semi_10
from manyviews.evaluation.knn import KS, TEMPERATURE, neighbors, usable, vote
from manyviews.evaluation.layers import guillotine, layers, linear_grid
from manyviews.evaluation.linear import Linear, Standard, linear_probe, logistic_regression
from manyviews.evaluation.multilabel import check_targets, multilabel, refusal
from manyviews.evaluation.probes import few_shot_5, few_shot_10, mlp
from manyviews.evaluation.report import Gain, Nearest, Report, Representation, Score
from manyviews.evaluation.retrieval import copy_detection, retrieval
from manyviews.evaluation.rotation import rotation
from manyviews.evaluation.spectrum import rankme, singular_values, spread
from manyviews.evaluation.task import Answer, ImageTask, Measure, Task, check_seed
from manyviews.progress import Update
from manyviews.settings import check, parse

K = 20
"""Neighbors of the headline k-NN."""

MAJORITY_KS = (10, 20)
"""Neighbors of the k-NN by majority, of which validation images choose."""

FEWEST = 10
"""Images a class must have."""

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
# Looks at each image, to say how long it will take: of a protocol that trains on images, and of those that do not.
_LOOKS = 100
_ONCE = {"linear_grid": 1, "layers": 1, "rotation": 4}
_SPECTRUM = 10_000  # images of which a spectrum is computed, at most
_QUERIES, _NEAREST = 8, 8  # of the nearest neighbors that a report shows


def _knn(task: Task, seed: int) -> Answer:
    """k-nearest neighbors by cosine similarity among all training images: k = 20, weighted with temperature 0.1."""
    x, y = torch.cat([task.train_x, task.val_x]), torch.cat([task.train_y, task.val_y])
    k = usable((K,), len(x))[0]
    ks = sorted({*usable(KS, len(x)), k})
    similarity, index = neighbors(x, task.test_x, max(ks))
    labels = y[index]

    def predict(k: int, temperature: float | None, top: int = 1) -> Tensor:
        return vote(similarity[:, :k], labels[:, :k], task.classes, temperature, top)

    others = {
        f"k={k} {kind}": predict(k, t)[:, 0] for kind, t in (("weighted", TEMPERATURE), ("majority", None)) for k in ks
    }
    return Answer(predict(k, TEMPERATURE, 5), {"k": k, "temperature": TEMPERATURE}, [], others)


def _knn_majority(task: Task, seed: int) -> Answer:
    """k-nearest neighbors by cosine similarity, one vote each; k = 10 or 20, chosen on validation images (MULAN, A)."""
    ks = usable(MAJORITY_KS, len(task.train_x))

    def voted(x: Tensor, y: Tensor, asked: Tensor) -> dict[int, Tensor]:
        similarity, index = neighbors(x, asked, max(ks))
        return {k: vote(similarity[:, :k], y[index[:, :k]], task.classes, None, 5) for k in ks}

    held = voted(task.train_x, task.train_y, task.val_x)
    accuracy = {k: metrics.top(ranked, task.val_y) for k, ranked in held.items()}
    best = max(ks, key=lambda k: accuracy[k])
    # All training images vote, as in the paper: those that chose k are among them now.
    found = voted(torch.cat([task.train_x, task.val_x]), torch.cat([task.train_y, task.val_y]), task.test_x)
    others = {f"k={k}": ranked[:, 0] for k, ranked in found.items()}
    return Answer(found[best], {"k": best}, [({"k": k}, a) for k, a in accuracy.items()], others)


def _linear(task: Task, seed: int) -> Answer:
    """A linear layer on standardized features, by SGD; learning rate and weight decay chosen on validation images."""
    return _answer(
        linear_probe(task.train_x, task.train_y, task.val_x, task.val_y, task.test_x, classes=task.classes, seed=seed)
    )


def _logistic(task: Task, seed: int) -> Answer:
    """Logistic regression on standardized features, by L-BFGS; its L2 penalty chosen on validation images."""
    return _answer(
        logistic_regression(task.train_x, task.train_y, task.val_x, task.val_y, task.test_x, classes=task.classes)
    )


def _answer(found: Linear) -> Answer:
    return Answer(found.logits.argsort(1, descending=True)[:, :5], found.setting, found.validation, {})


ON_FEATURES: dict[str, Callable[..., Answer]] = {
    "knn": _knn,
    "knn_majority": _knn_majority,
    "linear": _linear,
    "logistic": _logistic,
    "mlp": mlp,
}
"""Functions of a task and a seed, whose docstrings say in their first line what they do. Their keyword arguments can be
set: see `evaluate`."""

ON_IMAGES: dict[str, Callable[..., Answer]] = {
    "linear_grid": linear_grid,
    "linear_augmented": linear_augmented,
    "semi_1": semi_1,
    "semi_10": semi_10,
    "finetune": finetune,
    "finetune_vit": finetune_vit,
}
"""The same of an image task."""


def _multilabel(task: ImageTask, test_y: Tensor, seed: int) -> Measure:
    """A logistic regression for each class of images with several labels: mean average precision."""
    x = task.frozen
    return multilabel(x.train_x, x.train_y, x.val_x, x.val_y, x.test_x, test_y, x.names, seed)


MEASURES: dict[str, Callable[..., Measure]] = {
    "few_shot_5": few_shot_5,
    "few_shot_10": few_shot_10,
    "layers": layers,
    "guillotine": guillotine,
    "rotation": rotation,
    "multilabel": _multilabel,
    "retrieval": retrieval,
    "copy_detection": copy_detection,
    "corruptions": corruptions,
    "clustering": clustering,
}
"""The same of an image task, the labels of its test items, with which nothing is chosen, and a seed."""

INSIDE = {"semi_1", "semi_10", "finetune", "finetune_vit", "layers", "guillotine"}
"""Those that let the encoder itself learn, or look inside it, of which raw pixels have none."""

SEEDED = {
    "linear",
    "mlp",
    "linear_grid",
    "linear_augmented",
    "semi_1",
    "semi_10",
    "finetune",
    "finetune_vit",
    "layers",
    "guillotine",
    "rotation",
    "copy_detection",
    "corruptions",
}
"""Those whose result depends on the seed: they are repeated with several. "few_shot_5", "few_shot_10" and "clustering"
repeat themselves: they have settings for it."""

PROTOCOLS: dict[str, Callable[..., Answer | Measure]] = {**ON_FEATURES, **ON_IMAGES, **MEASURES}
"""All protocols by name."""


def evaluate(
    encoder: Encoder | ExternalEncoder,
    source: Source,
    test: Source | None = None,
    *,
    protocols: Sequence[str] = ("knn", "linear"),
    features: Kind = "pooled",
    settings: Mapping[str, Any] | None = None,
    others: Sequence[Source] = (),
    projector: tuple[nn.Sequential, nn.Module | None] | None = None,
    test_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
    seed: int = 0,
    seeds: int = 1,
    cache: Path | None = None,
    progress: Update | None = None,
    baselines: bool = True,
) -> Report:
    """Judge an encoder on labeled images, next to an untrained encoder and raw pixels.

    Without test images, a stable hash of each image's name sends it to training (64 %), validation (16 %) or test
    (20 %). With test images, `source` becomes training (90 %) and validation (10 %). Where nothing is chosen on
    validation images, and in k-NN, they are training images too.

    The untrained encoder has the same architecture and fresh weights from `seed`. It is evaluated like any other, so
    its BatchNorm layers have the statistics they start with, mean 0 and variance 1; under the protocols that tune the
    encoder it is the supervised baseline. Raw pixels (see `Pixels`) are standardized by the training images under every
    protocol, and absent where an encoder is tuned.

    Args:
        encoder: to be judged. It is moved to `device`; its mode and its weights stay as they are.
        source: labeled images.
        test: labeled images of the same classes.
        protocols: names from `PROTOCOLS`.
        features: of which kind: see `Encoder.features`.
        settings: of protocols, instead of the paper's: dotted paths and values, such as
            `{"finetune.lrs": (0.01, 0.05), "finetune.epochs": 30}`.
        others: further labeled images of the same classes, or some of them, under other conditions: how a probe that
            learned on `source` does on each (see `corruptions.shifted`).
        projector: of the encoder's training, for "guillotine": what `layers.projector_of` gives.
        test_size: side of what the encoder sees, pixels: see `features.test_transform`.
        mean: per channel, of images in [0, 1].
        std: per channel, of images in [0, 1].
        device: for the encoder and the protocols.
        seed: of the untrained encoder, what the protocols draw, and the intervals.
        seeds: how often protocols in `SEEDED` and probes for `others` are run, with `seed` and the seeds after it:
            what they say is the mean.
        cache: folder for features on disk.
        progress: called now and then.
        baselines: whether to evaluate the untrained encoder and raw pixels too.

    Raises:
        UserError: an unknown protocol, setting or kind of features; labels missing, of a single class, of a class with
            fewer than 10 images, or not the same in both sets; test images that are the training images; features
            that are not finite.
    """
    start = time.monotonic()
    given, device = requested(protocols, settings or {}, seed, seeds), torch.device(device)
    encoders, notes = _contenders(encoder, features, seed, protocols, baselines)
    classes, test, others = _checked(source, test, others, protocols)
    measures = _measures(protocols, projector, others)
    asked = [*protocols, *(name for name in measures if name not in protocols)]
    lack = {"pixels": INSIDE, "untrained": {"guillotine"}}
    runs = [(name, p) for name in encoders for p in asked if p not in lack.get(name, ())]

    # For the progress bar, in images looked at: all of them once, and then what each run costs.
    images = len(source) + (len(test) if test is not None else 0)
    looks = {p: _LOOKS for p in ON_IMAGES} | dict.fromkeys(measures, 1) | _ONCE
    cost = {p: 1 if p in ON_FEATURES else looks[p] * len(source) for p in asked}
    repeats = {p: seeds if p in SEEDED or p not in PROTOCOLS else 1 for p in asked}
    total = images + sum(cost[p] * repeats[p] for _, p in runs)

    def look(images: Source, before: int) -> dict[str, Features]:
        return extract_all(
            encoders,
            images,
            test_size=test_size,
            mean=mean,
            std=std,
            device=device,
            cache=cache,
            progress=_within(progress, before, len(images), total, "reading images"),
        )

    seen = look(source, 0)
    held = seen if test is None else look(test, len(source))
    check_finite(seen["trained"].x)
    sets = _Sets.of(source, test, seen, held, classes, device, several="multilabel" in protocols)
    notes += sets.leaks()
    test_y = sets.test_y

    done, found = images, {}
    right: dict[str, dict[str, Tensor]] = {}
    for name in encoders:
        raw = sets.task(name)
        task = _standardized(raw) if name == "pixels" else raw
        again = partial(
            ImageTask,
            encoders[name].to(device),
            raw,
            sets.known(name),
            sets.asked(name),
            test_size,
            _triple(mean),
            _triple(std),
            device,
        )
        scores: dict[str, Score] = {}
        measured: dict[str, Measure] = {}
        right[name] = {}
        for protocol in (p for n, p in runs if n == name):
            what, answers, found_by_seed = f"{protocol}: {name}", [], []
            for s in range(seed, seed + repeats[protocol]):
                if progress is not None:
                    progress(done, total, what)
                within = _within(progress, done, cost[protocol], total, what)
                if protocol in measures:
                    # Of a further set of images, one look at which were learned from is enough.
                    how = given.get(protocol, {"doubt": name == "trained" and s == seed})
                    found_by_seed.append(measures[protocol](again(within), test_y.to(device), s, **how))
                elif protocol in ON_FEATURES:
                    answers.append(ON_FEATURES[protocol](task, s, **given[protocol]))
                else:
                    answers.append(ON_IMAGES[protocol](again(within), s, **given[protocol]))
                done += cost[protocol]
            if answers:
                scores[protocol] = _score(answers, test_y, len(classes), seed)
                right[name][protocol] = _right(answers, test_y)
            else:
                measured[protocol] = _mean(found_by_seed)
        found[name] = _represent(task, scores, measured)
        if name == "trained":
            nearest = _nearest(task, sets)
        del raw, task, again  # features of another contender are as large
    if progress is not None:
        progress(total, total)

    gains = {
        baseline: {p: _gain(right["trained"][p], theirs, seed) for p, theirs in right[baseline].items()}
        for baseline in encoders
        if baseline != "trained"
    }
    said = (note for measure in found["trained"].measures.values() for note in measure.notes)
    return Report(
        source=source.name,
        test=None if test is None else test.name,
        classes=tuple(classes),
        images={part: len(rows) for part, rows in sets.parts.items()},
        test_size=test_size,
        seed=seed,
        representations=found,
        gains=gains,
        nearest=nearest,
        bad=tuple(dict.fromkeys(seen["trained"].bad + held["trained"].bad)),
        seconds=time.monotonic() - start,
        features=features,
        notes=tuple(dict.fromkeys([*notes, *said])),
    )


@dataclass(frozen=True)
class _Sets:
    """The images of an evaluation, and the features that every contender gives them."""

    source: Source
    tested: Source
    """The source itself, if the test images were split off from it."""
    seen: dict[str, Features]
    """Of the source, by contender."""
    held: dict[str, Features]
    """Of `tested`."""
    parts: dict[str, Tensor]
    """Rows: "train" and "validation" of `seen`, "test" of `held`."""
    classes: list[str]
    device: torch.device

    @classmethod
    def of(
        cls,
        source: Source,
        test: Source | None,
        seen: dict[str, Features],
        held: dict[str, Features],
        classes: list[str],
        device: torch.device,
        several: bool,
    ) -> _Sets:
        if several:  # what is asked for decides: images with one label each may be asked so too
            seen = {name: _targeted(f, source) for name, f in seen.items()}
            held = seen if test is None else {name: _targeted(f, test) for name, f in held.items()}
        parts = _parts(source, test, seen["trained"], held["trained"])
        return cls(source, source if test is None else test, seen, held, parts, classes, device)

    @property
    def learned(self) -> Tensor:
        """Rows of `seen`: training and validation images."""
        return torch.cat([self.parts["train"], self.parts["validation"]])

    @property
    def test_y(self) -> Tensor:
        return _labels(self.held["trained"])[self.parts["test"]]

    def known(self, name: str) -> Source:
        """Training and validation images."""
        return _pictures(self.source, self.seen[name], self.learned)

    def asked(self, name: str) -> Source:
        """Test images."""
        return _pictures(self.tested, self.held[name], self.parts["test"])

    def task(self, name: str) -> Task:
        x, labels, asked = self.seen[name].x, _labels(self.seen[name]), self.held[name].x[self.parts["test"]]
        (train_x, train_y), (val_x, val_y) = (
            (x[self.parts[k]].to(self.device), labels[self.parts[k]].to(self.device)) for k in ("train", "validation")
        )
        classes = tuple(self.classes)
        return Task(train_x, train_y, val_x, val_y, asked.to(self.device), len(classes), classes)

    def leaks(self) -> list[str]:
        """A sentence if test images are training images too."""
        seen, held = self.seen["trained"], self.held["trained"]
        twice = across(self.source, self.tested, _rows(seen, self.learned), _rows(held, self.parts["test"]))
        leaked = {j for _, j in twice}
        if not leaked:
            return []
        return [
            f"{len(leaked)} of {len(self.test_y)} test images are also training images (the first: "
            f"{self.tested.where(min(leaked))}): the numbers are too high."
        ]


def _checked(
    source: Source, test: Source | None, others: Sequence[Source], protocols: Sequence[str]
) -> tuple[list[str], Source | None, list[Source]]:
    """The classes, and the test images and further sets with labels numbered like the source's."""
    several = "multilabel" in protocols
    if several and len(protocols) > 1:
        raise UserError(
            "The protocol 'multilabel' is for images with several labels, and no other is: ask for it alone."
        )
    classes = check_targets(source) if several else check_labels(source, fewest=FEWEST)
    if test is not None:
        test = test.with_classes(classes)
        (check_targets if several else check_labels)(test)
        if fingerprint(source) == fingerprint(test):
            raise UserError(f"The test images are the images of {source.name} themselves: give others, or none.")
    if several and others:
        raise UserError("Images of other sets are judged by one label each, and 'multilabel' is for several.")
    others = [other.with_classes(classes) for other in others]
    known = [fingerprint(s) for s in (source, test) if s is not None]
    for i, other in enumerate(others):
        check_labels(other)
        if other.name in (o.name for o in others[:i]):
            raise UserError(f"Two sets of other conditions are called {other.name}: rename the folder of one.")
        if fingerprint(other) in known:
            raise UserError(f"The images of {other.name} are those that are evaluated: give others with --shifted.")
    return classes, test, others


def _measures(
    protocols: Sequence[str], projector: tuple[nn.Sequential, nn.Module | None] | None, others: Sequence[Source]
) -> dict[str, Callable[..., Measure]]:
    """Those among the protocols, and one for each further set."""
    measures = {p: MEASURES[p] for p in protocols if p in MEASURES}
    if "guillotine" in measures:
        if projector is None:
            raise UserError(
                "The protocol 'guillotine' looks into the projector of a run: give its folder, without options for "
                "weights from elsewhere."
            )
        measures["guillotine"] = partial(guillotine, projector=projector[0], inputs=projector[1])
    return measures | {f"shifted {other.name}": partial(shifted, other=other) for other in others}


def _contenders(
    encoder: Encoder | ExternalEncoder, features: Kind, seed: int, protocols: Sequence[str], baselines: bool
) -> tuple[dict[str, nn.Module], list[str]]:
    """The encoder and what it must beat, by name, and a sentence about what cannot be had."""
    contenders: dict[str, nn.Module] = {"trained": _of_kind(encoder, features)}
    notes = []
    if baselines:
        try:
            contenders["untrained"] = _of_kind(untrained(encoder, seed), features)
        except UserError as e:
            notes.append(str(e))
        if not INSIDE.issuperset(protocols):
            contenders["pixels"] = Pixels()
    return contenders, notes


# Settings that are not just positive.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "momentum": (lambda v: 0 <= v < 1, "at least 0 and less than 1"),
    "share": (lambda v: 0 < v <= 1, "more than 0 and at most 1"),
    "layer_decay": (lambda v: 0 < v <= 1, "more than 0 and at most 1"),
    "severities": (lambda v: v in range(1, 6), "from 1 to 5"),
    **dict.fromkeys(("smoothing", "drop_path", "dropout"), (lambda v: 0 <= v < 1, "at least 0 and less than 1")),
    **dict.fromkeys(
        ("weight_decay", "weight_decays", "warmup", "randaugment", "mixup", "cutmix"),
        (lambda v: 0 <= v < float("inf"), "at least 0 and finite"),
    ),
}


def requested(
    protocols: Sequence[str], settings: Mapping[str, Any], seed: int, seeds: int
) -> dict[str, dict[str, Any]]:
    """Keyword arguments of each protocol that was asked for.

    Raises:
        UserError: an unknown protocol or setting, or seeds that cannot be.
    """
    if not protocols:
        raise UserError(f"No protocol was named: choose from {', '.join(PROTOCOLS)}.")
    for name in protocols:
        if name not in PROTOCOLS:
            raise unknown("protocol", name, PROTOCOLS)
    check_seed(seed)
    if seeds < 1:
        raise UserError(f"Protocols are run with 1 seed or more, not {seeds}.")
    return _given(protocols, settings)


def _given(protocols: Sequence[str], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Keyword arguments of each protocol, with texts parsed and types checked."""
    given: dict[str, dict[str, Any]] = {protocol: {} for protocol in protocols}
    for path, value in settings.items():
        protocol, _, name = path.partition(".")
        if protocol not in given:
            raise UserError(f"The setting {path} is of no protocol that was asked for: {', '.join(protocols)}.")
        hints = get_type_hints(PROTOCOLS[protocol])
        known = {
            k: p
            for k, p in inspect.signature(PROTOCOLS[protocol]).parameters.items()
            if p.kind == p.KEYWORD_ONLY and k not in ("projector", "inputs")
        }
        if not known:
            raise UserError(f"The protocol '{protocol}' has no settings.")
        if name not in known:
            raise unknown(f"setting of {protocol}", name, known)
        value = parse(value) if isinstance(value, str) else value
        several = isinstance(known[name].default, tuple)
        if several:
            value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        check(value, hints[name], path)
        if hints[name] is float:
            value = float(value)  # 1 is as good as 1.0
        if isinstance(known[name].default, str) or (several and isinstance(known[name].default[0], str)):
            given[protocol][name] = value  # one or some of a few words
            continue
        fits, wanted = _RANGES.get(name, (lambda v: 0 < v < float("inf"), "positive and finite"))
        if (several and not value) or not all(map(fits, value if several else (value,))):
            raise UserError(f"The setting {path} must be {wanted}, not {value}.")
        given[protocol][name] = value
    return given


def _of_kind(encoder: Encoder | ExternalEncoder, features: Kind) -> nn.Module:
    if features == "pooled":
        return encoder
    width(encoder, features)  # refused by modules from outside
    assert isinstance(encoder, Encoder)
    return Chosen(encoder, features)


def _pictures(source: Source, features: Features, rows: Tensor) -> Source:
    """The images of these rows of features, without their labels."""
    return replace(source.subset(features.index[rows].numpy()), annotate=unlabeled)


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _within(progress: Update | None, before: int, share: int, total: int, what: str) -> Update | None:
    """The progress of a part that is `share` of the whole."""
    if progress is None:
        return None
    return lambda done, of, note="": progress(before + share * done // of, total, f"{what}, {note}" if note else what)


def check_labels(source: Source, fewest: int = 1) -> list[str]:
    """The classes of a source.

    Raises:
        UserError: it has no labels, all its images have the same, or a class has fewer than `fewest` images.
    """
    if source.several:
        raise refusal(source)
    labels, classes = source.labels, source.classes
    if labels is None or classes is None:
        raise UserError(
            f"{source.name} has no labels, which an evaluation needs: put its images into one folder for each class, "
            f"or {NAME_LABELS}."
        )
    if {c.lower() for c in classes} <= _SPLITS:
        learn = next((c for c in classes if c.lower().startswith("train")), classes[0])
        others = sorted((c for c in classes if c != learn), key=lambda c: not c.lower().startswith("test"))
        ask = f", and '{others[0]}' as the test images" if others else ""
        raise UserError(
            f"The first-level folders of {source.name} are {', '.join(classes)}, which are parts of a set and no "
            f"classes: give its folder '{learn}' as the images{ask}."
        )
    numbers, counts = np.unique(labels, return_counts=True)
    if len(numbers) < 2:
        raise UserError(
            f"All {len(labels)} images of {source.name} are of the class '{classes[numbers[0]]}': an evaluation needs "
            "at least two classes."
        )
    if counts.min() < fewest:
        raise UserError(
            f"The class '{classes[numbers[counts.argmin()]]}' of {source.name} has {counts.min()} of the at least "
            f"{fewest} images that an evaluation needs: add some, or leave out the class."
        )
    return classes


def untrained(encoder: Encoder | ExternalEncoder, seed: int) -> Encoder | ExternalEncoder:
    """An encoder of the same architecture with fresh weights; the global random state stays as it is.

    Raises:
        UserError: nobody knows how to initialize a module from outside.
    """
    if isinstance(encoder, ExternalEncoder):
        return reinitialized(encoder, seed)
    with torch.random.fork_rng([]):  # it draws on the CPU; by default every GPU would be touched
        torch.default_generator.manual_seed(seed)
        return Encoder.from_spec(encoder.spec)


def _parts(source: Source, test: Source | None, seen: Features, held: Features) -> dict[str, Tensor]:
    """Rows of each part: train and validation in `seen`, test in `held`."""
    shares = {"train": 0.64, "validation": 0.16, "test": 0.2} if test is None else {"train": 0.9, "validation": 0.1}
    parts = {part: torch.from_numpy(rows) for part, rows in split(seen.ids, shares, salt="evaluation").items()}
    if test is not None:
        parts["test"] = torch.arange(len(held))
    for part, rows in parts.items():
        if not len(rows):
            raise UserError(
                f"{source.name} has too few images that can be read: of {len(seen)} none fell to {part}. Add some."
            )
    return parts


def _rows(features: Features, rows: Tensor) -> Features:
    """Features of some of the images."""
    return replace(features, x=features.x[rows], index=features.index[rows])


def _targeted(features: Features, source: Source) -> Features:
    """With the images' several labels in the place of one."""
    assert source.targets is not None  # `check_targets` was there
    return replace(features, labels=torch.from_numpy(source.targets[features.index.numpy()]))


def _labels(features: Features) -> Tensor:
    assert features.labels is not None  # `check_labels` was there
    return features.labels


def _standardized(task: Task) -> Task:
    """With features of mean 0 and variance 1 over the training and validation images."""
    standard = Standard.of(torch.cat([task.train_x, task.val_x]))
    return replace(task, train_x=standard(task.train_x), val_x=standard(task.val_x), test_x=standard(task.test_x))


def _right(answers: Sequence[Answer], y: Tensor, k: int = 1) -> Tensor:
    """How often each item's label was among the first k: float64, `m`."""
    return torch.stack([metrics.hits(a.ranked.cpu(), y, k) for a in answers]).double().mean(0)


def _score(answers: Sequence[Answer], y: Tensor, classes: int, seed: int) -> Score:
    """Of answers with several seeds, of which there is often one. The settings are those of the first."""
    first, right = answers[0], _right(answers, y)
    return Score(
        top1=right.mean().item(),
        interval=metrics.bootstrap(right, seed),
        top5=_right(answers, y, 5).mean().item() if classes > 5 else None,
        per_class=tuple(right[y == c].mean().item() if (y == c).any() else None for c in range(classes)),
        setting=first.setting,
        validation={words(setting): accuracy for setting, accuracy in first.validation},
        others={name: metrics.top(guess.cpu()[:, None], y) for name, guess in first.others.items()},
        by_seed=tuple(metrics.top(a.ranked.cpu(), y) for a in answers),
    )


def _mean(found: Sequence[Measure]) -> Measure:
    """Of one protocol with several seeds, of which there is often one."""
    first = found[0]
    if len(found) == 1:
        return first
    values = tuple(m.value for m in found)
    # The ends' means: resampling the items for all seeds at once gives no wider interval.
    ends = [m.interval for m in found if m.interval is not None]
    low, high = (sum(e) / len(e) for e in zip(*ends, strict=True)) if ends else (None, None)
    return replace(
        first,
        value=sum(values) / len(values),
        interval=None if low is None or high is None else (low, high),
        details={k: sum(m.details[k] for m in found) / len(found) for k in first.details},
        by_seed=values,
    )


def words(setting: dict[str, float]) -> str:
    """A setting for people: "lr=0.01 weight_decay=0"."""
    return " ".join(f"{k}={v:g}" for k, v in setting.items())


def _gain(ours: Tensor, theirs: Tensor, seed: int) -> Gain:
    """The difference of two accuracies, from the same test items: a paired bootstrap."""
    difference = ours.double() - theirs.double()
    return Gain(difference.mean().item(), metrics.bootstrap(difference, seed))


def _represent(task: Task, scores: dict[str, Score], measures: dict[str, Measure]) -> Representation:
    # From all over the set: its order is often that of the classes.
    rows = torch.linspace(0, len(task.train_x) - 1, min(_SPECTRUM, len(task.train_x))).long()
    x = task.train_x[rows.to(task.train_x.device)].cpu()
    return Representation(x.shape[1], rankme(x), spread(x), tuple(singular_values(x).tolist()), scores, measures)


def _nearest(task: Task, sets: _Sets) -> tuple[Nearest, ...]:
    seen, held = sets.seen["trained"], sets.held["trained"]
    rows = torch.linspace(0, len(task.test_x) - 1, min(_QUERIES, len(task.test_x))).long()
    bank = torch.cat([task.train_x, task.val_x])
    similarity, index = neighbors(bank, task.test_x[rows.to(bank.device)], min(_NEAREST, len(bank)))
    queries = held.index[sets.parts["test"]][rows].tolist()
    found = zip(queries, seen.index[sets.learned][index.cpu()].tolist(), similarity.tolist(), strict=True)
    return tuple(Nearest(query, tuple(items), tuple(values)) for query, items, values in found)
