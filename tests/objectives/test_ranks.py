"""Ranks with a part of a batch each give the values and gradients of one process with all of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from manyviews import distributed, objectives
from manyviews.objectives import contrastive
from manyviews.targets import Center, Queue
from tests.ranks import on_ranks

LOSSES = {
    "nt_xent": lambda a, b: objectives.nt_xent(a, b, 0.2),
    "cross_info_nce": lambda a, b: objectives.cross_info_nce(a, b, 0.2),
    "directed_info_nce": lambda a, b: objectives.directed_info_nce(a, b, 0.2),
    "clip": lambda a, b: objectives.clip(a, b, torch.tensor(1.5, dtype=torch.float64)),
    "variance": lambda a, b: objectives.variance(a) + objectives.variance(b),
    "covariance": lambda a, b: objectives.covariance(a) + objectives.covariance(b),
    "invariance": objectives.invariance,
    "cross_correlation": lambda a, b: objectives.cross_correlation(a, b).square().sum(),
    "prior_divergence": lambda a, b: objectives.prior_divergence((a / 0.3).softmax(1), 0.25),
    "swapped_prediction": lambda a, b: objectives.swapped_prediction(a, objectives.sinkhorn(b, 0.3, 3), 0.1),
}


def share(x: Tensor) -> Tensor:
    return x.chunk(distributed.world_size())[distributed.rank()]


def results() -> dict[str, Tensor]:
    """Everything that depends on other ranks' rows, from this rank's share of one fixed batch."""
    torch.manual_seed(0)
    xa, xb = (torch.randn(12, 5, dtype=torch.float64) for _ in range(2))
    found = {}
    for name, loss in LOSSES.items():
        weight = torch.linspace(-1, 1, 30, dtype=torch.float64).view(5, 6).sin().requires_grad_()
        value = loss(share(xa) @ weight, share(xb) @ weight)
        value.backward()
        distributed.mean_gradients([weight])
        found[f"{name}: value"], found[f"{name}: gradient"] = distributed.mean(value.detach()), weight.grad
    found["codes"] = distributed.gather(objectives.sinkhorn(share(xa), 0.05, 3))

    queue = Queue(16, 5)
    for x in (xa, xb, xa + xb):  # 45 keys, in places for 16
        queue.enqueue(share(x))
        queue.enqueue(share(x[:3]))
    found["queue: rows"], found["queue: seen"] = queue.rows, queue.seen
    center = Center(5, 0.9)
    for x in (xa, xb):
        center.update(share(x).mean(0))
    found["center"] = center.value
    return found


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def contrast() -> tuple[dict[str, Tensor], dict[str, int]]:
    """Value and both inputs' gradients of the losses whose keys go round, and the largest tensor that each made.

    In blocks of four rows and three keys, which divide no rank's share of the 24 rows.
    """
    contrastive._BLOCK, contrastive._KEYS = 12, 3
    torch.manual_seed(0)
    xa, xb = (torch.randn(24, 5, dtype=torch.float64) for _ in range(2))
    found, largest = {}, {}
    for name in ("nt_xent", "cross_info_nce"):
        a, b = share(xa).requires_grad_(), share(xb).requires_grad_()
        with Largest() as mode:
            value = LOSSES[name](a, b)
            value.backward()
        largest[name] = mode.elements
        found[f"{name}: value"] = distributed.mean(value.detach())
        for side, x in (("a", a), ("b", b)):
            if x.grad is not None:  # the gradient of the mean over ranks, whose rows lie with their owners
                found[f"{name}: gradient {side}"] = distributed.gather(x.grad) / distributed.world_size()
    return found, largest


def everything() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, int]]:
    return results(), *contrast()


def test_three_ranks_are_one(monkeypatch: pytest.MonkeyPatch):
    """With three ranks, sending to the next one differs from sending to the one before."""
    for name in ("_BLOCK", "_KEYS"):
        monkeypatch.setattr(contrastive, name, getattr(contrastive, name))  # to be set back
    one, around, _ = everything()
    assert min(found.abs().max() for name, found in one.items() if name.endswith("gradient")) > 1e-3
    assert sorted(around) == [
        "cross_info_nce: gradient a",
        "cross_info_nce: value",
        "nt_xent: gradient a",
        "nt_xent: gradient b",
        "nt_xent: value",
    ]
    for found, shared, largest in on_ranks(everything, world=3):
        assert found.keys() == one.keys()
        for name, expected in one.items():
            torch.testing.assert_close(found[name], expected, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(shared, around, rtol=1e-12, atol=1e-14)
        # None holds the keys of all.
        assert largest["nt_xent"] <= 2 * 24 // 3 * 5 and largest["cross_info_nce"] <= 24 // 3 * 5
