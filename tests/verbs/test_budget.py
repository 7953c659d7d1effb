"""Recipes that are chosen, runs that end in time, and runs that end early."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import manyviews as mv
from manyviews import checkpoint, methods, recipes
from manyviews.data import open_source
from manyviews.engine import Stopped, build, loop, pace, training
from manyviews.engine.folder import CHECKPOINT
from manyviews.progress import seconds
from manyviews.verbs import auto

CPU = torch.device("cpu")


def noise(n: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("text", "expected"), [("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("90 s", 90), ("1.5h", 5400), (45, 45)]
)
def test_lengths_of_time(text: str | float, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "30", "m30", "0m", "-5m", float("nan")])
def test_other_lengths_of_time_are_refused(text: str | float) -> None:
    with pytest.raises(mv.UserError, match="length of time"):
        seconds(text)


@pytest.mark.parametrize("images", [1, 5, 20, 100, 700, 3000, 10**6])
def test_a_batch_suits_the_images(images: int) -> None:
    batch = auto.batch_size(images)
    assert batch <= images and batch <= 128 and batch & (batch - 1) == 0
    assert images < 16 or images // batch >= 2


def test_the_recipe_follows_size_and_device() -> None:
    gpu = torch.device("cuda")
    small, large = (auto.short_side(open_source(noise(4, side))) for side in (32, 200))
    assert (small, large) == (32, 200)
    assert auto.names(small, CPU) == ["photos_cpu_small"]
    assert auto.names(large, CPU)[-1] == "photos_cpu_small"
    assert auto.names(large, gpu)[-1] == "photos_gpu_small"
    assert set(auto.names(small, gpu) + auto.names(large, gpu)) < set(recipes.names())


def test_epochs_and_a_budget_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(mv.UserError, match="leave one of them out"):
        mv.pretrain(noise(60), "simclr_tiny", epochs=1, budget="1m", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", [n for n in recipes.names() if n.endswith("_tiny") and n.split("_tiny")[0] in methods.names()]
)
def test_every_method_is_measured_without_a_trace(name: str) -> None:
    """The steps that are measured change nothing that the run begins with."""
    recipe, source = recipes.get(name), open_source(noise(64))
    expected = build.build_method(recipe).state_dict()
    torch.manual_seed(7)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    found = pace.measure(recipe, source, CPU) if name != "clip_tiny" else None
    assert torch.equal(torch.rand(3), drawn)
    assert all(
        torch.equal(a, b)
        for a, b in zip(expected.values(), build.build_method(recipe).state_dict().values(), strict=True)
    )
    if name != "clip_tiny":
        assert found is not None and found.step > 0 and found.seconds(recipe) > 0
    else:
        assert pace.measure(recipe, source, CPU) is None  # captions are not there before the run


def test_an_early_end_runs_the_schedule_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = loop.backpropagate, []

    def interrupted(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **options)  # type: ignore[arg-type]

    folder = tmp_path / "run"
    settings = {"data.batch_size": 16, "data.holdout": 0, "monitor.steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "backpropagate", interrupted)
        with pytest.raises(Stopped):
            mv.pretrain(noise(64), "byol_tiny", epochs=30, settings=settings, out=folder)
    with pytest.raises(mv.UserError, match="1 step or more"):
        mv.finish(folder, steps=0, data=noise(64))
    run = mv.finish(folder, steps=5, data=noise(64))
    assert run.summary is not None and run.summary["steps"] == 11
    rates = [row["lr"] for row in run.log if "lr" in row]
    assert len(rates) == 11 and rates[-1] < 0.15 * max(rates)
    momentum = [row["momentum"] for row in run.log if "momentum" in row]
    assert momentum == sorted(momentum) and 1 - momentum[-1] < 0.15 * (1 - momentum[0])
    assert checkpoint.load_tensors(folder / CHECKPOINT)[1]["end"] == 11
    with pytest.raises(mv.UserError, match="finished already"):
        mv.finish(folder, data=noise(64))


def test_a_recipe_is_chosen_and_ends_in_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    settings = {"method.view.size": 16, "monitor.steps": 1}
    run = mv.pretrain(noise(60), budget=6, settings=settings, out=tmp_path / "run")
    spent = time.monotonic() - begun
    said = capfd.readouterr().err
    assert "Recipe photos_cpu_small, for 60 images of about 32 pixels" in said
    assert run.recipe.budget == 6 and run.recipe.data.batch_size == 8
    assert run.summary is not None and spent < 12  # what it takes to import and to plot is not known before


def test_the_schedule_of_a_run_with_a_budget_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take another time than was measured before, by the clock that the run hears."""
    real, clock = loop.backpropagate, SimpleNamespace(now=time.monotonic())

    def slow(*args: object, **options: object) -> object:
        clock.now += 0.4 if clock.now < half else 0.2
        return real(*args, **options)  # type: ignore[arg-type]

    half = clock.now + 6
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(loop, "backpropagate", slow)
    settings = {"data.batch_size": 16, "monitor.steps": 1, "monitor.epochs": 0}
    run = mv.pretrain(noise(64), "byol_tiny", budget=12, settings=settings, out=tmp_path / "run")
    assert clock.now < half + 6.5
    rates = [row["lr"] for row in run.log if "lr" in row]
    assert rates[-1] < 0.1 * max(rates)
