"""Further columns of a batch, next to its canvases: labels and captions as tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from manyviews.data.order import hashes
from manyviews.data.source import NAME_CAPTIONS, NAME_LABELS, Source
from manyviews.errors import UserError, unknown

Column = Callable[[np.ndarray, int], Tensor]
"""The rows of some items of a source, int64, in an epoch."""

NAMES = ("label", "text")
LONGEST = 512
"""Longest caption in a batch, bytes; the rest is cut."""

_SALT = 0x74657874  # makes the choice of captions independent of the order of images


def complete(source: Source, columns: Iterable[str]) -> tuple[Source, list[str]]:
    """The images that have all of these columns, and sentences about those left out.

    Raises:
        UserError: a column is unknown, or no image has it.
    """
    notes = []
    for name in columns:
        if name not in NAMES:
            raise unknown("column", name, NAMES)
        if name == "label" and source.labels is None:
            several = "several labels for an image" if source.several else "no labels"
            raise UserError(f"{source.name} has {several}, and every image needs one: {NAME_LABELS}.")
        if name == "text":
            if source.captions is None:
                raise UserError(f"{source.name} has no captions: {NAME_CAPTIONS}.")
            there = np.flatnonzero([len(item) > 0 for item in source.captions])
            if len(there) < len(source):
                left_out = len(source) - len(there)
                notes.append(f"{left_out} of the {len(source)} images of {source.name} have no caption: left out.")
                source = source.subset(there)
    return source, notes


def column(name: str, source: Source, seed: int) -> tuple[Column, list[str]]:
    """A column of a source that `complete` returned, and sentences about its cut values."""
    return _labels(source) if name == "label" else _texts(source, seed)


def _labels(source: Source) -> tuple[Column, list[str]]:
    """int64, `b`, in [0, number of classes)."""
    assert source.labels is not None
    labels = torch.from_numpy(source.labels)
    return lambda items, epoch: labels[torch.from_numpy(items)], []


def _texts(source: Source, seed: int) -> tuple[Column, list[str]]:
    """uint8, `b n`: a caption in UTF-8, then zeros. `n` is the length of the longest, at most `LONGEST`.

    A hash of seed, epoch and the image's number chooses among several captions of an image.
    """
    assert source.captions is not None
    encoded = [text.encode("utf-8", "replace") for item in source.captions for text in item]
    # A character is whole or not there.
    kept = [text if len(text) <= LONGEST else text[:LONGEST].decode("utf-8", "ignore").encode() for text in encoded]
    cut = sum(len(text) > LONGEST for text in encoded)
    counts = np.array([len(item) for item in source.captions])
    first = np.cumsum(counts) - counts
    lengths = np.array([len(text) for text in kept])
    starts = np.cumsum(lengths) - lengths
    content = np.frombuffer(b"".join(kept), np.uint8)
    places = np.arange(lengths.max())

    def rows(items: np.ndarray, epoch: int) -> Tensor:
        chosen = first[items] + (hashes(seed ^ _SALT, epoch, items) % counts[items].astype(np.uint64)).astype(np.int64)
        there = places < lengths[chosen, None]
        text = np.zeros(there.shape, np.uint8)
        text[there] = content[(starts[chosen, None] + places)[there]]
        return torch.from_numpy(text)

    return rows, [f"{cut} of the {len(kept)} captions of {source.name} are cut to {LONGEST} bytes."] if cut else []
