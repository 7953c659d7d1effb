"""Whole runs: what lands in the folder, and what happens when a run is stopped, killed, or runs out of disk."""

import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import manyviews as mv
from manyviews import checkpoint, distributed, recipes
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.engine import Stopped, build, loop, training
from manyviews.engine.folder import CHECKPOINT, ENCODER, SUMMARY, RunFolder, create
from manyviews.engine.log import Log
from manyviews.engine.monitor import hold_out
from manyviews.engine.stopping import watch
from manyviews.settings import override
from manyviews.views import Global
from tests.ranks import on_ranks

SETTINGS = {"data.batch_size": 16, "monitor.steps": 2, "monitor.epochs": 0, "data.holdout": 0.2}
SHORT = {"epochs": 0.5, "data.holdout": 0}  # three steps, of which nothing is measured


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of 100 small pictures of two kinds."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(100):
        kind = ("bright", "dark")[i % 2]
        (folder / kind).mkdir(exist_ok=True)
        pixels = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8) + (128 if kind == "bright" else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory) -> mv.Run:
    """A run that nothing interrupted; others that end as it does are compared with it."""
    torch.manual_seed(0)
    return pretrain(images, tmp_path_factory.mktemp("whole") / "run", **{"monitor.loggers": "tensorboard"})


def noise(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def weights(run: mv.Run) -> dict[str, Tensor]:
    return checkpoint.load_tensors(run.folder / CHECKPOINT)[0]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def pretrain(images: Path | np.ndarray, out: Path, recipe: str = "byol_tiny", **settings) -> mv.Run:
    return mv.pretrain(images, recipe, out=out, settings=SETTINGS | settings)


def signalling(step: int, kind: int, times: int = 1):
    """`backpropagate`, with a signal to this process in one of its calls."""
    real, calls = loop.backpropagate, []

    def backpropagate(*args, **kwargs):
        calls.append(1)
        for _ in range(times if len(calls) == step else 0):
            os.kill(os.getpid(), kind)
        return real(*args, **kwargs)

    return backpropagate


def failing(step: int, rank: int = 0):
    """`feed`, with a disk that fails one rank before a step."""
    real = training.feed

    def feed(batches, device):
        for i, batch in enumerate(real(batches, device)):
            if i == step and distributed.rank() == rank:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            yield batch

    return feed


def test_a_run_leaves_its_encoder_its_log_and_its_plots(whole: mv.Run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert whole.summary is not None and whole.summary["images"] == 100
    rows = [row for row in whole.log if "loss" in row]
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps) and steps[-1] == whole.summary["steps"]
    assert {"loss", "lr", "grad_norm", "images_per_second", "data_wait", "loss/global", "loss/local"} <= set(rows[-1])
    assert all(0 <= row["data_wait"] < 1 for row in rows)
    momentum = [row["momentum"] for row in rows]
    assert momentum == sorted(momentum) and 0.9 < momentum[0] < momentum[-1] <= 1  # byol's rises along a cosine
    measured = {"knn", "linear", "spread", "alignment", "uniformity", "rankme"}
    assert {f"monitor/{name}" for name in measured} <= set(whole.log[-1])
    assert whole.summary["last"] == {k: v for k, v in (rows[-1] | whole.log[-1]).items() if k != "step"}
    assert list((whole.folder / "plots").glob("*.png"))
    loaded = mv.load(whole.folder)
    assert loaded.encoder(torch.rand(2, 3, 32, 32)).shape == (2, loaded.encoder.embed_dim)
    assert not loaded.encoder.training
    assert (loaded.mean, loaded.std, loaded.test_size) == (whole.recipe.data.mean, whole.recipe.data.std, 32)
    events = EventAccumulator(str(whole.folder / "tensorboard"))
    events.Reload()
    logged = {e.step: e.value for e in events.Scalars("loss")}
    assert logged == pytest.approx({row["step"]: row["loss"] for row in rows}, rel=1e-5)


# One method with a queue, and one with a center and layers that are frozen at first: everything that moves is saved.
# In float16, one whose first gradients overflow: so are the scale of the loss and the count of what was skipped. Its
# views are small, because convolutions in float16 are slow on a processor.
@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("moco_v2_tiny", {}),
        ("dino_tiny", {}),
        ("nnclr_tiny", {"step.precision": "float16", "method.view": Global(2, size=8)}),
    ],
)
def test_an_interrupted_run_continues_to_the_same_bits(
    recipe: str, settings: dict, images: Path, tmp_path: Path, monkeypatch, capsys
):
    expected = pretrain(images, tmp_path / "expected", recipe, **settings)
    said = capsys.readouterr().err
    if settings:
        skipped = expected.summary["skipped_steps"]
        scales = {row["loss_scale"] for row in expected.log if "loss_scale" in row}
        assert 0 < skipped < 6 and min(scales) == 2.0**16 / 2**skipped
        assert "float16 with loss scaling, as step.precision asks" in said and f"{skipped} of " in said
        assert all(math.isfinite(row["loss"]) for row in expected.log if "loss" in row)
    # A launcher may send again what the whole group of processes has received: twice counts once.
    monkeypatch.setattr(loop, "backpropagate", signalling(4, signal.SIGTERM, times=2))
    with pytest.raises(Stopped, match=rf"SIGTERM at step 4 of \d+, and saved: .*manyviews resume {tmp_path / 'parts'}"):
        pretrain(images, tmp_path / "parts", recipe, **settings)
    monkeypatch.undo()
    assert mv.Run(str(tmp_path / "parts")).log[-1]["step"] == 4  # `show` says how far it came
    assert not (tmp_path / "parts" / ENCODER).exists()
    run = mv.resume(tmp_path / "parts")
    assert same(weights(expected), weights(run))
    assert same(expected.encoder.state_dict(), run.encoder.state_dict())
    assert run.summary.get("skipped_steps") == expected.summary.get("skipped_steps")
    rows = [r["step"] for r in run.log if "loss" in r]
    assert rows == sorted(set(rows))  # no line twice


