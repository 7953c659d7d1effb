"""What people get wrong, one by one: exit code 2, one sentence that says what and where, no traceback."""

import json
import os
import pickle
import shutil
import struct
import tempfile
import zlib
from importlib import import_module
from pathlib import Path

import pytest
import torch

from manyviews import checkpoint

from .conftest import TINY, Result, picture

LARGE = ("--set", "data.batch_size=256")


def told(result: Result, *words: str) -> None:
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    said = [line for line in result.err.splitlines() if line.startswith("manyviews: ")]
    assert len(said) == 1, result.err
    for word in words:
        assert word in said[0], said[0]


def test_missing_folder(manyviews, photos: Path, tmp_path: Path):
    told(manyviews("pretrain", tmp_path / "fotos", *TINY), "There is no 'fotos'", str(tmp_path))
    told(manyviews("pretrain", photos.parent / (photos.name + "x"), *TINY), f"Did you mean '{photos}'")


def test_empty_folder(manyviews, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    told(manyviews("pretrain", tmp_path / "empty", *TINY), str(tmp_path / "empty"))


def test_folder_of_text_files(manyviews, tmp_path: Path):
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.md").write_text("hello")
    told(manyviews("pretrain", tmp_path, *TINY), str(tmp_path))


def bomb(side: int) -> bytes:
    """A PNG that says it is `side` by `side`, in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_a_bad_image_among_good_ones_is_counted_reported_and_skipped(manyviews, tmp_path: Path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(100):
        picture(0, i).save(folder / f"{i:03}.png")
    picture(1, 1).save(folder / "whole.jpg")
    (folder / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:300])
    (folder / "bomb.png").write_bytes(bomb(20_000))
    picture(0, 0).resize((1, 1)).save(folder / "one_pixel.png")
    result = manyviews("pretrain", folder, *TINY, "--out", tmp_path / "run", "--json", tmp_path / "result.json")
    assert result.code == 0, result.err
    for name in ("corrupt.png", "truncated.jpg", "bomb.png", "one_pixel.png"):
        assert f"Skipped {name}: " in result.err, result.err
    assert '"bad_images": 4' in (tmp_path / "result.json").read_text()


def test_nothing_but_bad_images(manyviews, tmp_path: Path):
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(b"no")
    told(manyviews("pretrain", tmp_path, *TINY), "None of the")


def test_unreadable_files(manyviews):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        (folder / "photos").mkdir()
        for i in range(40):
            picture(0, i).save(folder / "photos" / f"{i}.png")
        (folder / "secret.parquet").write_bytes(b"PAR1")
        # First what works, so that every module is imported: another user may not read them.
        import_module("manyviews.data.parquet")
        assert manyviews("pretrain", folder / "photos", *TINY, "--out", folder / "first").code == 0
        for path in (folder, folder / "photos"):
            path.chmod(0o777)
        for path in (folder / "photos" / "7.png", folder / "secret.parquet"):
            path.chmod(0)
        root = os.geteuid() == 0
        if root:  # who may read everything
            os.seteuid(65534)
        try:
            skipped = manyviews("pretrain", folder / "photos", *TINY, "--out", folder / "second")
            refused = manyviews("pretrain", folder / "secret.parquet", *TINY, "--out", folder / "third")
        finally:
            if root:
                os.seteuid(0)
    assert skipped.code == 0, skipped.err
    assert "Skipped 7.png: " in skipped.err
    told(refused, "secret.parquet")


def test_too_few_images(manyviews, photos: Path):
    told(
        manyviews("pretrain", photos, "--recipe", "simclr_cifar10"),
        "fewer than a batch of 512",
        "--set data.batch_size=64",
    )


def test_unknown_names_and_the_nearest_one(manyviews, photos: Path, run_folder: Path):
    told(manyviews("pretrain", photos, "--recipe", "simclear_tiny"), "There is no recipe", "Did you mean 'simclr_tiny'")
    told(manyviews("pretrain", photos, *TINY, "--set", "optimizer.lrr=1"), "Did you mean 'lr'")
    told(manyviews("pretrain", photos, *TINY, "--set", "method.temprature=1"), "Did you mean 'temperature'")
    told(manyviews("pretrain", photos, *TINY, "--set", "backbone.name=resnet81"), "resnet81", "resnet18")
    told(manyviews("evaluate", run_folder, "--data", photos, "--protocol", "nn"), "Did you mean 'knn'")
    told(manyviews("list", "backbones", "--match", "nothing_*"), "no backbones that match")


def test_unknown_verbs_and_options(manyviews, photos: Path):
    for args in (["pretrian"], ["pretrain", photos, "--recepe", "x"], ["list", "nothing"], []):
        result = manyviews(*args)
        assert result.code == 2
        assert "Traceback" not in result.err


def test_settings_of_the_wrong_type_or_form(manyviews, photos: Path):
    told(manyviews("pretrain", photos, *TINY, "--set", "optimizer.lr=fast"), "optimizer.lr must be float")
    told(manyviews("pretrain", photos, *TINY, "--set", "method.hidden_dim=1.5"), "hidden_dim must be int")
    told(manyviews("pretrain", photos, *TINY, "--set", "optimizer.lr"), "path=value")
    told(manyviews("pretrain", photos, *TINY, "--set", "method.view.area=(2, 1)"), "area")
    told(manyviews("pretrain", photos, *TINY, "--epochs", "-1"), "epochs")
    told(manyviews("pretrain", photos, *TINY, "--set", "step.accumulate=3"), "cannot be shared evenly")
    told(manyviews("pretrain", photos, *TINY, "--set", "data.batch_size=0"), "batch")
    told(manyviews("pretrain", photos, *TINY, "--set", "backbone.chanels=3"), "chanels")


def test_no_run_folder_is_left_by_bad_input(manyviews, photos: Path, tmp_path: Path):
    manyviews("pretrain", photos, *TINY, "--set", "backbone.name=resnet81", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_folders_that_are_taken_or_none(manyviews, photos: Path, run_folder: Path, tmp_path: Path):
    told(manyviews("pretrain", photos, *TINY, "--out", run_folder), "holds a run already", "manyviews resume")
    told(manyviews("resume", tmp_path / "none"), "no run folder")
    told(manyviews("resume", photos), "is not a run folder")
    told(manyviews("show", photos), "is not a run folder")
    (tmp_path / "file").write_text("")
    told(manyviews("pretrain", photos, *TINY, "--out", tmp_path / "file" / "run"), "run")


def test_evaluation_without_labels_or_with_one_class(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    flat, one = tmp_path / "flat", tmp_path / "one"
    for folder in (flat, one / "only"):
        folder.mkdir(parents=True)
        for i in range(30):
            picture(0, i).save(folder / f"{i}.png")
    told(manyviews("evaluate", run_folder, "--data", flat), "label")
    told(manyviews("evaluate", run_folder, "--data", one), "class")
    told(manyviews("evaluate", run_folder, "--data", photos, "--test", flat), "label")
    (tmp_path / "labels.csv").write_text("path,label\nmissing.png,cat\n")
    told(manyviews("evaluate", run_folder, "--data", flat, "--labels", tmp_path / "labels.csv"), "missing.png")


def test_weights_of_another_architecture(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    torch.save({"conv1.weight": torch.zeros(1, 1, 1, 1)}, tmp_path / "other.pt")
    told(
        manyviews("evaluate", tmp_path / "other.pt", "--backbone", "resnet18", "--data", photos),
        "resnet18",
    )
    told(manyviews("evaluate", tmp_path / "other.pt", "--data", photos), "--backbone")
    tensors, facts = checkpoint.load_tensors(run_folder / "encoder.safetensors")
    facts["encoder"]["name"] = "resnet50"
    checkpoint.save_tensors(tmp_path / "wrong.safetensors", tensors, facts)
    told(manyviews("evaluate", tmp_path / "wrong.safetensors", "--data", photos), "resnet50")


class Harm:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_does_not(manyviews, photos: Path, tmp_path: Path, form: str):
    bad = tmp_path / "bad.pt"
    if form == "torch":
        torch.save({"x": Harm(tmp_path / "owned")}, bad)
    else:
        bad.write_bytes(pickle.dumps(Harm(tmp_path / "owned")))
    told(manyviews("evaluate", bad, "--backbone", "resnet18", "--data", photos), "cannot be loaded safely")
    assert not (tmp_path / "owned").exists()


def test_nothing_is_overwritten(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    mine = tmp_path / "mine.parquet"
    mine.write_text("precious")
    told(manyviews("embed", run_folder, photos, "--out", mine), "exists already")
    told(manyviews("export", run_folder, "--format", "torch", "--out", mine), "exists already")
    told(manyviews("export", run_folder, "--format", "torch", "--out", tmp_path / "no" / "w.pt"), "no folder")
    assert mine.read_text() == "precious"


def test_what_cannot_be_trained_with(manyviews, photos: Path):
    told(manyviews("pretrain", photos, *TINY, "--epochs", "inf"), "epochs", "finite")
    parts = ("--set", "data.batch_size=4", "--set", "step.accumulate=4")
    told(manyviews("pretrain", photos, "--recipe", "simclr_tiny", *parts), "at least 2 images")
    told(manyviews("pretrain", photos, *TINY, "--set", "method.view.count=1"), "set its count to 2")
    told(
        manyviews("pretrain", photos, "--recipe", "byol_tiny", "--set", "method.weights=(1, 2)"),
        "3 tasks and 2 weights",
    )


def test_sizes_that_the_backbone_does_not_take_leave_no_run_behind(manyviews, photos: Path, tmp_path: Path):
    out = ("--out", tmp_path / "run")
    for recipe, backbone, says in (
        ("simclr_photos", "name=levit_conv_128s", "does not take images of 128 pixels"),
        ("moco_v3_tiny", "patch_size=5", "do not tile"),
        ("simclr_tiny", "global_pool=''", "does not give 16 features"),
    ):
        sets = ("--set", "data.batch_size=16", "--set", f"backbone.{backbone}")
        told(manyviews("pretrain", photos, "--recipe", recipe, *sets, *out), says)
        assert not (tmp_path / "run").exists()


def test_parts_of_a_set_are_no_classes(manyviews, run_folder: Path, tmp_path: Path):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for i in range(12):
            picture(0, i).save(tmp_path / part / f"{i}.png")
    told(manyviews("evaluate", run_folder, "--data", tmp_path), "train, val", "no classes", "'val' as the test images")
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    told(manyviews("evaluate", run_folder, "--data", tmp_path), "'train' as the images", "'test' as the test images.")
    shutil.rmtree(tmp_path / "val")
    shutil.rmtree(tmp_path / "test")
    told(manyviews("evaluate", run_folder, "--data", tmp_path), "'train' as the images.")
    told(manyviews("evaluate", run_folder, "--data", tmp_path, "--seed", "-1"), "seed")


def test_a_folder_named_demo_is_not_mistaken(manyviews, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    told(manyviews("pretrain", "demo", *TINY), "./demo")
    result = manyviews("pretrain", "demo:train", *TINY, *LARGE, "--out", tmp_path / "run")
    assert result.code == 0, result.err


def test_a_run_on_the_demo_goes_on_in_a_folder_of_that_name(manyviews, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert manyviews("pretrain", "demo", *TINY, *LARGE, "--out", "demo").code == 0
    assert json.loads((tmp_path / "demo" / "run.json").read_text())["data"] == "demo:train"
    result = manyviews("diagnose", "demo", "demo:train", "--images", 100)
    assert result.code == 0, result.err


def test_labels_of_what_has_its_own_are_refused(manyviews, run_folder: Path, photos: Path, tmp_path: Path):
    (tmp_path / "labels.csv").write_text("path,label\n")
    labels = ("--labels", tmp_path / "labels.csv")
    assert manyviews("prepare", photos, "--out", tmp_path / "canvases", "--canvas", 32).code == 0
    told(manyviews("evaluate", run_folder, "--data", tmp_path / "canvases", *labels), "prepare the images anew")
    told(manyviews("evaluate", run_folder, "--data", "demo", *labels), "labels of their own")


def test_places_where_nothing_can_be_written(manyviews, run_folder: Path, photos: Path, tmp_path: Path, monkeypatch):
    """Known before the work."""
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may be run by who may write anywhere
    out = tmp_path / "new"
    told(manyviews("embed", run_folder, photos, "--out", out), "no permission to write")
    told(manyviews("report", run_folder, "--out", out), "no permission to write")
    told(manyviews("embed", run_folder, photos, "--out", out, "--json", tmp_path / "x.json"), "no permission to write")
    monkeypatch.undo()
    out.write_text("a file")
    told(manyviews("prepare", photos, "--out", out), "cannot be made")
    held = ("--set", "data.holdout=0.3")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "here")
    for verb in (("embed", run_folder, photos), ("report", run_folder), ("export", run_folder, "--format", "torch")):
        told(manyviews(*verb, "--out", tmp_path / "link"), "leads nowhere")
    told(
        manyviews("sweep", photos, *TINY, "--vary", "optimizer.lr=0.1,0.2", *held, "--out", out), "not an empty folder"
    )


def test_hostile_names_reach_no_terminal(manyviews, run_folder: Path, tmp_path: Path):
    evil = tmp_path / "\x1b]0;owned\x07"
    evil.mkdir()
    for i in range(20):
        picture(0, i).save(evil / f"{i}.png")
    (evil / "\x1b[31m.png").write_bytes(b"no image")
    result = manyviews("embed", run_folder, tmp_path, "--out", tmp_path / "features.parquet")
    assert result.code == 0, result.err
    assert "Skipped" in result.err
    told(manyviews("evaluate", run_folder, "--data", tmp_path), "owned")
    for text in (result.err, result.out, manyviews("evaluate", run_folder, "--data", tmp_path).err):
        assert "\x1b" not in text and "\x07" not in text


def test_names_that_are_no_unicode_are_embedded(manyviews, run_folder: Path, tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        picture(0, i).save(photos / f"{i}.png")
    os.rename(photos / "0.png", os.fsencode(photos / "caf") + b"\xe9.png")
    result = manyviews("embed", run_folder, photos, "--out", tmp_path / "features.parquet")
    assert result.code == 0, result.err
