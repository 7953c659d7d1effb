"""A suite is its sets, each evaluated as it would be alone."""

import dataclasses
import json
import shutil
import statistics
import zipfile

import numpy as np
import pytest
from PIL import Image

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.errors import UserError
from manyviews.verbs import transfer as module
from manyviews.weights import Pretrained

HOW = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "test_size": 12}


def write(folder, seed, images):
    rng = np.random.default_rng(seed)
    for label in range(2):
        (folder / f"class {label}").mkdir(parents=True)
        for i in range(images):
            color = rng.integers(0, 128, 3) + 100 * label
            pixels = np.clip(color + rng.normal(0, 20, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class {label}" / f"{i}.png")


@pytest.fixture
def suite(tmp_path):
    folder = tmp_path / "suite"
    write(folder / "split", 0, 30)
    write(folder / "pair" / "train", 1, 20)
    write(folder / "pair" / "val", 2, 10)
    (folder / ".hidden").mkdir()
    return folder


@pytest.fixture
def weights():
    return Pretrained(Encoder("resnet18", stem="small", channels=(4, 4, 8, 8)).eval(), **HOW, name="mine")


def test_a_suite_is_its_sets_evaluated_alone(suite, weights, tmp_path):
    found = mv.transfer(weights, suite, tmp_path / "out", protocols=("knn", "logistic"))
    assert list(found.reports) == ["pair", "split"]
    alone = mv.evaluate(weights, suite / "pair" / "train", suite / "pair" / "val", protocols=("knn", "logistic"))
    assert found.reports["pair"].representations == alone.representations
    rows = found.table()
    assert [(r["set"], r["protocol"]) for r in rows] == [
        (s, p) for p in ("knn", "logistic") for s in ("pair", "split", "mean")
    ]
    assert rows[2]["top1"] == pytest.approx(statistics.fmean(r["top1"] for r in rows[:2]))
    per_class = alone.representations["trained"].scores["knn"].per_class
    assert rows[0]["mean_per_class"] == pytest.approx(sum(per_class) / 2)
    assert json.loads((tmp_path / "out" / "transfer.json").read_text())["table"] == rows


def test_an_interrupted_suite_continues_and_another_one_is_refused(suite, weights, tmp_path, monkeypatch):
    asked, evaluate = [], module.evaluate

    def breaking(weights, data, *rest, **options):
        asked.append(data)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return evaluate(weights, data, *rest, **options)

    def run(weights, sets=suite, **options):
        return mv.transfer(weights, sets, tmp_path / "out", protocols=("knn",), baselines=False, **options)

    monkeypatch.setattr(module, "evaluate", breaking)
    with pytest.raises(KeyboardInterrupt):
        run(weights)
    run(weights)
    assert [p.name for p in asked] == ["pair:train", "split", "split"]
    opened = {
        "pair": (open_source(suite / "pair"), open_source(suite / "pair", split="val")),
        "split": (open_source(suite / "split"),),
    }
    first = opened["split"][0]
    renamed = dataclasses.replace(first, annotate=lambda: (first.labels, [f"{c} again" for c in first.classes]))
    other = Pretrained(Encoder("resnet18", stem="small", channels=(4, 4, 8, 8)).eval(), **HOW, name="other")
    for changed in (
        {"weights": weights, "sets": opened | {"split": (renamed,)}},
        {"weights": other},
        {"weights": weights, "seed": 1},
    ):
        with pytest.raises(UserError, match="other weights, images or settings: give another --out"):
            run(**changed)
    assert len(asked) == 3


def test_sets_are_found_by_their_layout(suite):
    for name in ("birds_train", "birds_test", "birds_few_train", "birds_few_test", "single", "only_train"):
        (suite / f"{name}.parquet").touch()
    found = module.find_sets(suite)
    assert list(found) == ["birds", "birds_few", "only", "pair", "single", "split"]
    assert found["birds_few"] == (suite / "birds_few_train.parquet", suite / "birds_few_test.parquet")
    assert found["birds"] == (suite / "birds_train.parquet", suite / "birds_test.parquet")
    assert found["only"] == suite / "only_train.parquet"
    assert found["pair"] == suite / "pair" and found["split"] == suite / "split"
    for name in ("pets.zip", "latest training.zip", "latest validation.zip", "x.tar.gz", "README.md"):
        (suite / name).touch()
    found = module.find_sets(suite)
    assert found["pets"] == suite / "pets.zip" and found["x"] == suite / "x.tar.gz" and "README" not in found
    assert found["latest"] == (suite / "latest training.zip", suite / "latest validation.zip")
    assert module.find_sets(suite / "pets.zip") == {"pets": suite / "pets.zip"}


def test_splits_and_classes_are_no_sets(suite, weights, tmp_path, capsys):
    """A folder of one set is a suite of this set, and splits of any spelling are used as what they are."""
    for seed, name in enumerate(("train2017", "validation", "testing")):
        write(tmp_path / "one" / name, seed, 12)
    assert module.find_sets(tmp_path / "one") == {"one": tmp_path / "one"}
    assert "is taken for one set" in capsys.readouterr().err
    assert module.find_sets(suite / "split") == {"split": suite / "split"}
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        for path in sorted((tmp_path / "one").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    for data in (tmp_path / "one", tmp_path / "one.zip"):
        found = mv.transfer(weights, data, tmp_path / f"out {data.name}", protocols=("knn",), baselines=False)
        assert "one: learns from one:train (24 images), tests on one:test (24)." in capsys.readouterr().err
        assert found.reports["one"].images["test"] == 24


def test_rare_classes_are_left_out_when_asked_and_all_are_named(suite, weights, tmp_path, capsys):
    for part, count in (("train", 4), ("val", 2)):
        for k in range(2):
            (suite / "pair" / part / f"rare {k}").mkdir()
            for i in range(count):
                shutil.copy(suite / "pair" / part / "class 0" / f"{i}.png", suite / "pair" / part / f"rare {k}")
    with pytest.raises(UserError, match=r"2 classes \(rare 0 \(4\), rare 1 \(4\)\) of pair:train.*--min-per-class 10"):
        mv.transfer(weights, suite / "pair", tmp_path / "no", protocols=("knn",))
    found = mv.evaluate(weights, suite / "pair", protocols=("knn",), baselines=False, min_per_class=10)
    assert list(found.classes) == ["class 0", "class 1"] and found.images["test"] == 20
    assert "Left out 12 images: 2 classes (rare 0 (4), rare 1 (4)) of pair:train" in found.notes[0]
    assert found.notes[0] in capsys.readouterr().err
    suite_of = mv.transfer(
        weights, suite / "pair", tmp_path / "o", protocols=("knn",), baselines=False, min_per_class=10
    )
    assert suite_of.reports["pair"].representations == found.representations
    with pytest.raises(UserError, match="must be 10 or more"):
        mv.evaluate(weights, suite / "pair", min_per_class=3)


def test_bad_suites_are_named(suite, weights, tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "few", 0, 9)
    for sets, says, options in (
        (tmp_path / "empty", "holds no labeled set", {}),
        (tmp_path / "none", "There is no folder", {}),
        ({"../up": suite / "split"}, "cannot be the name", {}),
        ({}, "no set", {}),
        ({"few": tmp_path / "few"}, r"2 classes \(class 0 \(9\), class 1 \(9\)\)", {}),
        (suite, "'nope'", {"protocols": ("nope",)}),
    ):
        with pytest.raises(UserError, match=says):
            mv.transfer(weights, sets, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        mv.transfer(weights, suite, tmp_path / "file")
