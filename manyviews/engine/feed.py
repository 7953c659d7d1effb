"""Batches on their way to the device, and the time that the step waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache

import torch

from manyviews.types import Batch


def feed(batches: Iterator[Batch], device: torch.device) -> Iterator[tuple[Batch, float]]:
    """Each batch on the device, and the seconds that the host waited for it.

    A batch travels to a GPU on a stream of its own, while the previous one is in use.
    """
    waited, batch = _next(batches)
    if device.type != "cuda":
        while batch is not None:
            yield batch.to(device), waited
            waited, batch = _next(batches)
        return
    stream = _transfer_stream(device)
    while batch is not None:
        with torch.cuda.stream(stream):
            there = batch.to(device)
        # Later work on the current stream may use the batch, and its memory is not reused before that work is done.
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in there.tensors():
            tensor.record_stream(current)
        yield there, waited
        waited, batch = _next(batches)


@cache
def _transfer_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all epochs: memory that one stream has freed is not reused by another."""
    return torch.cuda.Stream(device)


def _next(batches: Iterator[Batch]) -> tuple[float, Batch | None]:
    start = time.monotonic()
    batch = next(batches, None)
    return time.monotonic() - start, batch
