"""Schedules against the closed forms of the papers."""

import math

import pytest

from manyviews.schedules import Constant, Cosine, Linear, WarmupCosine, value
from manyviews.types import Progress


def at(step: int, steps: int = 100, per_epoch: int = 10) -> Progress:
    return Progress(step, steps, per_epoch)


def test_cosine_gives_byols_momentum():
    momentum = Cosine(0.996, 1.0)
    for k in range(0, 101, 7):
        assert momentum(at(k)) == pytest.approx(1 - 0.004 * (math.cos(math.pi * k / 100) + 1) / 2, abs=1e-12)
    assert momentum(at(0)) == 0.996
    assert momentum(at(50)) == pytest.approx(0.998)


def test_linear_reaches_its_end_after_its_epochs_and_stays():
    temperature = Linear(0.04, 0.07, epochs=3)
    assert temperature(at(0)) == pytest.approx(0.04)
    assert temperature(at(15)) == pytest.approx(0.055)
    assert temperature(at(30)) == temperature(at(99)) == pytest.approx(0.07)
    assert Linear(0.0, 1.0)(at(25)) == pytest.approx(0.25)  # over the whole run when no epochs are given


def test_linear_over_no_time_is_its_end():
    assert Linear(0.0, 1.0, epochs=0)(at(0)) == 1.0


def test_warmup_is_positive_from_the_first_step_and_meets_the_cosine_at_the_peak():
    lr = WarmupCosine(peak=2.0, warmup=2, end=0.5)
    assert lr(at(0)) == pytest.approx(2.0 / 20)
    assert lr(at(19)) == pytest.approx(2.0)
    assert lr(at(20)) == pytest.approx(2.0)
    assert lr(at(60)) == pytest.approx(1.25)  # half time of the cosine: the mean of peak and end
    assert lr(at(99)) == pytest.approx(0.5 + 1.5 * (1 + math.cos(math.pi * 79 / 80)) / 2)
    falling = [lr(at(k)) for k in range(20, 100)]
    assert falling == sorted(falling, reverse=True)


def test_a_run_shorter_than_its_warmup_still_reaches_the_peak():
    lr = WarmupCosine(warmup=10)
    values = [lr(Progress(k, 20, 10)) for k in range(20)]
    assert max(values) == pytest.approx(1.0)
    assert values[-1] < 0.1


def test_per_epoch_holds_the_rate_within_an_epoch():
    lr = WarmupCosine(warmup=0, per_epoch=True)
    assert len({lr(at(k)) for k in range(10, 20)}) == 1
    assert lr(at(20)) < lr(at(19))


def test_a_number_is_a_constant_schedule():
    assert value(0.3, at(5)) == value(Constant(0.3), at(5)) == 0.3
    assert value(Cosine(1.0, 0.0), at(50)) == pytest.approx(0.5)
