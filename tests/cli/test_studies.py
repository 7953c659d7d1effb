"""Verbs that look at an encoder, or with it, and write what they found."""

import csv
import json
import shutil
from pathlib import Path

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
