"""Threads against a simulated machine, whose steps slow down where threads wait for a core that another process has."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from manyviews.threads import Clocks, Threads


@dataclass
class Machine:
    """Cores that are shared fairly by threads that never sleep.

    Attributes:
        cores: number of cores.
        busy: threads of other processes, as a function of the time.
        penalty: how many times slower a step is when not every thread has a core.
        counts: whether somebody counts the idle cores.
    """

    cores: int
    busy: Callable[[float], int]
    penalty: float = 10.0
    counts: bool = True
    threads: int = 0
    wall: float = 0.0
    own: float = 0.0
    idle: float = 0.0
    log: list[tuple[float, int]] = field(default_factory=list)
    steps: int = 0

    def clocks(self) -> Clocks:
        return Clocks(self.wall, self.own, self.idle if self.counts else None)

    def chooser(self) -> Threads:
        return Threads(self.cores, self.clocks, self.use, lambda: self.wall)

    def use(self, threads: int) -> None:
        self.threads = threads

    def step(self) -> None:
        others, wanted = self.busy(self.wall), self.threads + self.busy(self.wall)
        mine = self.threads * min(1.0, self.cores / wanted)
        seconds = 0.2 / self.threads**0.8 * (self.penalty if wanted > self.cores and self.threads > 1 else 1)
        self.wall, self.own = self.wall + seconds, self.own + mine * seconds
        self.idle += max(0.0, self.cores - self.threads - others) * seconds
        self.steps += 1
        self.log.append((self.wall, self.threads))


def share(simulated: Machine, start: float, end: float, threads: int) -> float:
    """Share of the time from start to end in which steps had that many threads."""
    spans = [(min(b, end) - max(a, start), n) for (a, _), (b, n) in pairwise(simulated.log) if b > start and a < end]
    return sum(seconds for seconds, n in spans if n == threads) / sum(seconds for seconds, _ in spans)


def run(simulated: Machine, until: float) -> list[str]:
    simulated.threads = simulated.cores
    threads = simulated.chooser()
    said = []
    while simulated.wall < until:
        simulated.step()
        if (text := threads.step()) is not None:
            said.append(text)
    return said


def test_alone_nothing_is_tried() -> None:
    simulated = Machine(2, lambda t: 0)
    assert run(simulated, 60) == []
    assert {n for _, n in simulated.log} == {2}


@pytest.mark.parametrize("cores", [2, 16])
def test_a_busy_neighbor_is_noticed_within_seconds_and_so_is_its_end(cores: int) -> None:
    simulated = Machine(cores, lambda t: 1 if 20 < t < 60 else 0, penalty=20)
    said = run(simulated, 90)
    assert [text.partition(":")[0] for text in said] == ["Other processes are busy", "The machine is less busy"]
    assert share(simulated, 30, 60, cores - 1) > 0.8
    assert share(simulated, 75, 90, cores) == 1


def test_a_neighbor_that_costs_nothing_changes_nothing() -> None:
    """Its threads yield, so more threads stay faster; the trials get rare."""
    simulated = Machine(4, lambda t: 1, penalty=1.0)
    assert run(simulated, 600) == []
    assert 0.95 < share(simulated, 0, 600, 4) < 1


def test_it_begins_with_the_cores_that_are_idle() -> None:
    simulated = Machine(4, lambda t: 1, penalty=50.0, threads=4)
    threads = simulated.chooser()

    def sleep(seconds: float) -> None:
        simulated.wall, simulated.idle = simulated.wall + seconds, simulated.idle + 3 * seconds

    assert threads.begin(sleep) == "Other processes are busy: computing with 3 of 4 threads."
    while simulated.wall < 600:
        simulated.step()
        assert threads.step() is None
    assert 0 < share(simulated, 0, 600, 4) < 0.06  # tried rarely, for a step each


def test_a_neighbor_that_gives_way_is_found_out() -> None:
    """It has a lower priority: no core is idle, and yet more threads are faster."""
    simulated = Machine(2, lambda t: 0, threads=1)
    threads = Threads(2, lambda: simulated.clocks()._replace(idle=0.0), simulated.use, lambda: simulated.wall)
    threads.begin(lambda seconds: setattr(simulated, "wall", simulated.wall + seconds))
    assert simulated.threads == 1
    while simulated.wall < 90:
        simulated.step()
        threads.step()
    assert share(simulated, 60, 90, 2) == 1


@pytest.mark.parametrize("penalty", [3.0, 60.0])
def test_without_a_count_of_idle_cores_the_speed_decides(penalty: float) -> None:
    simulated = Machine(2, lambda t: 1 if 20 < t < 200 else 0, penalty=penalty, counts=False)
    run(simulated, 420)
    assert share(simulated, 60, 200, 1) > 0.8
    assert share(simulated, 400, 420, 2) == 1


def test_two_runs_side_by_side_settle_on_half_of_the_cores_each() -> None:
    """Each is the other's neighbor, and both decide at the same time."""
    a, b = Machine(2, lambda t: b.threads), Machine(2, lambda t: a.threads)
    a.threads = b.threads = 2
    choosers = [a.chooser(), b.chooser()]
    while a.wall < 120:
        one, chooser = (a, choosers[0]) if a.wall <= b.wall else (b, choosers[1])
        one.step()
        chooser.step()
    assert share(a, 20, 120, 1) > 0.9 and share(b, 20, 120, 1) > 0.9


def test_one_thread_is_left_alone() -> None:
    def never(threads: int) -> None:
        raise AssertionError

    threads = Threads(1, lambda: Clocks(0, 0, 0), never, lambda: 0.0)
    assert [threads.step() for _ in range(10)] == [None] * 10
    threads.stop()
