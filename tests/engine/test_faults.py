"""What a run does when its machine fails: a few faults in the process of the test. tests/faults injects them all."""

import errno
import json
import math
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import manyviews as mv
from manyviews import checkpoint
from manyviews.data import canvas, slow
from manyviews.engine import loop, monitor, training
from manyviews.engine.folder import CHECKPOINT
from manyviews.errors import Unwritten

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
SETTINGS = {"data.batch_size": 16, "data.holdout": 0.3, "monitor.steps": 1, "monitor.checkpoint_minutes": 0}


@pytest.fixture(autouse=True, scope="module")
def _brief():
    """No pictures, and no steps to measure the pace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manyviews.verbs.pretrain.draw_views", lambda *args: None)
        patch.setattr("manyviews.verbs.pretrain.plots.training", lambda *args: [])
        patch.setattr("manyviews.verbs.pretrain.measure", lambda *args: None)
        yield


def pretrain(out: Path, **settings) -> mv.Run:
    return mv.pretrain(PIXELS, "simclr_tiny", epochs=3, out=out, settings=SETTINGS | settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> mv.Run:
    return pretrain(tmp_path_factory.mktemp("whole") / "run")


def plain(run: mv.Run) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "data_wait")} for row in run.log]


def same(a: mv.Run, b: mv.Run) -> bool:
    x, y = (checkpoint.load_tensors(run.folder / CHECKPOINT)[0] for run in (a, b))
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


class Killed(BaseException):
    """SIGKILL, nearly: nothing of ours runs after it but what the test's own process needs."""


def test_an_observation_that_a_kill_cuts_short_is_made_by_the_run_that_continues(
    whole: mv.Run, tmp_path: Path, monkeypatch
):
    real, calls = monitor.measure, []

    def measure(*args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            raise Killed
        return real(*args)

    monkeypatch.setattr(monitor, "measure", measure)
    monkeypatch.setattr(training.RunFolder, "started", True)
    with pytest.raises(Killed):
        pretrain(tmp_path / "run", **{"monitor.checkpoint_minutes": 60})
    monkeypatch.undo()
    assert checkpoint.facts_of(tmp_path / "run" / CHECKPOINT)["step"] == 2  # the signal saved it
    run = mv.resume(tmp_path / "run", PIXELS)
    assert plain(run) == plain(whole) and same(run, whole)


def exploding(at: int, bad: list):
    """`backpropagate` with a loss that is not a number for the batch of one step, whenever it is met."""
    real, calls = loop.backpropagate, []

    def backpropagate(method, views, *args, **kwargs):
        items = views[0].args[0].index.tolist()
        calls.append(1)
        if len(calls) == at + 1 and not bad:
            bad.append(items)
        found = real(method, views, *args, **kwargs)
        if items not in bad:
            return found
        for p in method.parameters():
            if p.grad is not None:
                p.grad.mul_(math.nan)
        return {k: v * math.nan for k, v in found.items()}

    return backpropagate


def test_a_loss_that_is_not_finite_names_the_images(tmp_path: Path, monkeypatch):
    bad = []
    monkeypatch.setattr(loop, "backpropagate", exploding(1, bad))
    with pytest.raises(
        FloatingPointError, match=r"at step 1: the 16 images .*suspects.json.*rollback.*of step 1, is in"
    ):
        pretrain(tmp_path / "run", **{"monitor.steps": 3})  # it is found at the third step
    found = json.loads((tmp_path / "run" / "suspects.json").read_text())
    ids = training.monitor.hold_out(mv.data.open_source(PIXELS), 0.3)[0]
    assert [one["step"] for one in found] == [1] and found[0]["images"] == [ids.where(i) for i in bad[0]]


def test_a_run_that_goes_back_leaves_out_two_batches_and_ends_as_one_that_was_interrupted(
    tmp_path: Path, monkeypatch, capsys
):
    bad, back = [], {"step.not_finite": "rollback", "monitor.checkpoint_minutes": 60}
    monkeypatch.setattr(loop, "backpropagate", exploding(3, bad))
    run = pretrain(tmp_path / "run", **back)
    assert run.summary["left_out"] == [2, 3] and "goes back and leaves out its batch 2 and 3" in capsys.readouterr().err
    assert [row["step"] for row in run.log if "loss" in row] == [1, 2, 5, 6]
    # The same, but killed when it has gone back.
    monkeypatch.setattr(loop, "backpropagate", exploding(3, []))
    monkeypatch.setattr(training, "RolledBack", Killed)
    with pytest.raises(Killed):
        pretrain(tmp_path / "killed", **back)
    monkeypatch.undo()
    assert same(mv.resume(tmp_path / "killed", PIXELS), run)


def test_a_disk_that_is_full_for_the_log_is_named_and_costs_no_line(whole: mv.Run, tmp_path: Path, monkeypatch):
    real = training.Log.write

    def write(self, row):
        if row["step"] == 3:
            self._file.close()
            self._file = Path("/dev/full").open("a")  # noqa: SIM115
        real(self, row)

    monkeypatch.setattr(training.Log, "write", write)
    with pytest.raises(Unwritten, match=r"log.jsonl could not be .*No space left.*of step 2, is in .*manyviews resume"):
        pretrain(tmp_path / "run")
    monkeypatch.undo()
    run = mv.resume(tmp_path / "run", PIXELS)
    assert plain(run) == plain(whole) and same(run, whole)


@pytest.mark.parametrize(
    "writes",
    [
        lambda path: checkpoint.write_buffered(path, partial(torch.save, torch.zeros(9))),
        lambda path: path.write_text("text"),
    ],
)
def test_writing_to_a_place_without_room_names_the_file(writes, tmp_path: Path):
    (tmp_path / "x").write_text("before")

    def full(path: Path):
        path.unlink()
        path.symlink_to("/dev/full")
        writes(path)

    with pytest.raises(
        Unwritten, match=r"x could not be written \(No space left.*\): free some space; the file"
    ) as error:
        checkpoint.write_atomically(tmp_path / "x", full)
    assert error.value.errno == errno.ENOSPC and (tmp_path / "x").read_text() == "before"
    assert isinstance(error.value, mv.UserError) and len(list(tmp_path.iterdir())) == 1


def test_an_image_that_is_read_for_long_is_named(monkeypatch, capsys):
    monkeypatch.setattr(slow, "PATIENCE", 0.05)
    monkeypatch.setattr(canvas, "READS", slow.Reads())
    with canvas.READS.one("image {}".format, 7):
        for _ in range(100):
            slow.time.sleep(0.02)
            if "image 7 has been read for" in (text := capsys.readouterr().err):
                break
    assert text.count("image 7") == 1
