"""The cost model against everything that was measured, and against closed forms."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import timm
import torch

from manyviews.engine.cost import Link, Transformer, fit, state, step, work

TABLES = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "scale_tables.py"))


def test_it_predicts_what_was_measured_within_a_tenth() -> None:
    points = [point for point in TABLES["points"]() if not point.known]
    assert len(points) > 12
    wrong = {f"{p.group}, {p.what}": f"{p.error:+.1%}" for p in points if abs(p.error) > 0.1}
    assert not wrong


def test_parameters_are_timms() -> None:
    with torch.device("meta"):
        net = timm.create_model("vit_small_patch16_224", num_classes=0)
    assert TABLES["VITS"]["ViT-S/16"].parameters == pytest.approx(sum(p.numel() for p in net.parameters()), rel=0.01)


def test_work_is_that_of_the_products() -> None:
    """One block, one patch and no prefix: qkv, scores, values, projection and MLP, each by hand."""
    d, p = 8, 4
    vit = Transformer(d, 1, patch=p, prefix=0)
    by_hand = 2 * (d * 3 * d + d + d + d * d + 2 * d * 4 * d) + 2 * 3 * p * p * d
    assert vit.forward(p) == by_hand
    assert work(vit.forward, [p, p], [p]) == 7 * by_hand


def test_a_ring_sends_nothing_alone_and_at_most_everything_twice() -> None:
    link = Link(latency=0.0, bandwidth=100.0)
    assert link.average(1000, 1) == 0
    assert link.average(1000, 2) == 10
    assert link.average(1000, 10**6) == pytest.approx(20, rel=1e-5)
    assert link.gather(1000, 3) == 20


def test_what_is_hidden_behind_the_backward_pass_costs_nothing() -> None:
    assert step(2, 3.0, 1.0) == 6
    assert step(2, 3.0, 1.0, traffic=5) == 11
    assert step(2, 3.0, 1.0, traffic=5, hidden=1.0) == pytest.approx(7)
    assert state(100, 4, sharded=True, averaged=False) == 400


def test_a_line_is_found_and_never_starts_below_zero() -> None:
    assert fit([1, 2, 4], [5, 7, 11]) == pytest.approx((3, 2))
    assert fit([1, 2], [1, 3])[0] == 0
