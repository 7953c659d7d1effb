"""Batches on their way to the device, and how long the step waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache

import torch

from manyviews.types import Batch


def feed(batches: Iterator[Batch], device: torch.device) -> Iterator[tuple[Batch, float]]:
    """Each batch on the device, and the seconds that the host waited for it.

    To a GPU a batch travels on a stream of its own while the one before it is in use.
    """
    waited, batch = _next(batches)
    if device.type != "cuda":
        while batch is not None:
            yield batch.to(device), waited
            waited, batch = _next(batches)
        return
    stream = _beside(device)
    while batch is not None:
        with torch.cuda.stream(stream):
            there = batch.to(device)
        # What is computed from here on may use it; the memory is not given away before that is done.
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in (there.index, *there.columns.values()):
            tensor.record_stream(current)
        yield there, waited
        waited, batch = _next(batches)


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs: memory is kept by stream, and what another one has left cannot be used."""
    return torch.cuda.Stream(device)


def _next(batches: Iterator[Batch]) -> tuple[float, Batch | None]:
    start = time.monotonic()
    batch = next(batches, None)
    return time.monotonic() - start, batch
