"""A sweep: every value with every seed, a baseline, a plot, and no run twice."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import manyviews as mv
from manyviews import cli
from manyviews.errors import UserError
from manyviews.regularizers import Rescue
from manyviews.views import Strong

FEW = {"data.batch_size": 16, "data.holdout": 0.3, "monitor.steps": 1000}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for label in ("dark", "light"):
        (folder / label).mkdir()
        for i in range(40):
            pixels = draw.integers(0, 128, (32, 32, 3)) + (128 if label == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{i}.png")
    return folder


def test_a_sweep_trains_every_value_once_and_continues(pictures: Path, tmp_path: Path, capsys):
    out = tmp_path / "s"
    sets = [x for k, v in {**FEW, "regularizers": "(Rescue(0.5),)"}.items() for x in ("--set", f"{k}={v}")]
    vary = ["--vary", "regularizers.rescue.scale=0.5", "--vary", "regularizers.rescue.k=none"]
    more = ["--baseline", "regularizers=()", "--seeds", "2"]

    def run(epochs: int = 1) -> dict:
        where = ["--out", str(out), "--json", str(tmp_path / "s.json"), "--epochs", str(epochs)]
        cli.main(["sweep", str(pictures), "--recipe", "simclr_tiny", *vary, *more, *sets, *where])
        return json.loads((tmp_path / "s.json").read_text())

    def refused(epochs: int = 1) -> str:
        with pytest.raises(SystemExit) as e:
            run(epochs)
        assert e.value.code == 2
        return capsys.readouterr().err

    found = run()
    printed, said = capsys.readouterr()
    assert re.search(r"^Sweep: 4 trainings: about [\dhmins ]+ on this machine\.$", said, re.MULTILINE), said
    for i in range(1, 5):  # each of them says what it is, and how long the rest takes
        assert re.search(rf"^Sweep {i} of 4: .*, seed [01]; about [\dhmins ]+ left of the sweep\.$", said, re.M), said
    assert "epochs take about" not in said  # which a run alone says
    assert "rescue.scale" in printed and "baseline" in printed and "sweep.png" in printed
    points, (baseline,) = found["points"], found["baselines"]
    assert [(p["setting"], p["value"]) for p in points] == [
        ("regularizers.rescue.scale", "0.5"),
        ("regularizers.rescue.k", "none"),
    ]
    assert found["metric"] == "knn" and all(len(p["scores"]) == 2 for p in [*points, baseline])
    # Both points are the same recipe, which is trained once for both.
    assert points[0]["runs"] == points[1]["runs"] and len(list(out.glob("*/summary.json"))) == 2 * 2
    first = mv.Run(out / points[0]["runs"][0])
    assert first.recipe.regularizers == (Rescue(0.5),) and first.recipe.seed == 0
    assert mv.Run(out / baseline["runs"][1]).recipe.regularizers == ()
    assert points[0]["scores"][0] == first.summary["last"]["monitor/knn"]
    assert (out / "sweep.png").stat().st_size > 1000

    stamps = {p: p.stat().st_mtime_ns for p in out.glob("*/summary.json")}
    assert run() == found and stamps == {p: p.stat().st_mtime_ns for p in stamps}
    assert "Sweep: 4 trainings, 4 of them finished before." in capsys.readouterr().err
    assert "holds another sweep" in refused(epochs=2)
    Image.new("RGB", (32, 32)).save(pictures / "dark" / "0.png")
    assert "holds another sweep" in refused()


def test_values_of_long_or_odd_names_have_runs_of_their_own_and_a_run_may_break_down(pictures: Path, tmp_path: Path):
    strong = (Strong(size=32, operations=1), Strong(size=32, operations=6))
    vary = {"regularizers.rescue.view": strong, "optimizer.lr": (1e38,)}
    how = {"seeds": 1, "epochs": 1, "settings": FEW | {"regularizers": (Rescue(0.5),)}}
    found = mv.sweep(pictures, "simclr_tiny", vary, tmp_path / "s", **how)
    views = [mv.Run(tmp_path / "s" / p.runs[0]).recipe.regularizers[0].view for p in found.points[:2]]
    assert tuple(views) == strong
    assert [len(p.scores) for p in found.points] == [1, 1, 0]
    assert [p.collapsed for p in found.points[1:]] == [0, 1]


def test_bad_sweeps_are_refused_before_anything_is_made(pictures: Path, tmp_path: Path, capsys):
    for changes, says in (
        ({"recipe": "auto"}, "name it"),
        ({"vary": {}}, "nothing to vary"),
        ({"seeds": 0}, "1 seed"),
        ({"metric": "loss"}, "metric of a sweep"),
        ({"vary": {"method.temprature": (1,)}}, "temperature"),
        ({"settings": {"data.holdout": 0.0}}, "holdout"),
        ({"settings": {"data.holdout": 0.1}}, "16 held-out images or more"),
        ({"vary": {"seed": (1, 2)}}, "set no seed"),
        ({"settings": {"seed": 7}}, "set no seed"),
        ({"data": np.zeros((80, 32, 32, 3), np.uint8), "metric": "knn", "settings": FEW}, "which the metric knn needs"),
    ):
        how = {"data": pictures, "recipe": "simclr_tiny", "vary": {"method.temperature": (0.1,)}} | changes
        with pytest.raises(UserError, match=says):
            mv.sweep(out=tmp_path / "s", **how)
    for vary, says in (
        (["--vary", "method.temperature=0.1", "--vary", "method.temperature=0.2"], "several times"),
        (["--vary", "method.temperature=0.1,0.2,"], "path=value,value"),
    ):
        with pytest.raises(SystemExit) as e:
            cli.main(["sweep", str(pictures), "--recipe", "simclr_tiny", *vary, "--out", str(tmp_path / "s")])
        assert e.value.code == 2 and says in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_sweep_of_gray_images_continues(pictures: Path, tmp_path: Path):
    """Their mean and deviation are measured and written into each run's recipe, which the sweep does not know."""
    how = {"seeds": 1, "epochs": 1, "settings": {**FEW, "data.channels": 1}}
    first = mv.sweep(pictures, "simclr_tiny", {"method.temperature": (0.1,)}, tmp_path / "s", **how)
    again = mv.sweep(pictures, "simclr_tiny", {"method.temperature": (0.1,)}, tmp_path / "s", **how)
    assert again.points == first.points