def test_killed_at_any_moment_it_resumes_to_the_same_bits(images: Path, tmp_path: Path):
    changes = {"epochs": 6, "monitor.checkpoint_minutes": 1e-4}  # a checkpoint after nearly every step
    expected = pretrain(images, tmp_path / "expected", **changes)
    out = tmp_path / "killed"
    pairs = [f"--set={k}={v}" for k, v in (SETTINGS | changes).items()]
    command = ["pretrain", str(images), "--recipe", "byol_tiny", "--out", str(out), *pairs]
    process = subprocess.Popen([sys.executable, "-m", "manyviews", *command], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / CHECKPOINT).exists():
        time.sleep(0.01)
    time.sleep(0.1)
    assert process.poll() is None, "the run was too short to be killed"
    process.kill()
    process.wait()
    assert same(weights(expected), weights(mv.resume(out)))


def test_a_run_killed_between_its_last_step_and_its_end_is_completed(whole: mv.Run, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    for name in (SUMMARY, ENCODER, "plots/loss.png"):
        (folder / name).unlink()
    (folder / f".{CHECKPOINT}.abcd").write_bytes(b"half a checkpoint")
    assert mv.resume(folder).summary["last"] == whole.summary["last"]
    assert (folder / ENCODER).exists() and (folder / "plots" / "loss.png").stat().st_size > 1000
    assert not (folder / f".{CHECKPOINT}.abcd").exists()
    # Once it is complete, it is not trained again.
    before = (folder / ENCODER).stat().st_mtime_ns
    mv.resume(folder)
    assert (folder / ENCODER).stat().st_mtime_ns == before


def test_two_runs_cannot_share_a_folder(whole: mv.Run, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    with pytest.raises(mv.UserError, match="holds a run already"):
        create(folder, whole.recipe, {})
    (folder / SUMMARY).unlink()
    with RunFolder(folder).lock(), pytest.raises(mv.UserError, match="Another process is training"):
        mv.resume(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years of work")
    with pytest.raises(mv.UserError, match="not an empty folder"):
        create(tmp_path / "mine", whole.recipe, {})
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_of_many_that_claim_a_folder_at_once_one_gets_it(tmp_path: Path):
    recipe, start, won = recipes.get("byol_tiny"), threading.Barrier(8), []

    def claim(i: int) -> None:
        start.wait()
        try:
            create(tmp_path / "run", recipe, {"number": i})
            won.append(i)
        except mv.UserError:
            pass

    threads = [threading.Thread(target=claim, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) <= 1  # a tie may leave none, never two
    assert not won or RunFolder(tmp_path / "run").facts["number"] == won[0]


def test_a_full_disk_leaves_the_last_good_checkpoint(images: Path, whole: mv.Run, tmp_path: Path, monkeypatch):
    real, calls = checkpoint.save_file, []

    def full(tensors, path, **kwargs):
        calls.append(1)
        if len(calls) >= 3:
            Path(path).write_bytes(b"half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(tensors, path, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        pretrain(images, tmp_path / "run", **{"monitor.checkpoint_minutes": 0})
    monkeypatch.undo()
    _, facts = checkpoint.load_tensors(tmp_path / "run" / CHECKPOINT)
    assert facts["step"] == 2
    assert not list((tmp_path / "run").glob(".checkpoint*"))
    assert same(weights(mv.resume(tmp_path / "run")), weights(whole))


def test_a_disk_that_fails_costs_nothing_of_what_was_trained(images: Path, whole: mv.Run, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(training, "feed", failing(3))
    with pytest.raises(OSError, match="Stale"):
        pretrain(images, tmp_path / "run")
    assert checkpoint.load_tensors(tmp_path / "run" / CHECKPOINT)[1]["step"] == 3
    monkeypatch.undo()
    assert same(weights(mv.resume(tmp_path / "run")), weights(whole))


def _fails_on_the_second_rank(images: Path, out: Path) -> str:
    training.feed = failing(3, rank=1)  # in a process of its own
    try:
        pretrain(images, out)
    except (OSError, Stopped) as error:
        return str(error)
    return "went on"


def test_a_disk_that_fails_one_process_of_several_costs_nothing_either(images: Path, tmp_path: Path):
    first, second = on_ranks(_fails_on_the_second_rank, images, tmp_path / "run")
    assert "another process at step 3" in first
    assert "Stale" in second
    assert checkpoint.load_tensors(tmp_path / "run" / CHECKPOINT)[1]["step"] == 3


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(images: Path, tmp_path: Path, monkeypatch):
    real, calls = loop.backpropagate, []

    def explode(method, *args, **kwargs):
        calls.append(1)
        values = real(method, *args, **kwargs)
        return {k: v * math.nan for k, v in values.items()} if len(calls) >= 5 else values

    monkeypatch.setattr(loop, "backpropagate", explode)
    with pytest.raises(FloatingPointError, match=r"optimizer.lr="):
        pretrain(images, tmp_path / "run", **{"monitor.checkpoint_minutes": 0, "monitor.steps": 3})
    _, facts = checkpoint.load_tensors(tmp_path / "run" / CHECKPOINT)
    assert facts["step"] == 4


def test_other_images_are_noticed_on_resume(images: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(loop, "backpropagate", signalling(1, signal.SIGINT))
    with pytest.raises(Stopped):
        pretrain(images, tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(mv.UserError, match="was started on 100 images"):
        mv.resume(tmp_path / "run", noise(90))
    steps = len(hold_out(open_source(images), 0.2)[0]) // 16
    others = (np.random.default_rng(seed).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8) for seed in range(20))
    as_many = next(x for x in others if len(hold_out(open_source(x), 0.2)[0]) // 16 == steps)
    with pytest.raises(mv.UserError, match="images of other names"):
        mv.resume(tmp_path / "run", as_many)


def test_a_run_whose_images_were_moved_continues_to_the_same_bits(
    images: Path, whole: mv.Run, tmp_path: Path, monkeypatch
):
    shutil.copytree(images, tmp_path / "before")
    monkeypatch.setattr(loop, "backpropagate", signalling(3, signal.SIGINT))
    with pytest.raises(Stopped):
        pretrain(tmp_path / "before", tmp_path / "run")
    monkeypatch.undo()
    (tmp_path / "before").rename(tmp_path / "after")
    with pytest.raises(mv.UserError, match=r"no longer in .*before: .*--data"):
        mv.resume(tmp_path / "run")
    first = next((tmp_path / "after").rglob("*.png"))
    first.rename(first.with_stem("another"))
    with pytest.raises(mv.UserError, match="images of other names"):
        mv.resume(tmp_path / "run", tmp_path / "after")
    first.with_stem("another").rename(first)
    run = mv.resume(tmp_path / "run", tmp_path / "after")
    assert same(weights(whole), weights(run)) and run.facts["data"] == str(tmp_path / "after")


def test_a_finished_run_is_trained_longer_as_a_new_one(whole: mv.Run, tmp_path: Path, monkeypatch, capsys):
    """From all its weights, with a schedule and an optimizer of its own; after a kill, too."""
    real, begun = loop.backpropagate, []

    def backpropagate(method, *args, **kwargs):
        begun.append({f"method.{k}": v.clone() for k, v in method.state_dict().items()})
        if len(begun) == 1:
            raise RuntimeError("killed before the first checkpoint")
        return real(method, *args, **kwargs)

    monkeypatch.setattr(loop, "backpropagate", backpropagate)
    with pytest.raises(RuntimeError, match="killed"):
        mv.resume(whole.folder, epochs=1, out=tmp_path / "longer")
    said = capsys.readouterr().err
    assert f"A new run of 1 epochs in {tmp_path / 'longer'} starts from the weights of {whole.folder} at step" in said
    run = mv.resume(tmp_path / "longer")
    assert same(begun[0], {k: v for k, v in weights(whole).items() if k.startswith("method.")})
    assert same(begun[0], begun[1])
    assert run.facts["from"] == {
        "run": str(whole.folder),
        "id": whole.facts["id"],
        "step": whole.summary["steps"],
    }
    assert run.summary["steps"] == len(begun) - 1 and run.recipe == override(
        override(whole.recipe, "epochs", 1), "seed", whole.recipe.seed + 1
    )
    assert not same(weights(whole), weights(run))
    with pytest.raises(mv.UserError, match="give its --epochs"):
        mv.resume(whole.folder, out=tmp_path / "other")
    with pytest.raises(mv.UserError, match="holds a run already"):
        whole.resume(epochs=1, out=tmp_path / "longer")


def test_images_in_memory_must_be_given_again_and_any_seed_can_be_trained_with(tmp_path: Path):
    run = pretrain(noise(64), tmp_path / "run", "simclr_tiny", seed=2**31 - 1, epochs=1)
    (run.folder / SUMMARY).unlink()
    with pytest.raises(mv.UserError, match="given in memory"):
        run.resume()


def test_weights_to_start_from_are_not_fetched_again(monkeypatch):
    asked = []

    def encoder(name: str, **settings) -> Encoder:
        asked.append(settings["pretrained"])
        return Encoder(name, **settings | {"pretrained": False})

    monkeypatch.setattr(build, "Encoder", encoder)
    recipe = override(recipes.get("simclr_tiny"), "backbone.pretrained", True)
    for trained in (False, True):
        build.build_method(recipe, trained=trained)
    assert asked == [True, False]


def test_a_signal_whose_message_nobody_reads_is_obeyed(monkeypatch):
    """As that of Ctrl-C, when `tee` reads it and is gone first."""

    def broken(*args):
        raise BrokenPipeError

    with watch() as stop:
        monkeypatch.setattr(os, "write", broken)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == "SIGINT"


def test_many_bad_images_are_reported_while_a_run_goes_on(images: Path, tmp_path: Path, capsys):
    for path in sorted(images.rglob("*.png")):
        (tmp_path / "some" / path.parent.name).mkdir(parents=True, exist_ok=True)
        good = int(path.stem) >= 30
        (tmp_path / "some" / path.parent.name / path.name).write_bytes(path.read_bytes() if good else b"none")
    for memory in (0, 1):
        pretrain(tmp_path / "some", tmp_path / f"run{memory}", **SHORT, **{"data.memory_gb": memory})
        said = capsys.readouterr().err
        assert said.count("could not be used so far, such as") == 1
        assert not memory or "30 images could not be used so far" in said


def test_canvases_of_another_size_are_reported(images: Path, tmp_path: Path, capsys):
    for size, warned in ((32, 0), (48, 1)):
        canvases = mv.prepare(images, tmp_path / f"canvases{size}", size)
        pretrain(canvases, tmp_path / f"run{size}", **SHORT)
        assert capsys.readouterr().err.count("--canvas 32") == warned


def test_a_logger_that_fails_is_left_behind(tmp_path: Path, monkeypatch, capsys):
    from torch.utils.tensorboard import SummaryWriter

    def down(*args, **kwargs):
        raise ConnectionError("no route to the server")

    monkeypatch.setattr(SummaryWriter, "add_scalar", down)
    with Log(RunFolder(tmp_path), loggers=("tensorboard",)) as log:
        for step in (1, 2):
            log.write({"step": step, "loss": 0.5})
    assert [row["step"] for row in RunFolder(tmp_path).rows] == [1, 2]
    assert capsys.readouterr().err.count("tensorboard receives nothing more of this run") == 1
