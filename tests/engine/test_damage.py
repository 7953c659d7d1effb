"""Damaged files of a run: found when they are read, and the run goes on from what is whole."""

import errno
import json
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import manyviews as mv
from manyviews import checkpoint, recipes
from manyviews.data import open_source
from manyviews.engine import Stopped, folder, loop
from manyviews.engine.folder import CHECKPOINT, ENCODER, LOG, PREVIOUS, RECIPE, RUN, SUMMARY, RunFolder, create
from manyviews.engine.log import Log

SETTINGS = {
    "data.batch_size": 8,
    "data.holdout": 0,
    "monitor.steps": 1,
    "monitor.epochs": 0,
    "monitor.checkpoint_minutes": 0,
    "step.precision": "float32",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    for i, x in enumerate(pixels):
        Image.fromarray(x).save(found / f"{i}.png")
    return found


def pretrain(images: Path, out: Path, **settings) -> mv.Run:
    return mv.pretrain(images, "simclr_tiny", out=out, epochs=2, settings=SETTINGS | settings)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory) -> mv.Run:
    """A run of six steps that nothing interrupted."""
    torch.manual_seed(0)
    return pretrain(images, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def half(images: Path, tmp_path_factory) -> Path:
    """The same run, stopped after its fourth step. Its checkpoints are those of the third and the fourth."""
    real, calls = loop.backpropagate, []

    def backpropagate(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    out = tmp_path_factory.mktemp("half") / "run"
    loop.backpropagate = backpropagate
    try:
        with pytest.raises(Stopped):
            pretrain(images, out)
    finally:
        loop.backpropagate = real
    return out


@pytest.fixture
def run(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "run"))


def weights(run: Path) -> dict[str, Tensor]:
    return checkpoint.load_tensors(run / CHECKPOINT)[0]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def losses(run: mv.Run) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in run.log if "loss" in row]


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def flip_data(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 8
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def test_any_flipped_bit_of_a_file_of_tensors_is_found(tmp_path: Path):
    """In the data, in names, types and shapes, in the facts, and in the checksums themselves."""
    tensors = {"weight": torch.randn(4, 3), "n": torch.tensor(3), "none": torch.empty(0), "flag": torch.tensor(True)}
    path, rng = tmp_path / "x.safetensors", random.Random(0)
    checkpoint.save_tensors(path, tensors, {"step": 3, "names": ["a", "b"]})
    good = path.read_bytes()
    for i in range(8 * len(good)):
        content = bytearray(good)
        content[i // 8] ^= 1 << i % 8
        if rng.random() < 0.03:
            path.write_bytes(content)
            try:
                found, facts = checkpoint.load_tensors(path)
            except checkpoint.Damaged as error:
                assert str(path) in str(error)
            else:  # as in padding: nothing may differ
                assert same(found, tensors) and facts == {"step": 3, "names": ["a", "b"]}
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        with pytest.raises(checkpoint.Damaged):
            checkpoint.load_tensors(path)


def test_files_stay_plain_safetensors_and_those_without_checksums_load(tmp_path: Path):
    x = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2], dtype=torch.bfloat16)}
    checkpoint.save_tensors(tmp_path / "ours.safetensors", x, {"step": 1})
    assert same(load_file(tmp_path / "ours.safetensors"), x)
    save_file(x, tmp_path / "theirs.safetensors")
    found, facts = checkpoint.load_tensors(tmp_path / "theirs.safetensors")
    assert same(found, x) and facts == {}
    older = Path(__file__).parents[1] / "data" / "run_93ea1ef" / ENCODER
    assert "encoder" in checkpoint.load_tensors(older)[1]


def test_the_checkpoint_before_takes_the_place_of_a_damaged_one(run: Path, whole: mv.Run, capsys):
    assert [checkpoint.facts_of(run / name)["step"] for name in (PREVIOUS, CHECKPOINT)] == [3, 4]
    cut(run / CHECKPOINT)
    assert "step 3 of 6" in mv.load(run).note  # whoever only reads takes the same one
    resumed = mv.resume(run)
    said = capsys.readouterr().err
    assert f"{run / CHECKPOINT} is " in said and f"{PREVIOUS}, of step 3, is used in its place" in said
    assert same(weights(run), weights(whole.folder))
    assert losses(resumed) == losses(whole)
    assert not (run / PREVIOUS).exists() and sorted(p.name for p in run.iterdir()) == sorted(
        p.name for p in whole.folder.iterdir()
    )


