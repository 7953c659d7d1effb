"""What is shown of long work: when, how fast, and how long it takes yet."""

import re
import time
from itertools import pairwise

import pytest

from manyviews import progress


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def shown(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_the_time_left_is_at_the_rate_of_the_part_that_runs(clock, capsys):
    """Of training steps and of test images, say, of which one takes far less."""
    with progress.progress("detect") as update:
        for step in range(1, 11):
            clock[0] += 20
            update(step, 10, "epoch 1 of 1")
        for image in range(1, 61):
            clock[0] += 1
            update(image, 60, "test images")
    lines = shown(capsys)
    assert lines[0] == "detect: 1 of 10, epoch 1 of 1"
    assert lines[1] == "detect: 2 of 10, 2 min 40 s left, epoch 1 of 1"
    first = next(line for line in lines if re.search(r"left, test images", line))
    done, left = re.fullmatch(r"detect: (\d+) of 60, (\d+) s left, test images", first).groups()
    assert int(done) + int(left) == 60


def test_the_time_left_is_at_the_rate_of_the_recent_past(clock, capsys):
    """Not of a first hour in which the machine was free."""
    with progress.progress("train") as update:
        for step in range(3600):
            clock[0] += 1
            update(step, 7200)
        for step in range(3600, 3700):
            clock[0] += 10
            update(step, 7200)
    assert re.match(r"train: 369\d of 7200, 9 h 4\d min left", shown(capsys)[-1])


def test_a_line_comes_at_the_start_and_every_half_minute(clock, capsys):
    with progress.progress("train") as update:
        seen = []
        for step in range(1, 301):
            clock[0] += 1
            update(step, 1000)
            seen += [step] * len(shown(capsys))
    assert seen[0] <= 2 and seen[1] <= 12
    assert max(b - a for a, b in pairwise(seen)) <= 30 and len(seen) < 15


def test_work_that_reports_nothing_is_shown_too(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PATIENCE", 0.1)
    with progress.progress("index"):
        time.sleep(1.5)
    assert shown(capsys) == ["index: started"]


def test_words_are_asked_for_only_when_they_are_shown(clock, capsys):
    """They may make the host wait for a GPU."""
    asked = []

    def words() -> str:
        asked.append(clock[0])
        return f"loss {len(asked)}"

    with progress.progress("train") as update:
        for step in range(1, 101):
            clock[0] += 0.2
            update(step, 1000, words)
    lines = shown(capsys)
    assert len(asked) == len(lines) == 2 and lines[1].endswith("loss 2")
    with progress.progress("train", quiet=True) as update:
        update(1, 2, words)
    assert len(asked) == 2
    state = progress._State("train")  # of a bar, which is always seen
    for step in range(1000):
        clock[0] += 0.1
        state.tell(step, 1000, words, shown=True)
    assert 100 / 3 - 3 < len(asked) - 2 < 100 / 3 + 2


def test_seconds_of_work_run_down_by_themselves(clock, capsys):
    with progress.progress("evaluate") as update:
        clock[0] += 10
        update(10.0, 40.0, "linear")
    assert shown(capsys) == ["evaluate: 25 %, 30 s left, linear"]
    state = progress._State("evaluate")
    state.tell(10.0, 40.0, "linear", shown=True)
    clock[0] += 12
    assert state.left == "18 s left"


def test_a_part_says_of_which_work_it_is_one(clock, capsys):
    with progress.within(progress.Outer("sweep 2 of 3", 600, "pretrain")), progress.progress("pretrain") as update:
        for step in range(1, 13):
            clock[0] += 1
            update(step, 100)
    assert shown(capsys)[-1] == "sweep 2 of 3: pretrain: 10 of 100, 1 min 30 s left, 12 min of all"


@pytest.mark.parametrize(("seconds", "words"), [(8, "8 s"), (200, "3 min 20 s"), (1500, "25 min"), (7500, "2 h 5 min")])
def test_durations_are_words(seconds, words):
    assert progress.duration(seconds) == words
