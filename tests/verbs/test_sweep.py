"""A sweep: every value with every seed, a baseline, a plot, and no run twice."""

from __future__ import annotations

import json
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
    def run(**changes):
        how = {
            "seeds": 2,
            "epochs": 1,
            "settings": FEW | {"regularizers": (Rescue(0.5),)},
            "baseline": {"regularizers": ()},
        }
        vary = {"regularizers.rescue.scale": (0.25, 0.5), "regularizers.rescue.k": (None,)}
        return mv.sweep(pictures, "simclr_tiny", vary, tmp_path / "s", **how | changes)

    found = run()
    assert [(p.setting, p.value) for p in found.points] == [
        ("regularizers.rescue.scale", "0.25"),
        ("regularizers.rescue.scale", "0.5"),
        ("regularizers.rescue.k", "None"),
    ]
    assert found.metric == "knn" and all(len(p.scores) == 2 for p in [*found.points, found.baseline])
    # scale=0.5 and k=None are the same recipe: trained once for both.
    assert found.points[1].runs == found.points[2].runs
    runs = sorted(p.name for p in (tmp_path / "s").iterdir() if p.is_dir())
    assert len(runs) == 2 * 3
    first = mv.Run(tmp_path / "s" / found.points[0].runs[0])
    assert first.recipe.regularizers == (Rescue(0.25),) and first.recipe.seed == 0
    assert mv.Run(tmp_path / "s" / found.baseline.runs[1]).recipe.regularizers == ()
    assert found.points[0].scores[0] == first.summary["last"]["monitor/knn"]
    assert (tmp_path / "s" / "sweep.png").stat().st_size > 1000

    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*/summary.json")}
    again = run()
    assert again == found and stamps == {p: p.stat().st_mtime_ns for p in stamps}
    for i in range(40):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(pictures / "dark" / f"{i}.png")
    with pytest.raises(UserError, match="holds another sweep"):
        run()
    with pytest.raises(UserError, match="holds another sweep"):
        run(epochs=2)

    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        cli.main(
            [
                "sweep",
                str(pictures),
                "--recipe",
                "simclr_tiny",
                "--vary",
                "regularizers.rescue.scale=0.25",
                "--out",
                "x",
            ]
        )
    assert e.value.code == 2 and "rescue" in capsys.readouterr().err


def test_values_of_long_or_odd_names_have_runs_of_their_own_and_a_run_may_break_down(pictures: Path, tmp_path: Path):
    strong = (Strong(size=32, operations=1), Strong(size=32, operations=6))
    how = {"seeds": 1, "epochs": 1, "settings": FEW | {"regularizers": (Rescue(0.5),)}}
    vary = {"regularizers.rescue.view": strong, "optimizer.lr": (1e-3, 1e38)}

    def run():
        return mv.sweep(pictures, "simclr_tiny", vary, tmp_path / "s", **how)

    found = run()
    views = [mv.Run(tmp_path / "s" / p.runs[0]).recipe.regularizers[0].view for p in found.points[:2]]
    assert tuple(views) == strong
    assert [len(p.scores) for p in found.points] == [1, 1, 1, 0]
    assert [p.collapsed for p in found.points[2:]] == [0, 1]
    assert run() == found


def test_the_verb_prints_a_table_and_writes_json(pictures: Path, tmp_path: Path, capsys):
    sets = [x for k, v in FEW.items() for x in ("--set", f"{k}={v}")]
    where = ["--out", str(tmp_path / "t"), "--json", str(tmp_path / "t.json")]
    short = ["--vary", "method.temperature=0.1,0.5", "--seeds", "1", "--epochs", "1"]
    cli.main(["sweep", str(pictures), "--recipe", "simclr_tiny", *short, *where, *sets])
    out = capsys.readouterr().out
    assert "method.temperature" in out and "0.5" in out and "sweep.png" in out
    assert json.loads((tmp_path / "t.json").read_text())["metric"] == "knn"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vary": {}}, "nothing to vary"),
        ({"seeds": 0}, "1 seed"),
        ({"metric": "loss"}, "judged by"),
        ({"vary": {"method.temprature": (1,)}}, "temperature"),
        ({"settings": {"data.holdout": 0.0}}, "holdout"),
        ({"settings": {"data.holdout": 0.1}}, "16 held-out images or more"),
        ({"vary": {"seed": (1, 2)}}, "set no seed"),
        ({"settings": {"seed": 7}}, "set no seed"),
    ],
)
def test_bad_sweeps_are_refused_before_anything_is_made(pictures: Path, tmp_path: Path, changes, says):
    how = {"vary": {"method.temperature": (0.1,)}, "out": tmp_path / "s"} | changes
    with pytest.raises(UserError, match=says):
        mv.sweep(pictures, "simclr_tiny", **how)
    assert not (tmp_path / "s").exists()


def test_a_metric_that_needs_labels_is_refused_without(tmp_path: Path):
    images = np.zeros((80, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match="no labels of two classes or more, which the metric knn needs"):
        mv.sweep(images, "simclr_tiny", {"optimizer.lr": (0.1,)}, tmp_path / "s", metric="knn", settings=FEW)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("vary", "says"),
    [
        (["--vary", "method.temperature=0.1", "--vary", "method.temperature=0.2"], "several times"),
        (["--vary", "method.temperature=0.1,0.2,"], "path=value,value"),
    ],
)
def test_values_that_would_be_lost_are_refused(pictures: Path, tmp_path: Path, capsys, vary, says):
    with pytest.raises(SystemExit) as e:
        cli.main(["sweep", str(pictures), "--recipe", "simclr_tiny", *vary, "--out", str(tmp_path / "s")])
    assert e.value.code == 2 and says in capsys.readouterr().err and not (tmp_path / "s").exists()