def test_where_both_are_damaged_nothing_is_trained(run: Path):
    before = (run / LOG).read_bytes()
    flip_data(run / CHECKPOINT)
    cut(run / PREVIOUS)
    for use in (mv.resume, mv.load, mv.finish):
        with pytest.raises(mv.UserError, match=f"{CHECKPOINT} is damaged.*{PREVIOUS}.*from a backup"):
            use(run)
    (run / PREVIOUS).unlink()
    with pytest.raises(mv.UserError, match=f"There is no {PREVIOUS} to use"):
        mv.resume(run)
    assert (run / LOG).read_bytes() == before


def test_a_damaged_encoder_is_refused(whole: mv.Run, tmp_path: Path):
    shutil.copytree(whole.folder, tmp_path / "run")
    flip_data(tmp_path / "run" / ENCODER)
    with pytest.raises(mv.UserError, match=f"{ENCODER} is damaged"):
        mv.load(tmp_path / "run")


def test_a_checkpoint_moves_without_hard_links_too(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Path, "hardlink_to", lambda *args: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    for step in (1, 2, 3):
        checkpoint.save_tensors(tmp_path / CHECKPOINT, {}, {"step": step}, tmp_path / PREVIOUS)
    assert [checkpoint.facts_of(tmp_path / n)["step"] for n in (PREVIOUS, CHECKPOINT)] == [2, 3]
    (tmp_path / CHECKPOINT).unlink()  # killed between the two renames
    assert RunFolder(tmp_path).latest == tmp_path / PREVIOUS


def test_damaged_lines_of_a_log_are_left_out_and_counted(run: Path, whole: mv.Run, capsys):
    lines = (run / LOG).read_bytes().splitlines()
    bad = [b"\xff\xfe", b"5", b"null", b'{"step": null}', b'{"step": 1.5}', b"[" * 100_000, b'{"step": 1, "x": [2]}']
    (run / LOG).write_bytes(b"\n".join([lines[0], *bad, *lines[1:], b'{"step": 3, "lo']))
    found = mv.Run(run).log
    assert [row["step"] for row in found] == [json.loads(line)["step"] for line in lines]
    assert f"Warning: {len(bad)} damaged lines of {run / LOG} left out." in capsys.readouterr().err
    with Log(RunFolder(run), step=3) as log:
        log.write({"step": 4, "loss": losses(whole)[3][1]})
    assert losses(mv.Run(run)) == losses(whole)[:4]


@pytest.mark.parametrize("text", ["", '{"steps": 6, "sec', "[]", '{"last": 5}', '"' + "x" * 10])
def test_a_torn_summary_is_written_again(text: str, whole: mv.Run, tmp_path: Path, capsys):
    path = Path(shutil.copytree(whole.folder, tmp_path / "run"))
    (path / SUMMARY).write_text(text)
    assert mv.Run(path).summary is None
    if not text:
        assert mv.resume(path).summary["last"] == whole.summary["last"]
        assert f"{path / SUMMARY} is damaged" in capsys.readouterr().err


def test_a_start_on_a_full_disk_leaves_nothing_and_a_killed_one_is_taken_over(tmp_path: Path, monkeypatch):
    recipe, out = recipes.get("simclr_tiny"), tmp_path / "run"
    for fails in (RUN, RECIPE):

        def full(path: Path, text: str, fails: str = fails) -> None:
            if path.name == fails:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            checkpoint.write_text(path, text)

        monkeypatch.setattr(folder, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            create(out, recipe, {"data": None}, lambda new: new.start.write_bytes(b"weights"))
        assert not out.exists()
    monkeypatch.undo()
    # The last is what older versions leave.
    for left in ((".lock", RUN, "start.safetensors"), (".lock", f".{RUN}.abcdefgh"), (RUN,)):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for name in left:
            (out / name).touch()
        assert create(out, recipe, {"data": None}).facts["data"] is None
    for name in ("notes.txt", CHECKPOINT):
        (tmp_path / f"with-{name}").mkdir()
        (tmp_path / f"with-{name}" / name).touch()
        with pytest.raises(mv.UserError, match="not an empty folder"):
            create(tmp_path / f"with-{name}", recipe, {})
        assert (tmp_path / f"with-{name}" / name).exists()


def test_what_killed_writers_left_is_removed_by_the_next_start(run: Path):
    ours = [f".{name}.abcd_123" for name in (CHECKPOINT, ENCODER, LOG, RUN)] + [f".{CHECKPOINT}.abcd.tmpXYZ"]
    theirs = [".gitignore", ".notes.txt.abcdefgh"]
    for name in (*ours, *theirs):
        (run / name).write_bytes(b"half of")
    with RunFolder(run).lock():
        RunFolder(run).clean()
    left = {path.name for path in run.iterdir()}
    assert not left & set(ours) and left >= set(theirs)


def test_a_message_names_a_checkpoint_only_if_there_is_one(images: Path, tmp_path: Path):
    with pytest.raises(FloatingPointError, match=r"There is no checkpoint in .*run yet"):
        pretrain(images, tmp_path / "run", **{"method.temperature": 0.0, "monitor.checkpoint_minutes": 10})


def test_canvases_are_checked_when_they_are_first_read(images: Path, tmp_path: Path):
    def prepared(name: str) -> tuple[Path, Path]:
        out = Path(shutil.copytree(tmp_path / "made", tmp_path / name))
        return out, next(out.glob("shard-*"))

    mv.prepare(images, tmp_path / "made", 16)
    everything = np.arange(24)
    source = open_source(tmp_path / "made")
    assert source.canvases is not None and len(source.canvases(everything).index) == 24
    out, shard = prepared("pixels")
    content = bytearray(shard.read_bytes())
    at = content.index(np.asarray(source.load(5)).tobytes())
    content[at + 7] ^= 1
    shard.write_bytes(content)
    found = open_source(out).canvases
    assert found is not None and len(found(np.arange(5)).index) == 5
    with pytest.raises(mv.UserError, match=rf"{shard.name} is damaged: the pixels of .*prepare"):
        found(everything)
    for part in (b'"ids', b'"start"'):
        out, shard = prepared(f"part{len(part)}")
        content = bytearray(shard.read_bytes())
        if part == b'"start"':
            length = int.from_bytes(content[:8], "little")
            at = 8 + length + json.loads(content[8 : 8 + length])["start"]["data_offsets"][0] + 8
        else:
            at = content.index(b".png")
        content[at] ^= 1
        shard.write_bytes(content)
        opened = open_source(out)
        with pytest.raises(mv.UserError, match="is damaged"):
            _ = opened.ids, opened.canvases(everything)


def test_no_picture_of_views_is_drawn_through_a_link(run: Path, tmp_path: Path):
    shutil.rmtree(run / "plots", ignore_errors=True)
    (tmp_path / "outside").mkdir()
    (run / "plots").symlink_to(tmp_path / "outside")
    with pytest.raises(mv.UserError, match="plots is a link"):
        mv.resume(run)
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"step": None}, "step"),
        ({"step": 2, "before": [1]}, "before"),
        ({"step": 2, "stage": 7}, "stage 8"),
        ({"step": 2, "stage": "0"}, "stage"),
        ({"step": 2, "seconds": "long"}, "seconds"),
        ({"step": 2, "end": -1}, "end"),
    ],
)
def test_a_checkpoint_says_how_far_it_is_as_a_run_does(facts: dict, says: str, run: Path):
    tensors, there = checkpoint.load_tensors(run / CHECKPOINT)
    checkpoint.save_tensors(run / CHECKPOINT, tensors, there | facts)
    with pytest.raises(mv.UserError, match=says):
        mv.resume(run)


@pytest.mark.parametrize("name", ["optimizer.9999.m", "optimizer.x.m", "optimizer.1", "optimizer.-1.m"])
def test_tensors_of_no_weight_are_refused(name: str, run: Path):
    tensors, there = checkpoint.load_tensors(run / CHECKPOINT)
    checkpoint.save_tensors(run / CHECKPOINT, {**tensors, name: torch.zeros(1)}, there)
    with pytest.raises(mv.UserError, match="does not fit the recipe"):
        mv.resume(run)
