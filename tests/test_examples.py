"""The examples run, and what lives in a folder outside the package is trained, killed, resumed, judged and reported."""

import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manyviews import cli

EXAMPLES = Path(__file__).parents[1] / "examples"
RECIPE = '''
"""A recipe of an outside method with an outside view, in a third file."""

import dataclasses

from manyviews.settings import Component, Recipe
from manyviews.views import Global

from . import new_method, new_view


def blinds() -> Recipe:
    """The method of one file with the view of another: `manyviews pretrain demo --recipe house_blinds`."""
    view = new_view.Blinds(2, size=32, slats=3)
    small = new_method.small()
    return dataclasses.replace(small, method=Component("new_method", {"view": view, "dim": 16}))
'''


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of noise around two colors, one folder for each."""
    draw = np.random.default_rng(0)
    for i in range(128):
        folder = tmp_path / "photos" / ("warm", "cold")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.array(((190, 90, 60), (60, 110, 190))[i % 2]) + draw.normal(0, 40, (40, 40, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples and a recipe. One for all tests: a type is known once in a process."""
    folder = tmp_path_factory.mktemp("house")
    for name in ("new_method", "new_view", "new_protocol"):
        shutil.copy(EXAMPLES / f"{name}.py", folder)
    (folder / "house.py").write_text(RECIPE)
    return folder


@pytest.fixture
def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names the folder."""
    monkeypatch.setenv("MANYVIEWS_PATH", str(folder))


def test_the_loop_of_ones_own_trains(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "own_loop.py"))["main"](str(photos), epochs=1)
    assert "step 0: loss" in capsys.readouterr().out and (tmp_path / "encoder.pt").exists()


def test_what_lives_outside_is_trained_killed_resumed_judged_and_reported(
    house: None, folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    run = tmp_path / "run"
    settings = ("epochs=30", "monitor.epochs=0", "monitor.checkpoint_minutes=0", "data.holdout=0")
    command = ["pretrain", str(photos), "--recipe", "house_blinds", "--out", str(run)]
    command += [word for setting in settings for word in ("--set", setting)]
    process = subprocess.Popen([sys.executable, "-m", "manyviews", *command], stderr=subprocess.DEVNULL)
    while not (run / "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (run / "summary.json").exists()

    # Without the folder, which this process has not looked into yet.
    monkeypatch.delenv("MANYVIEWS_PATH")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["resume", str(run)])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "MANYVIEWS_PATH" in said and "Blinds" in said
    monkeypatch.setenv("MANYVIEWS_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit):
        cli.main(["resume", str(run)])
    assert "not a folder" in capsys.readouterr().err

    monkeypatch.setenv("MANYVIEWS_PATH", str(folder))
    judge = ["evaluate", str(run), "--data", str(photos)]
    for command in (
        ["resume", str(run)],
        [*judge, "--protocol", "nearest_mean", "--set", "nearest_mean.center=False"],
        ["report", str(run), "--out", str(tmp_path / "page"), "--images", "8"],
    ):
        cli.main(command)
    assert "nearest class mean" in capsys.readouterr().out
    assert (run / "plots" / "views.png").exists() and (tmp_path / "page" / "index.html").exists()


def test_the_example_method_keeps_the_contract(house: None):
    from manyviews.recipes import get
    from manyviews.testing import check_method

    check_method(get("new_method_small"))
