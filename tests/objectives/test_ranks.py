"""Two ranks with half a batch each give the values and gradients of one process with all of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from manyviews import distributed, objectives
from manyviews.targets import Center, Queue
from tests.ranks import on_ranks

LOSSES = {
    "nt_xent": lambda a, b: objectives.nt_xent(a, b, 0.2),
    "cross_info_nce": lambda a, b: objectives.cross_info_nce(a, b, 0.2),
    "variance": lambda a, b: objectives.variance(a) + objectives.variance(b),
    "covariance": lambda a, b: objectives.covariance(a) + objectives.covariance(b),
    "invariance": objectives.invariance,
    "swapped_prediction": lambda a, b: objectives.swapped_prediction(a, objectives.sinkhorn(b, 0.3, 3), 0.1),
}


def share(x: Tensor) -> Tensor:
    return x.chunk(distributed.world_size())[distributed.rank()]


def results() -> dict[str, Tensor]:
    """Everything that depends on other ranks' rows, from this rank's share of one fixed batch."""
    torch.manual_seed(0)
    xa, xb = (torch.randn(8, 5, dtype=torch.float64) for _ in range(2))
    found = {}
    for name, loss in LOSSES.items():
        weight = torch.linspace(-1, 1, 30, dtype=torch.float64).view(5, 6).sin().requires_grad_()
        value = loss(share(xa) @ weight, share(xb) @ weight)
        value.backward()
        distributed.mean_gradients([weight])
        found[f"{name}: value"], found[f"{name}: gradient"] = distributed.mean(value.detach()), weight.grad
    found["codes"] = distributed.gather(objectives.sinkhorn(share(xa), 0.05, 3))

    queue = Queue(10, 5)
    for x in (xa, xb, xa + xb):  # 24 keys, in places for 10
        queue.enqueue(share(x))
        queue.enqueue(share(x[:2]))
    found["queue: rows"], found["queue: seen"] = queue.rows, queue.seen
    center = Center(5, 0.9)
    for x in (xa, xb):
        center.update(share(x).mean(0))
    found["center"] = center.value
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Tensor]]:
    return on_ranks(results)


def test_two_ranks_are_one(ranks: list[dict[str, Tensor]]):
    one = results()
    for rank in ranks:
        assert rank.keys() == one.keys()
        for name, expected in one.items():
            torch.testing.assert_close(rank[name], expected, msg=lambda m, name=name: f"{name}: {m}")


def test_the_gradients_compared_are_not_zero(ranks: list[dict[str, Tensor]]):
    for name, found in ranks[0].items():
        if name.endswith("gradient"):
            assert found.abs().max() > 1e-3, name
