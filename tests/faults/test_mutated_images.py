"""Broken pictures of every format among good ones: no crash, no hang, bounded memory, each counted with its reason."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults import mutations

ROOT = Path(__file__).resolve().parents[2]


def check(found: dict[str, Any], number: int) -> None:
    assert sum(given for given, _ in found["ways"].values()) == number
    assert not found["changed"], "good pictures whose pixels are others than those of the file alone"
    assert not found["lost"], "pictures that are neither used nor counted with a reason"
    assert found["good"] >= number // 20
    for way in ("cut short", "nothing", "random bytes"):  # hardly any of these can be a picture
        given, refused = found["ways"][way]
        assert refused >= 0.9 * given
    assert found["ways"]["another ending"][1] <= 0.1 * found["ways"]["another ending"][0]  # six bands are no color
    assert found["slowest"] < 60
    assert found["memory"] < mutations.MEMORY  # half of which are claimed at the most


def test_three_hundred_broken_pictures(tmp_path):
    check(mutations.read(297, 0, tmp_path / "photos"), 297)


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(5))
def test_thousands_of_broken_pictures_in_a_process_of_their_own(seed, tmp_path):
    command = [sys.executable, "-m", "tests.faults.mutations", "2000", str(seed + 1), str(tmp_path / "photos")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]  # negative after a crash
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))
    check(found, 2000)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "megabytes"),
    [("bits.png", 300), ("color.png", 850), ("deep.png", 1600), ("palette.gif", 300), ("color.tif", 850)],
)
def test_small_files_of_huge_pictures_take_little_more_than_their_pixels(name, megabytes, tmp_path):
    """169 million pixels: 1 byte each in a palette, 4 in color, 8 in sixteen bits with opacity."""
    program = """
import resource, sys
from pathlib import Path
from tests.faults import bombs
from manyviews.data.canvas import decoded
from manyviews.data.reading import RGB
raw = bombs.make(sys.argv[1], Path(sys.argv[2]))
decoded(bombs.make("small.png", Path(sys.argv[2])), 64, RGB)
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = most()
assert decoded(raw, 64, RGB).shape == (64, 64, 3)
print(round(most() - before), len(raw))
"""
    bombs = [sys.executable, "-c", "import sys; from pathlib import Path; from tests.faults import bombs; "
             "bombs.make(sys.argv[1], Path(sys.argv[2]))", name, str(tmp_path)]  # fmt: skip
    subprocess.run(bombs, cwd=ROOT, check=True, timeout=300)
    done = subprocess.run(
        [sys.executable, "-c", program, name, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    took, size = map(int, done.stdout.split())
    print(name, size, "bytes,", took, "MB")
    assert took < megabytes
