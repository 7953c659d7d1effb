"""Plans: a budget that is kept whatever the machine does, and an early end."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from manyviews.engine.plan import Early, Plan
from manyviews.schedules import WarmupCosine


def spend(plan: Plan, pace: Callable[[float], float], every: int = 0, pause: float = 0.0) -> tuple[float, list[float]]:
    """The time at which a run ends whose steps take `pace(time)` seconds, and the progress of its steps."""
    spent, step, seen = 0.0, 0, []
    while True:
        seen.append(plan.at(step).progress)
        seconds = pace(spent)
        spent, step = spent + seconds, step + 1
        plan.tick(step, spent, seconds, seconds)
        if step >= plan.last:
            return spent, seen
        if every and step % every == 0:
            spent += pause


@pytest.mark.parametrize(
    "pace",
    [
        lambda t: 0.1,
        lambda t: 1.5 if t < 3 else 0.1,  # the first steps compile
        lambda t: 0.1 if t < 200 else 0.2,  # another process comes
        lambda t: 0.2 if t < 500 else 0.1,  # and goes
        lambda t: 0.07 if int(t) % 2 else 0.13,
    ],
)
def test_a_budget_is_kept_and_its_schedule_runs_out(pace: Callable[[float], float]) -> None:
    plan = Plan(5500, 50, budget=600)
    plan.expect(250, 4.0)
    spent, progress = spend(plan, pace, every=250, pause=4.0)
    assert 0.95 * 593 < spent <= 597
    assert progress[0] == 0 and progress[-1] > 0.99
    assert max(b - a for a, b in pairwise(progress)) < 0.02
    assert min(b - a for a, b in pairwise(progress)) > -0.02
    rates = [WarmupCosine(warmup=2)(plan.at(step)) for step in range(0, plan.last, 50)]
    assert max(rates) > 0.99 and rates[-1] < 0.01


def test_a_plan_that_promised_far_too_much_still_ends_in_time() -> None:
    spent, progress = spend(Plan(100_000, 50, budget=60), lambda t: 0.5)
    assert 52 < spent <= 57.5
    assert progress[-1] > 0.95


def test_without_a_budget_there_are_as_many_steps_as_planned() -> None:
    plan = Plan(100, 10)
    assert not plan.timed and plan.last == 100
    assert [plan.at(i).step for i in range(100)] == list(range(100))


def test_an_early_end_runs_the_schedule_out() -> None:
    plan = Plan(1000, 10, early=Early(since=400, of=1000, over=60))
    assert plan.last == 460
    assert [plan.at(i).step for i in (0, 399, 400, 430, 459)] == [0, 399, 400, 700, 990]


def test_a_budget_that_went_on_resumes_where_it_was() -> None:
    plan = Plan(100, 10, budget=600)
    plan.resume(80, {"end": 200})
    assert plan.at(80).progress == pytest.approx(0.4)
    plan.resume(200, {"end": 200})
    assert plan.last == 200


def test_a_plan_that_resumes_knows_how_long_a_measurement_takes() -> None:
    plan = Plan(1000, 50, budget=300)
    plan.expect(100, 60.0)
    plan.tick(100, 70.0, 0.1, 10.0)
    resumed = Plan(1000, 50, budget=300)
    resumed.resume(100, plan.facts())
    resumed.expect(100, resumed.pause)
    assert resumed.pause == 60.0 and resumed.last == plan.last
