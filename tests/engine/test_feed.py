"""Batches on their way to the device."""

import time

import torch

from manyviews.engine.feed import feed
from manyviews.types import Batch


def batches(n: int, seconds: float = 0.0):
    for k in range(n):
        time.sleep(seconds)
        yield Batch.of(torch.full((2, 3, 4, 4), k, dtype=torch.uint8), index=torch.arange(2) + k)


def test_every_batch_arrives_once_and_in_order():
    found = [int(canvases.pixels[0, 0, 0, 0]) for canvases, _ in feed(batches(5), torch.device("cpu"))]
    assert found == list(range(5))
    assert list(feed(batches(0), torch.device("cpu"))) == []


def test_what_is_waited_for_is_the_data_and_not_the_step():
    waits = []
    for _, waited in feed(batches(3, 0.05), torch.device("cpu")):
        waits.append(waited)
        time.sleep(0.3)
    assert 0.1 < sum(waits) < 0.6
