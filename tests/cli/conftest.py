"""The command line, called as a person would call it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from manyviews import cli


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def manyviews(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run `manyviews ARGS...` in the folder of the test; returns its exit code and its output."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        capfd.readouterr()
        try:
            cli.main([str(a) for a in args])
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(bool(e.code))
        printed = capfd.readouterr()
        return Result(code, printed.out, printed.err)

    return run


def picture(kind: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (24, 24, 3)) + np.array([[0, 0, 0], [130, 0, 0], [0, 130, 0]])[kind]
    return Image.fromarray(pixels.astype(np.uint8))


def pictures(folder: Path, count: int) -> Path:
    """A new folder of plain pictures."""
    folder.mkdir(parents=True)
    for i in range(count):
        picture(0, i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 pictures in three folders by kind. Do not change them."""
    folder = tmp_path_factory.mktemp("photos")
    for kind, name in enumerate(("plain", "red", "green")):
        (folder / name).mkdir()
        for i in range(30):
            picture(kind, 100 * kind + i).save(folder / name / f"{i}.png")
    return folder


TINY = ("--recipe", "simclr_tiny", "--epochs", "1", "--set", "data.batch_size=16", "--set", "monitor.epochs=0")


@pytest.fixture(scope="session")
def run_folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Do not change it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    cli.main(["pretrain", str(photos), *TINY, "--out", str(out)])
    return out
