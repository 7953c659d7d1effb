"""Bad input, one kind at a time: exit code 2, one sentence that says what and where, no traceback."""

import json
import os
import shutil
from pathlib import Path

import torch

from manyviews import checkpoint

from .conftest import TINY, Result, picture, pictures

LARGE = ("--set", "data.batch_size=256")


def told(result: Result, *words: str) -> None:
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    lines = [line for line in result.err.splitlines() if line.startswith("manyviews: ")]
    assert len(lines) == 1, result.err
    for word in words:
        assert word in lines[0], lines[0]


def test_folders_without_images(manyviews, photos: Path, tmp_path: Path):
    told(manyviews("pretrain", tmp_path / "fotos", *TINY), "There is no 'fotos'", str(tmp_path))
    told(manyviews("pretrain", photos.parent / (photos.name + "x"), *TINY), f"Did you mean '{photos}'")
    (tmp_path / "text").mkdir()
    told(manyviews("pretrain", tmp_path / "text", *TINY), str(tmp_path / "text"))
    for i in range(20):
        (tmp_path / "text" / f"{i}.txt").write_text("hello")
    told(manyviews("pretrain", tmp_path / "text", *TINY), str(tmp_path / "text"))
    for path in (tmp_path / "text").iterdir():
        path.rename(path.with_suffix(".png"))
    told(manyviews("pretrain", tmp_path / "text", *TINY), "None of the")


def test_a_bad_image_among_good_ones_is_counted_reported_and_skipped(manyviews, tmp_path: Path):
    folder = pictures(tmp_path / "photos", 40)
    picture(1, 1).save(folder / "whole.jpg")
    (folder / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:300])
    result = manyviews("pretrain", folder, *TINY, "--out", tmp_path / "run", "--json", tmp_path / "result.json")
    assert result.code == 0, result.err
    assert "Skipped corrupt.png: " in result.err and "Skipped truncated.jpg: " in result.err
    assert json.loads((tmp_path / "result.json").read_text())["summary"]["bad_images"] == 2


def test_unknown_names_and_the_nearest_one(manyviews, photos: Path, run_folder: Path):
    told(manyviews("pretrain", photos, "--recipe", "simclear_tiny"), "There is no recipe", "Did you mean 'simclr_tiny'")
    told(manyviews("pretrain", photos, *TINY, "--set", "optimizer.lrr=1"), "Did you mean 'lr'")
    told(manyviews("pretrain", photos, *TINY, "--set", "method.temprature=1"), "Did you mean 'temperature'")
    told(manyviews("pretrain", photos, *TINY, "--set", "backbone.name=resnet81"), "resnet81", "resnet18")
    told(manyviews("evaluate", run_folder, "--data", photos, "--protocol", "nn"), "Did you mean 'knn'")
    told(manyviews("list", "backbones", "--match", "nothing_*"), "no backbones that match")
    for args in (["pretrian"], ["pretrain", photos, "--recepe", "x"], ["list", "nothing"], []):
        result = manyviews(*args)
        assert result.code == 2 and "Traceback" not in result.err


def test_an_option_that_is_given_twice(manyviews, run_folder: Path, photos: Path):
    more = ("--protocol", "knn", "--protocol", "linear")
    told(manyviews("evaluate", run_folder, "--data", photos, *more), "--protocol is given twice", "by commas")
    told(manyviews("evaluate", run_folder, "--data", photos, "--seed", "1", "--seed=2"), "--seed is given twice")


def test_settings_that_nothing_can_be_trained_with_leave_no_run_behind(manyviews, photos: Path, tmp_path: Path):
    def refused(*args: str, says: str, recipe: str = "simclr_tiny") -> None:
        sets = ("--recipe", recipe, "--set", "data.batch_size=16", *args)
        told(manyviews("pretrain", photos, *sets, "--out", tmp_path / "run"), says)
        assert not (tmp_path / "run").exists()

    for setting, says in (
        ("optimizer.lr=fast", "optimizer.lr must be float"),
        ("method.hidden_dim=1.5", "hidden_dim must be int"),
        ("optimizer.lr", "path=value"),
        ("method.view.area=(2, 1)", "area"),
        ("method.view.count=1", "set its count to 2"),
        ("step.accumulate=3", "cannot be shared evenly"),
        ("step.accumulate=16", "at least 2 images"),
        ("data.batch_size=0", "batch"),
        ("data.batch_size=512", "fewer than a batch of 512"),
        ("backbone.chanels=3", "chanels"),
        ("backbone.global_pool=''", "does not give 16 features"),
    ):
        refused("--set", setting, says=says)
    refused("--epochs", "-1", says="epochs")
    refused("--epochs", "inf", says="finite")
    refused("--set", "backbone.patch_size=5", recipe="moco_v3_tiny", says="do not tile")
    refused("--set", "method.weights=(1, 2)", recipe="byol_tiny", says="3 tasks and 2 weights")


def test_run_folders_that_are_taken_or_none(manyviews, photos: Path, run_folder: Path, tmp_path: Path):
    told(manyviews("pretrain", photos, *TINY, "--out", run_folder), "holds a run already", "manyviews resume")
    told(manyviews("resume", tmp_path / "none"), "no run folder")
    told(manyviews("show", photos), "is not a run folder")
    (tmp_path / "file").write_text("")
    told(manyviews("pretrain", photos, *TINY, "--out", tmp_path / "file" / "run"), "run")


