"""The images of an evaluation: checked, split into parts, and with the features that every contender gives them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from manyviews.data.left import listed
from manyviews.data.source import Source, no_labels, unlabeled
from manyviews.data.split import split
from manyviews.errors import UserError
from manyviews.evaluation.contract import Task
from manyviews.evaluation.features import Features, fingerprint
from manyviews.evaluation.unlabeled.duplicates import across

FEWEST = 10
"""Images that a class must have."""

_NAMED = 20  # classes in a message


@dataclass(frozen=True)
class Sets:
    """The images of an evaluation, and the features that every contender gives them.

    Attributes:
        source: images to learn from.
        tested: images with the test images; `source` itself if they were split off from it.
        seen: features of `source`, by contender.
        held: features of `tested`, by contender.
        parts: rows by part: "train" and "validation" of `seen`, "test" of `held`.
        classes: names of the classes.
        device: device of the tasks' tensors.
    """

    source: Source
    tested: Source
    seen: dict[str, Features]
    held: dict[str, Features]
    parts: dict[str, Tensor]
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
        multilabel: bool,
    ) -> Sets:
        """Split the images; `multilabel` gives every image all its labels, even if it has one."""
        if multilabel:
            seen = {name: _multilabel(f, source) for name, f in seen.items()}
            held = seen if test is None else {name: _multilabel(f, test) for name, f in held.items()}
        parts = _parts(source, test, seen["trained"], held["trained"])
        return cls(source, source if test is None else test, seen, held, parts, classes, device)

    @property
    def trainval(self) -> Tensor:
        """Rows of `seen`: training images, then validation images."""
        return torch.cat([self.parts["train"], self.parts["validation"]])

    @property
    def test_y(self) -> Tensor:
        """Labels of the test images, on the CPU."""
        return _labels(self.held["trained"])[self.parts["test"]]

    def trainval_images(self, name: str) -> Source:
        """Training images, then validation images, that a contender saw, without labels."""
        return _images(self.source, self.seen[name], self.trainval)

    def test_images(self, name: str) -> Source:
        """Test images that a contender saw, without labels."""
        return _images(self.tested, self.held[name], self.parts["test"])

    def task(self, name: str) -> Task:
        """The problem with a contender's features, on `device`."""
        x, labels, test_x = self.seen[name].x, _labels(self.seen[name]), self.held[name].x[self.parts["test"]]
        (train_x, train_y), (val_x, val_y) = (
            (x[self.parts[k]].to(self.device), labels[self.parts[k]].to(self.device)) for k in ("train", "validation")
        )
        classes = tuple(self.classes)
        return Task(train_x, train_y, val_x, val_y, test_x.to(self.device), len(classes), classes)

    def leaks(self) -> list[str]:
        """A sentence if test images are training images too."""
        seen, held = self.seen["trained"], self.held["trained"]
        twice = across(self.source, self.tested, seen.rows(self.trainval), held.rows(self.parts["test"]))
        leaked = {j for _, j in twice}
        if not leaked:
            return []
        return [
            f"{len(leaked)} of {len(self.test_y)} test images are also training images (the first: "
            f"{self.tested.where(min(leaked))}): the numbers are too high."
        ]


def checked(
    source: Source, test: Source | None, others: Sequence[Source], protocols: Sequence[str]
) -> tuple[list[str], Source | None, list[Source]]:
    """The classes, and the test images and further sets with labels numbered like the source's.

    Raises:
        UserError: labels are missing or differ between the sets, a class is too small, or sets are the same.
    """
    multilabel = "multilabel" in protocols
    if multilabel and len(protocols) > 1:
        raise UserError(
            "The protocol 'multilabel' is for images with several labels, and the other protocols are not: ask for it "
            "alone."
        )
    classes = check_targets(source) if multilabel else check_labels(source, fewest=FEWEST)
    if test is not None:
        test = test.with_classes(classes)
        (check_targets if multilabel else check_labels)(test)
        if fingerprint(source) == fingerprint(test):
            raise UserError(f"The test images are the images of {source.name} themselves: give others, or none.")
    if multilabel and others:
        raise UserError("Images of other sets are judged by one label each, and 'multilabel' is for several.")
    others = [other.with_classes(classes) for other in others]
    evaluated = [fingerprint(s) for s in (source, test) if s is not None]
    for i, other in enumerate(others):
        check_labels(other)
        if other.name in (o.name for o in others[:i]):
            raise UserError(f"Two sets of other conditions are called {other.name}: rename the folder of one.")
        if fingerprint(other) in evaluated:
            raise UserError(f"The images of {other.name} are those that are evaluated: give others with --shifted.")
    return classes, test, others


