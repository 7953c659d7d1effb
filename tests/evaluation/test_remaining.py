"""The time that an evaluation takes yet, on a clock of its own."""

from __future__ import annotations

import pytest
import torch

from manyviews.evaluation import remaining
from manyviews.evaluation.protocols import known


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(remaining.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(remaining, "_products_per_second", lambda device: 100.0)
    return now


def test_the_time_left_counts_images_and_probes_and_learns_from_them(clock):
    calls: list[tuple] = []
    parts = [remaining.Part("linear", 0, 3000), remaining.Part("finetune", 600, 0), remaining.Part("linear", 0, 6000)]
    left = remaining.Remaining(lambda *call: calls.append(call), 100, parts, torch.device("cpu"))

    def seconds() -> float:
        done, total, _ = calls[-1]
        assert done == clock[0]
        return total - done

    clock[0] += 10
    left.read(50)  # 5 a second
    assert seconds() == pytest.approx(10 + 30 + 120 + 60)
    clock[0] += 10
    left.read(50)
    left.begin("linear: trained")
    assert seconds() == pytest.approx(30 + 120 + 60)
    clock[0] += 60  # twice as long as expected, and so will be the next
    left.end()
    left.begin("finetune: trained")
    assert seconds() == pytest.approx(120 + 120)
    clock[0] += 20
    left.within(1, 10, "epoch 1")  # a tenth in 20 seconds
    assert seconds() == pytest.approx(180 + 120)
    left.end()
    left.begin("linear: pixels")
    left.end()
    left.finish()
    assert seconds() == 0


def test_probes_cost_more_with_more_of_everything():
    few = {"rows": 1000, "tests": 200, "dims": 64, "classes": 5}
    for name in ("knn", "knn_majority", "linear", "logistic", "mlp"):
        protocol = known()[name]()
        base = protocol.products(**few)
        assert base > 0 and protocol.products(**few | {"dims": 640}) > 5 * base
        assert protocol.products(**few | {"rows": 100_000, "tests": 20_000}) > 3 * base
