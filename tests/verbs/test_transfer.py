"""A suite is its sets, each evaluated as it would be alone."""

import dataclasses
import json
import statistics

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
    assert [p.name for p in asked] == ["train", "split", "split"]
    opened = {
        name: tuple(map(open_source, s if isinstance(s, tuple) else (s,)))
        for name, s in module.find_sets(suite).items()
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
    assert list(found) == ["birds_few", "birds", "only", "pair", "single", "split"]
    assert found["birds_few"] == (suite / "birds_few_train.parquet", suite / "birds_few_test.parquet")
    assert found["birds"] == (suite / "birds_train.parquet", suite / "birds_test.parquet")
    assert found["only"] == suite / "only_train.parquet"
    assert found["pair"] == (suite / "pair" / "train", suite / "pair" / "val")
    assert found["split"] == suite / "split"


def test_bad_suites_are_named(suite, weights, tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "few", 0, 9)
    for sets, says, options in (
        (tmp_path / "empty", "holds no labeled set", {}),
        (tmp_path / "none", "There is no folder", {}),
        ({"../up": suite / "split"}, "cannot be the name", {}),
        ({}, "no set", {}),
        ({"few": tmp_path / "few"}, "9 of the at least 10|9 images", {}),
        (suite, "'nope'", {"protocols": ("nope",)}),
    ):
        with pytest.raises(UserError, match=says):
            mv.transfer(weights, sets, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        mv.transfer(weights, suite, tmp_path / "file")
