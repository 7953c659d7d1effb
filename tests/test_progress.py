import pytest

from manyviews import progress


def test_the_time_left_is_at_the_rate_of_the_part_that_runs(monkeypatch, capsys):
    """Of training steps and of test images, say, of which one takes far less."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress._lines("detect") as update:
        for step in range(1, 11):
            clock[0] += 20
            update(step, 10, "epoch 1 of 1")
        for image in range(1, 61):
            clock[0] += 1
            update(image, 60, "test images")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "detect: 2 of 10, 2 min 40 s left, epoch 1 of 1"
    first = next(line for line in lines if "test images" in line)
    assert first == "detect: 10 of 60, 50 s left, test images"


@pytest.mark.parametrize(("seconds", "words"), [(8, "8 s"), (200, "3 min 20 s"), (1500, "25 min"), (7500, "2 h 5 min")])
def test_durations_are_words(seconds, words):
    assert progress.duration(seconds) == words