def test_labels_that_an_evaluation_cannot_use(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    flat = pictures(tmp_path / "flat", 30)
    shutil.copytree(flat, tmp_path / "one" / "only")
    told(manyviews("evaluate", run_folder, "--data", flat), "label")
    told(manyviews("evaluate", run_folder, "--data", tmp_path / "one"), "class")
    told(manyviews("evaluate", run_folder, "--data", photos, "--test", flat), "label")
    labels = ("--labels", tmp_path / "labels.csv")
    labels[1].write_text("path,label\nmissing.png,cat\n")
    told(manyviews("evaluate", run_folder, "--data", flat, *labels), "missing.png")
    told(manyviews("evaluate", run_folder, "--data", "demo", *labels), "labels of their own")
    assert manyviews("prepare", photos, "--out", tmp_path / "canvases", "--canvas", 32).code == 0
    told(manyviews("evaluate", run_folder, "--data", tmp_path / "canvases", *labels), "prepare the images again")


def test_parts_of_a_set_are_no_classes(manyviews, run_folder: Path, tmp_path: Path):
    for part in ("train", "val"):
        pictures(tmp_path / part, 12)
    told(manyviews("evaluate", run_folder, "--data", tmp_path), "has no labels", "one folder for each class")


def test_weights_of_another_architecture(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    torch.save({"conv1.weight": torch.zeros(1, 1, 1, 1)}, tmp_path / "other.pt")
    told(manyviews("evaluate", tmp_path / "other.pt", "--backbone", "resnet18", "--data", photos), "resnet18")
    told(manyviews("evaluate", tmp_path / "other.pt", "--data", photos), "--backbone")
    tensors, facts = checkpoint.load_tensors(run_folder / "encoder.safetensors")
    facts["encoder"]["name"] = "resnet50"
    checkpoint.save_tensors(tmp_path / "wrong.safetensors", tensors, facts)
    told(manyviews("evaluate", tmp_path / "wrong.safetensors", "--data", photos), "resnet50")


def test_nothing_is_overwritten(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    mine = tmp_path / "mine.parquet"
    mine.write_text("precious")
    told(manyviews("embed", run_folder, photos, "--out", mine), "exists already")
    told(manyviews("export", run_folder, "--format", "torch", "--out", mine), "exists already")
    told(manyviews("export", run_folder, "--format", "torch", "--out", tmp_path / "no" / "w.pt"), "no folder")
    assert mine.read_text() == "precious"


def test_places_that_cannot_be_written_are_known_before_the_work(
    manyviews, run_folder: Path, photos: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may be run by a user who may write anywhere
    out = tmp_path / "new"
    told(manyviews("embed", run_folder, photos, "--out", out), "no permission to write")
    told(manyviews("report", run_folder, "--out", out), "no permission to write")
    told(manyviews("embed", run_folder, photos, "--out", out, "--json", tmp_path / "x.json"), "no permission to write")
    monkeypatch.undo()
    told(manyviews("embed", run_folder, photos, "--out", out, "--json", "none/x.json"), "no folder")
    out.write_text("a file")
    told(manyviews("prepare", photos, "--out", out), "cannot be made")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "here")
    for verb in (("embed", run_folder, photos), ("report", run_folder), ("export", run_folder, "--format", "torch")):
        told(manyviews(*verb, "--out", tmp_path / "link"), "leads nowhere")
    for verb in (("sweep", photos, *TINY, "--vary", "optimizer.lr=0.1", "--set", "data.holdout=0.3"),):
        told(manyviews(*verb, "--out", out), "not an empty folder")


def test_numbers_that_cannot_be_are_named_before_the_work(manyviews, run_folder: Path, photos: Path):
    for args in (
        ("diagnose", run_folder, photos, "--seed", -1),
        ("report", run_folder, "--out", "page", "--seed", -1),
        ("segment", run_folder, photos, "--seed", -1),
        ("segment", run_folder, photos, "--lrs", -1),
        ("detect", run_folder, photos, "--lr", "nan"),
        ("detect", run_folder, photos, "--test-size", 32),
        ("evaluate", run_folder, "--data", photos, "--seeds", 0),
        ("evaluate", run_folder, "--data", photos, "--seed", -1),
    ):
        result = manyviews(*args)
        assert result.code == 2 and result.err.count("\n") == 1, (args, result.err)


def test_a_folder_named_demo_is_not_mistaken(manyviews, tmp_path: Path):
    assert manyviews("pretrain", "demo", *TINY, *LARGE, "--out", "demo").code == 0
    assert json.loads((tmp_path / "demo" / "run.json").read_text())["data"] == "demo:train"
    told(manyviews("pretrain", "demo", *TINY), "./demo")  # now there is a folder of that name
    result = manyviews("diagnose", "demo", "demo:train", "--images", 20)
    assert result.code == 0, result.err


def test_hostile_names_reach_no_terminal_and_bad_unicode_is_embedded(manyviews, run_folder: Path, tmp_path: Path):
    evil = pictures(tmp_path / "\x1b]0;owned\x07", 20)
    (evil / "\x1b[31m.png").write_bytes(b"no image")
    os.rename(evil / "0.png", os.fsencode(evil / "caf") + b"\xe9.png")
    result = manyviews("embed", run_folder, tmp_path, "--out", tmp_path / "features.parquet")
    assert result.code == 0 and "Skipped" in result.err, result.err
    refused = manyviews("evaluate", run_folder, "--data", tmp_path)
    told(refused, "owned")
    for text in (result.err, result.out, refused.err):
        assert "\x1b" not in text and "\x07" not in text