def check_labels(source: Source, fewest: int = 1, what: str = "an evaluation") -> list[str]:
    """The classes of a source.

    Args:
        source: images.
        fewest: images that a class must have.
        what: for what, for the message.

    Raises:
        UserError: it has no labels, all its images have the same, or a class has fewer than `fewest` images.
    """
    if source.several:
        raise refusal(source)
    labels, classes = source.labels, source.classes
    if labels is None or classes is None:
        raise UserError(no_labels(source))
    numbers, counts = np.unique(labels, return_counts=True)
    if len(numbers) < 2:
        raise UserError(
            f"All {len(labels)} images of {source.name} are of the class '{classes[numbers[0]]}': {what} needs at "
            "least two classes."
        )
    if counts.min() < fewest:
        rare = [(classes[k], count) for k, count in zip(numbers, counts, strict=True) if count < fewest]
        have, them = ("has", "it") if len(rare) == 1 else ("have", "them")
        raise UserError(
            f"{_classes(rare)} of {source.name} {have} fewer than {fewest} images, and {what} needs as many: "
            f"add some, or leave {them} out with --min-per-class {fewest}."
        )
    return classes


def frequent(sources: Sequence[Source], fewest: int | None, least: int = FEWEST) -> tuple[list[Source], str]:
    """Sources without the classes that have fewer images than that in the first, and a sentence about these classes.

    Args:
        sources: training images, and others of the same classes.
        fewest: images that a class must have; None to leave nothing out.
        least: smallest number that may be asked for.

    Raises:
        UserError: `fewest` is below `least`, or images have several labels.
    """
    if fewest is None:
        return list(sources), ""
    if fewest < least:
        raise UserError(f"--min-per-class must be {least} or more: so many images of a class are needed.")
    first = sources[0]
    if first.several:
        raise UserError("--min-per-class is for images with one label each.")
    if first.labels is None or first.classes is None:
        raise UserError(no_labels(first))
    counts = np.bincount(first.labels, minlength=len(first.classes))
    rare = [(name, count) for name, count in zip(first.classes, counts.tolist(), strict=True) if 0 < count < fewest]
    if not rare:
        return list(sources), ""
    names = {name for name, _ in rare}
    kept = [name for name, count in zip(first.classes, counts, strict=True) if count >= fewest]
    found = [_without(source, names) for source in sources]
    found[0] = found[0].with_classes(kept)
    lost = sum(map(len, sources)) - sum(map(len, found))
    return found, f"Left out {lost} images: {_classes(rare)} of {first.name} with fewer than {fewest} images."


def _without(source: Source, names: Collection[str]) -> Source:
    """The images of other classes than these."""
    labels, classes = source.labels, source.classes
    if labels is None or classes is None:
        return source
    gone = np.array([name in names for name in classes])
    return source.subset(np.flatnonzero(~gone[labels]))


def _classes(rare: Sequence[tuple[str, int]]) -> str:
    """Classes with their numbers of images, the smallest first: all of them up to a sensible number."""
    shown = listed((f"{name} ({count})" for name, count in sorted(rare, key=lambda item: (item[1], item[0]))), _NAMED)
    return f"1 class, {shown}," if len(rare) == 1 else f"{len(rare)} classes ({shown})"


def check_targets(source: Source) -> list[str]:
    """The classes of a source whose images may have several labels.

    Raises:
        UserError: it has no labels, or fewer than two classes.
    """
    targets, classes = source.targets, source.classes
    if targets is None or classes is None:
        raise UserError(no_labels(source))
    if (used := int(targets.any(0).sum())) < 2:
        raise UserError(f"The images of {source.name} are of {used} class: an evaluation needs at least two classes.")
    return classes


def refusal(source: Source) -> UserError:
    """The error for a protocol that needs one label per image and meets several."""
    targets = source.targets
    assert targets is not None and source.several
    count = targets.sum(1)
    first = int(np.argmax(count != 1))
    return UserError(
        f"Images of {source.name} have several labels or none, {source.where(first)} has {count[first]}: take the "
        "protocol 'multilabel', or give one label for each image."
    )


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


def _images(source: Source, features: Features, rows: Tensor) -> Source:
    """The images of these rows of features, without their labels."""
    return replace(source.subset(features.index[rows].numpy()), annotate=unlabeled)


def _multilabel(features: Features, source: Source) -> Features:
    """Features with all labels of each image in place of one."""
    assert source.targets is not None  # see `check_targets`
    return replace(features, labels=torch.from_numpy(source.targets[features.index.numpy()]))


def _labels(features: Features) -> Tensor:
    assert features.labels is not None  # see `check_labels`
    return features.labels
