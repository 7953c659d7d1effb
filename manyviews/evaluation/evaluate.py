"""The judgment: an encoder next to what it must beat, under the same protocols, on the same images.

Nothing is chosen with test labels, because protocols that choose do not see them. Settings are fixed in advance, such
as those of k-NN (k = 20, temperature 0.1), or chosen on validation images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from manyviews import distributed, machine
from manyviews.backbones import Encoder, ExternalEncoder, Kind, width
from manyviews.data.source import Source
from manyviews.errors import UserError, say
from manyviews.evaluation import scores
from manyviews.evaluation.baselines import Pixels, untrained
from manyviews.evaluation.contract import (
    FeatureProtocol,
    ImageProtocol,
    ImageTask,
    LabeledTask,
    Metric,
    MetricProtocol,
    Prediction,
    Projector,
    Protocol,
    Task,
    check_seeds,
)
from manyviews.evaluation.features import Chosen, Features, Kept, check_finite, extract_all
from manyviews.evaluation.linear import standardized
from manyviews.evaluation.protocols import requested
from manyviews.evaluation.protocols.shifted import Shifted
from manyviews.evaluation.remaining import Part, Remaining
from manyviews.evaluation.report import NAMES, Report, Score
from manyviews.evaluation.sets import Sets, checked
from manyviews.progress import Note, Update, duration

_LONG = 600.0  # seconds of one run of a protocol that are told before it begins


def evaluate(
    encoder: Encoder | ExternalEncoder,
    source: Source,
    test: Source | None = None,
    *,
    protocols: Sequence[str | Protocol] = ("knn", "linear"),
    features: Kind = "pooled",
    settings: Mapping[str, Any] | None = None,
    others: Sequence[Source] = (),
    projector: Projector | None = None,
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

    Images are decoded once for all contenders, and kept in a quarter of the free memory for protocols that see them
    under the same transform again. Several processes of a group share the reading, and get the same report: what
    follows is computed in the first.

    Without test images, a stable hash of each image's name sends it to training (64 %), validation (16 %) or test
    (20 %). With test images, `source` becomes training (90 %) and validation (10 %). Where nothing is chosen on
    validation images, and in k-NN, they are training images too.

    The untrained encoder has the same architecture and fresh weights from `seed`. It is evaluated like any other, so
    its BatchNorm layers have their initial statistics, mean 0 and variance 1; under the protocols that tune the
    encoder it is the supervised baseline. Raw pixels (see `Pixels`) are standardized by the training images under every
    protocol, and absent where an encoder is tuned.

    Args:
        encoder: encoder to judge. It is moved to `device`; its mode and its weights stay as they are.
        source: labeled images.
        test: labeled images of the same classes.
        protocols: names of protocols, or protocols with their settings: see `manyviews.evaluation.protocols`.
        features: kind of features: see `backbones.represent`.
        settings: settings of protocols other than the paper's: dotted paths and values, such as
            `{"finetune.lrs": (0.01, 0.05), "finetune.epochs": 30}`.
        others: further labeled images of the same classes, or some of them, under other conditions. A probe that
            learned on `source` is tried on each: see `protocols.shifted`.
        projector: the projector of the encoder's training, for "projector_layers": see
            `protocols.projector_layers.projector_of`.
        test_size: side of the encoder's input in pixels: see `features.test_transform`.
        mean: per channel, for images in [0, 1].
        std: per channel, for images in [0, 1].
        device: device of the encoder and the protocols.
        seed: seed of the untrained encoder, the protocols' draws, and the intervals.
        seeds: number of runs of each protocol that draws, and of each probe for `others`, with `seed` and the seeds
            after it; reported are the means.
        cache: folder for features on disk.
        progress: called now and then.
        baselines: whether to evaluate the untrained encoder and raw pixels too.

    Raises:
        UserError: an unknown protocol, setting or kind of features; labels missing, of a single class, of a class with
            fewer than 10 images, or not the same in both sets; test images that are the training images; features
            that are not finite.
    """
    start, device = time.monotonic(), torch.device(device)
    chosen = list(requested(protocols, settings or {}))
    check_seeds(seed, seeds)
    for p in chosen:
        if p.sees == "projector" and projector is None:
            raise UserError(
                f"The protocol '{p.name}' looks into the projector of a run: give its folder, without options for "
                "weights from elsewhere."
            )
        if p.in_color and len(mean) != 3:
            raise UserError(
                f"The protocol '{p.name}' changes colors, and images of {len(mean)} channels have none: leave it out."
            )
    encoders, notes = _contenders(encoder, features, seed, chosen, baselines)
    classes, test, others = checked(source, test, others, [p.name for p in chosen])
    chosen += [Shifted(other) for other in others]
    runs = [(name, p) for name in encoders for p in chosen if _suits(p, name)]

    images = len(source) + (len(test) if test is not None else 0)
    repeats = {p: seeds if p.seeded else 1 for p in chosen}
    rows, tests = (len(source), len(test)) if test is not None else (len(source) * 4 // 5, len(source) // 5)
    dims = {name: _dims(module, features, test_size, len(mean)) for name, module in encoders.items()}
    parts = [
        Part(p.name, p.forwards(rows), p.products(rows, tests, dims[name], len(classes)))
        for name, p in runs
        for _ in range(repeats[p])
    ]
    remaining = Remaining(progress, images, parts, device)

    if any(not isinstance(p, FeatureProtocol) for p in chosen):
        room = machine.free_memory() // 4
        source = replace(source, keep=Kept(room * len(source) // images))
        test = None if test is None else replace(test, keep=Kept(room * len(test) // images))
    tell: Callable[[Report | None], Report | None] = distributed.later()

    def read(images: Source) -> dict[str, Features]:
        before = 0

        def step(done: int, of: int) -> None:
            nonlocal before
            remaining.read(done - before)
            before = done

        return extract_all(
            encoders,
            images,
            test_size=test_size,
            mean=mean,
            std=std,
            device=device,
            cache=cache,
            progress=step,
            shared=True,
        )

    seen = read(source)
    held = seen if test is None else read(test)
    if distributed.rank():
        return cast(Report, tell(None))
    check_finite(seen["trained"].x)
    sets = Sets.of(source, test, seen, held, classes, device, multilabel=any(p.name == "multilabel" for p in chosen))
    notes += sets.leaks()
    test_y = sets.test_y

    found = {}
    right: dict[str, dict[str, Tensor]] = {}
    for name in encoders:
        raw = sets.task(name)
        task = standardized(raw) if name == "pixels" else raw
        again = ImageTask(
            encoders[name].to(device),
            raw,
            sets.trainval_images(name),
            sets.test_images(name),
            test_size,
            tuple(mean),
            tuple(std),
            device,
            projector=projector if name == "trained" else None,
        )
        scored: dict[str, Score] = {}
        measured: dict[str, Metric] = {}
        right[name] = {}
        for protocol in (p for n, p in runs if n == name):
            note, results = f"{protocol.name}: {name}", []
            for s in range(seed, seed + repeats[protocol]):
                expected = remaining.begin(note)
                if expected > _LONG and s == seed and progress is not None:
                    say(f"{protocol.title} of {NAMES[name]} takes about {duration(expected)} on this machine.")
                images_again = replace(again, progress=None if progress is None else _titled(remaining, note))
                once = protocol
                if isinstance(protocol, Shifted):  # doubts concern the images: once is enough
                    once = replace(protocol, doubt=name == "trained" and s == seed)
                results.append(_run(once, task, images_again, test_y.to(device), s))
                remaining.end()
            predictions = [result for result in results if isinstance(result, Prediction)]
            if predictions:
                scored[protocol.name] = scores.score(predictions, test_y, len(classes), seed)
                right[name][protocol.name] = scores.right(predictions, test_y)
                if name == "trained":
                    notes += [f"{protocol.title}: {note}" for note in predictions[0].notes]
            else:
                measured[protocol.name] = scores.mean([result for result in results if isinstance(result, Metric)])
        found[name] = scores.represent(task, scored, measured)
        if name == "trained":
            nearest = scores.nearest(task, sets)
        del raw, task, again  # features of another contender are as large
    remaining.finish()

    gains = {
        baseline: {p: scores.gain(right["trained"][p], theirs, seed) for p, theirs in right[baseline].items()}
        for baseline in encoders
        if baseline != "trained"
    }
    notes += [note for metric in found["trained"].measures.values() for note in metric.notes]
    report = Report(
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
        notes=tuple(dict.fromkeys(notes)),
    )
    tell(report)
    return report


def _run(protocol: Protocol, task: Task, images: ImageTask, test_y: Tensor, seed: int) -> Prediction | Metric:
    """Run a protocol on what it may see: only one that measures gets labels of test images."""
    if isinstance(protocol, FeatureProtocol):
        return protocol.run(task, seed)
    if isinstance(protocol, ImageProtocol):
        return protocol.run(images, seed)
    assert isinstance(protocol, MetricProtocol)
    return protocol.run(LabeledTask(**vars(images), test_y=test_y), seed)


def _suits(protocol: Protocol, contender: str) -> bool:
    """Whether a contender has what the protocol looks at."""
    if protocol.sees == "projector":
        return contender == "trained"
    return protocol.sees != "network" or contender != "pixels"


def _contenders(
    encoder: Encoder | ExternalEncoder, features: Kind, seed: int, protocols: Sequence[Protocol], baselines: bool
) -> tuple[dict[str, nn.Module], list[str]]:
    """The encoder and its baselines, by name, and a sentence about a baseline that cannot be had."""
    contenders: dict[str, nn.Module] = {"trained": _of_kind(encoder, features)}
    notes = []
    if baselines:
        try:
            contenders["untrained"] = _of_kind(untrained(encoder, seed), features)
        except UserError as e:
            notes.append(str(e))
        if any(_suits(p, "pixels") for p in protocols):
            contenders["pixels"] = Pixels()
    return contenders, notes


def _of_kind(encoder: Encoder | ExternalEncoder, features: Kind) -> nn.Module:
    if features == "pooled":
        return encoder
    width(encoder, features)  # refused by modules from outside
    assert isinstance(encoder, Encoder)
    return Chosen(encoder, features)


def _dims(module: nn.Module, kind: Kind, test_size: int, channels: int) -> int:
    """Dimensions of a contender's features."""
    if isinstance(module, Pixels):
        return channels * min(test_size, Pixels.side) ** 2
    inner = module.encoder if isinstance(module, Chosen) else module
    assert isinstance(inner, (Encoder, ExternalEncoder))
    return inner.embed_dim if kind == "pooled" else width(inner, kind)


def _titled(remaining: Remaining, title: str) -> Update:
    """The progress of one run of a protocol."""

    def step(done: float, total: float, note: Note = "") -> None:
        remaining.within(done, total, f"{title}, {note}" if note else title)

    return step
