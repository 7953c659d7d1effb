"""Verbs that look at an encoder, or with it, and write what they found."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from manyviews.checkpoint import load_tensors, save_tensors

from .conftest import TINY


def test_duplicates(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    folder = tmp_path / "twice"
    shutil.copytree(photos, folder)
    shutil.copy(photos / "red" / "3.png", folder / "plain" / "copy.png")
    found = tmp_path / "duplicates.csv"
    args = ("duplicates", run_folder, folder, "--threshold", 0.999999, "--out", found, "--json", tmp_path / "d.json")
    result = manyviews(*args)
    assert result.code == 0, result.err
    with found.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    pair = [row["id"] for row in rows if row["group"] == rows[0]["group"]]
    assert {"plain/copy.png", "red/3.png"} <= {row["id"] for row in rows} and "plain/copy.png" in pair
    assert [row["keep"] for row in rows].count("yes") == len(json.loads((tmp_path / "d.json").read_text())["groups"])
    assert manyviews(*args).code == 2  # nothing is overwritten
    result = manyviews("duplicates", run_folder, folder, "--threshold", 1.5, "--out", tmp_path / "other.csv")
    assert result.code == 2 and "1.5" in result.err and not (tmp_path / "other.csv").exists()


def test_transfer(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    (tmp_path / "sets").mkdir()
    shutil.copytree(photos, tmp_path / "sets" / "photos")
    args = ("transfer", run_folder, tmp_path / "sets", "--protocol", "knn,logistic", "--out", tmp_path / "out")
    result = manyviews(*args, "--json", tmp_path / "t.json")
    assert result.code == 0, result.err
    table = json.loads((tmp_path / "t.json").read_text())["table"]
    assert [(r["set"], r["protocol"]) for r in table] == [
        (s, p) for p in ("knn", "logistic") for s in ("photos", "mean")
    ]
    assert f"{100 * table[0]['top1']:.1f} %" in result.out
    assert json.loads((tmp_path / "t.json").read_text())["notes"] == []
    for i in range(40):  # on both sides of the split, which goes by names
        shutil.copy(photos / "red" / f"{i}.png", tmp_path / "sets" / "photos" / "red" / f"copy {i}.png")
    (tmp_path / "sets" / "photos" / "red" / "bad.png").write_bytes(b"no image")
    out = ("--out", tmp_path / "again", "--json", tmp_path / "t.json")
    result = manyviews("transfer", run_folder, tmp_path / "sets", "--protocol", "knn", *out)
    leaked, bad = json.loads((tmp_path / "t.json").read_text())["notes"]
    assert leaked.startswith("photos: ") and "are also training images" in leaked
    assert leaked in " ".join(result.out.split())
    assert bad.startswith("photos: 1 images could not be read") and "bad.png" in bad
    result = manyviews("transfer", run_folder, tmp_path / "sets", "--protocol", "clustering", "--out", tmp_path / "x")
    assert result.code == 2 and "clustering" in result.err


def test_diagnose_and_select(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    result = manyviews("diagnose", run_folder, photos, "--images", 60, "--json", tmp_path / "d.json")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["verdict"] in result.out.replace("\n", " ")
    assert 1 <= found["rankme"] <= found["dim"]
    other = tmp_path / "other"
    assert manyviews("pretrain", photos, *TINY, "--set", "method.temperature=1.0", "--out", other).code == 0
    result = manyviews("select", run_folder, other, "--oracle", photos, "--json", tmp_path / "s.json")
    assert result.code == 0, result.err
    chosen = json.loads((tmp_path / "s.json").read_text())
    assert chosen["chosen"] in (str(run_folder), str(other)) and "method.temperature" in result.out
    assert 0 <= chosen["agreement"]["knn"]["regret"] <= 1
    assert manyviews("select", run_folder).code == 2
    # A run of a sweep that broke down is left out, and of two nothing is left to choose from.
    shutil.copytree(other, tmp_path / "broken")
    (tmp_path / "broken" / "encoder.safetensors").unlink()
    result = manyviews("select", run_folder, other, tmp_path / "broken")
    assert result.code == 0 and "broken is not finished, and was left out" in result.out
    result = manyviews("select", run_folder, tmp_path / "broken")
    assert result.code == 2 and "is not finished" in result.err


def test_segment_and_propagate(manyviews, run_folder: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    for folder, where in (("scenes", "images/train"), ("scenes", "images/test"), ("videos", "frames/one")):
        root = tmp_path / folder
        masks = root / where.replace("images", "masks").replace("frames", "masks")
        (root / where).mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(8):
            mask = np.zeros((64, 64), np.uint8)
            mask[16:48, 4 + 3 * i : 36 + 3 * i] = 1
            pixels = np.where(mask[..., None] == 1, (220, 40, 40), (40, 40, 200)) + rng.integers(-20, 20, (64, 64, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / where / f"{i:02}.png")
            Image.fromarray(mask).save(masks / f"{i:02}.png")
    args = ("segment", run_folder, tmp_path / "scenes", "--epochs", 20, "--lrs", 0.01, "--json", tmp_path / "s.json")
    result = manyviews(*args)
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["value"] > 0.6 and "an untrained encoder" in found["baselines"]
    assert found["verdict"] in result.out.replace("\n", " ")
    result = manyviews("propagate", run_folder, tmp_path / "videos", "--no-baseline", "--json", tmp_path / "p.json")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "p.json").read_text())["value"] > 0.5
    broken = tmp_path / "broken"
    shutil.copytree(run_folder, broken)
    tensors, facts = load_tensors(broken / "encoder.safetensors")
    next(v for k, v in tensors.items() if k.endswith("weight")).fill_(float("nan"))
    save_tensors(broken / "encoder.safetensors", tensors, facts)
    for verb in (("segment", broken, tmp_path / "scenes"), ("embed", broken, "demo", "--out", tmp_path / "x.parquet")):
        result = manyviews(*verb)
        assert result.code == 2 and "its training diverged" in result.err
    for verb in ("segment", "detect", "propagate"):
        result = manyviews(verb, run_folder, tmp_path / "none")
        assert result.code == 2 and "none" in result.err


def test_report(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    args = ("report", run_folder, "--data", photos, "--images", 40, "--out", tmp_path / "page")
    result = manyviews(*args, "--json", tmp_path / "r.json")
    assert result.code == 0, result.err
    page = Path(json.loads((tmp_path / "r.json").read_text())["file"])
    assert page == tmp_path / "page" / "index.html" and "simclr" in page.read_text(encoding="utf-8")
    assert manyviews(*args).code == 2  # nothing is overwritten
    result = manyviews("report", tmp_path / "none", "--out", tmp_path / "other")
    assert result.code == 2 and "none" in result.err and not (tmp_path / "other").exists()


def test_numbers_that_cannot_be_are_named_before_anything_is_done(manyviews, run_folder: Path, photos: Path):
    for args in (
        ("diagnose", run_folder, photos, "--seed", -1),
        ("report", run_folder, "--out", "page", "--seed", -1),
        ("segment", run_folder, photos, "--seed", -1),
        ("segment", run_folder, photos, "--lrs", -1),
        ("detect", run_folder, photos, "--lr", "nan"),
        ("detect", run_folder, photos, "--test-size", 32),
        ("evaluate", run_folder, "--data", photos, "--seeds", 0),
        ("evaluate", run_folder, "--data", photos, "--json", "none/result.json"),
    ):
        result = manyviews(*args)
        assert result.code == 2 and result.err.count("\n") == 1, (args, result.err)


def test_a_whole_number_is_a_number(manyviews, run_folder: Path, photos: Path):
    settings = ("finetune.mixup=1", "finetune.lrs=0.01", "finetune.epochs=1", "finetune.batch=32")
    args = [x for s in settings for x in ("--set", s)]
    result = manyviews("evaluate", run_folder, "--data", photos, "--protocol", "finetune", *args)
    assert result.code == 0, result.err
