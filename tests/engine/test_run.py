"""Whole runs: what lands in the folder, and what happens when a run is stopped, killed, or runs out of disk."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import manyviews as mv
from manyviews import checkpoint
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.engine import folder as files
from manyviews.engine import loop
from manyviews.engine.monitor import hold_out
from manyviews.engine.stopping import Stopped, watch
from manyviews.recipes import get
from manyviews.settings import override
from tests.ranks import on_ranks

SETTINGS = {"data.batch_size": 16, "monitor.steps": 2, "monitor.epochs": 0, "data.holdout": 0.2}


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


def noise(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def weights(run: mv.Run) -> dict[str, torch.Tensor]:
    return checkpoint.load_tensors(run.folder / files.CHECKPOINT)[0]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def pretrain(images: Path, out: Path, recipe: str = "byol_tiny", **settings) -> mv.Run:
    return mv.pretrain(images, recipe, out=out, settings=SETTINGS | settings)


def test_a_run_leaves_its_encoder_its_log_and_its_plots(images: Path, tmp_path: Path):
    run = pretrain(images, tmp_path / "run")
    assert run.summary is not None and run.summary["images"] == 100
    steps = [row["step"] for row in run.log if "loss" in row]
    assert steps == sorted(steps) and steps[-1] == run.summary["steps"]
    assert {"loss", "lr", "grad_norm", "images_per_second", "data_wait", "loss/global", "loss/local"} <= set(
        run.log[-2] | run.log[-1]
    )
    assert all(0 <= row["data_wait"] < 1 for row in run.log if "loss" in row)
    momentum = [row["momentum"] for row in run.log if "loss" in row]
    assert momentum == sorted(momentum) and 0.9 < momentum[0] < momentum[-1] <= 1  # byol's rises along a cosine
    seen = [row for row in run.log if "monitor/rankme" in row]
    assert {"monitor/knn", "monitor/linear", "monitor/spread", "monitor/alignment", "monitor/uniformity"} <= set(
        seen[-1]
    )
    assert list((run.folder / files.PLOTS).glob("*.png"))
    x = torch.rand(2, 3, 32, 32)
    loaded = mv.load(run.folder)
    assert loaded.encoder(x).shape == (2, loaded.encoder.embed_dim)
    assert not loaded.encoder.training
    assert (loaded.mean, loaded.std, loaded.test_size) == (run.recipe.data.mean, run.recipe.data.std, 32)


def test_the_same_command_gives_the_same_bits(images: Path, tmp_path: Path):
    a = pretrain(images, tmp_path / "a")
    b = pretrain(images, tmp_path / "b")
    assert same(weights(a), weights(b))
    c = pretrain(images, tmp_path / "c", seed=1)
    assert not same(weights(a), weights(c))


# One method with a queue, one with a center and frozen layers, one with dropout-free tokens: all that moves is saved.
@pytest.mark.parametrize("recipe", ["moco_v2_tiny", "dino_tiny", "mae_tiny"])
def test_an_interrupted_run_continues_to_the_same_bits(recipe: str, images: Path, tmp_path: Path, monkeypatch):
    whole = pretrain(images, tmp_path / "whole", recipe)

    from manyviews.engine import loop

    real, calls = loop.backpropagate, []

    def stop_at_the_fourth(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "backpropagate", stop_at_the_fourth)
    with pytest.raises(Stopped, match=rf"SIGTERM at step 4 of \d+, and saved: .*manyviews resume {tmp_path / 'parts'}"):
        pretrain(images, tmp_path / "parts", recipe)
    monkeypatch.undo()
    assert mv.Run(str(tmp_path / "parts")).log[-1]["step"] == 4  # `show` says how far it came
    assert not (tmp_path / "parts" / files.ENCODER).exists()
    run = mv.resume(tmp_path / "parts")
    assert same(weights(whole), weights(run))
    assert same(whole.encoder.state_dict(), run.encoder.state_dict())
    rows = [r["step"] for r in run.log if "loss" in r]
    assert rows == sorted(set(rows))  # no line twice


def test_killed_at_any_moment_it_resumes_to_the_same_bits(images: Path, tmp_path: Path):
    changes = {"epochs": 12, "monitor.checkpoint_minutes": 1e-4}  # a checkpoint after nearly every step
    whole = pretrain(images, tmp_path / "whole", **changes)
    out = tmp_path / "killed"
    pairs = [f"--set={k}={v}" for k, v in (SETTINGS | changes).items()]
    command = ["pretrain", str(images), "--recipe", "byol_tiny", "--out", str(out), *pairs]
    kills = 0
    for delay in (0.05, 0.4, 0.9):
        verb = ["resume", str(out)] if (out / files.RECIPE).exists() else command
        process = subprocess.Popen([sys.executable, "-m", "manyviews", *verb], stderr=subprocess.DEVNULL)
        while process.poll() is None and not (out / files.CHECKPOINT).exists():
            time.sleep(0.01)
        before = (out / files.CHECKPOINT).stat().st_mtime_ns
        while process.poll() is None and (out / files.CHECKPOINT).stat().st_mtime_ns == before:
            time.sleep(0.01)  # it trains
        time.sleep(delay)
        if process.poll() is None:
            kills += 1
        process.kill()
        process.wait()
    assert kills, "the run was too short to be killed"
    run = mv.resume(out)
    assert same(weights(whole), weights(run))


def test_a_finished_run_is_not_trained_again(images: Path, tmp_path: Path):
    run = pretrain(images, tmp_path / "run")
    before = (run.folder / files.ENCODER).stat().st_mtime_ns
    mv.resume(run.folder)
    assert (run.folder / files.ENCODER).stat().st_mtime_ns == before


def test_two_runs_cannot_share_a_folder(images: Path, tmp_path: Path):
    run = pretrain(images, tmp_path / "run")
    with pytest.raises(mv.UserError, match="holds a run already"):
        pretrain(images, tmp_path / "run")
    (run.folder / files.SUMMARY).unlink()
    with files.lock(run.folder):
        code = f"import manyviews as mv; mv.resume({str(run.folder)!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Another process is training" in other.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years of work")
    with pytest.raises(mv.UserError, match="not an empty folder"):
        pretrain(images, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_of_many_that_claim_a_folder_at_once_one_gets_it(tmp_path: Path):
    won, start = [], threading.Barrier(8)

    def claim() -> None:
        start.wait()
        won.append(files._claim(tmp_path / "run"))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sum(won) <= 1  # a tie may leave none, never two


def test_a_full_disk_leaves_the_last_good_checkpoint(images: Path, tmp_path: Path, monkeypatch):
    real, calls = checkpoint.save_file, []

    def full(tensors, path, **kwargs):
        calls.append(1)
        if len(calls) >= 3:
            Path(path).write_bytes(b"half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(tensors, path, **kwargs)

    changes = {"monitor.checkpoint_minutes": 0}
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        pretrain(images, tmp_path / "run", **changes)
    monkeypatch.undo()
    _, facts = checkpoint.load_tensors(tmp_path / "run" / files.CHECKPOINT)
    assert facts["step"] == 2
    assert not list((tmp_path / "run").glob(".checkpoint*"))
    whole = pretrain(images, tmp_path / "whole", **changes)
    assert same(weights(mv.resume(tmp_path / "run")), weights(whole))


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(images: Path, tmp_path: Path, monkeypatch):
    from manyviews.engine import loop

    real, calls = loop.backpropagate, []

    def explode(method, *args, **kwargs):
        calls.append(1)
        values = real(method, *args, **kwargs)
        return {k: v * float("nan") for k, v in values.items()} if len(calls) >= 5 else values

    monkeypatch.setattr(loop, "backpropagate", explode)
    with pytest.raises(FloatingPointError, match=r"optimizer.lr="):
        pretrain(images, tmp_path / "run", **{"monitor.checkpoint_minutes": 0, "monitor.steps": 3})
    _, facts = checkpoint.load_tensors(tmp_path / "run" / files.CHECKPOINT)
    assert facts["step"] == 4


def test_plots_that_were_not_made_are_made_later(images: Path, tmp_path: Path):
    run = pretrain(images, tmp_path / "run")
    plot = run.folder / files.PLOTS / "loss.png"
    plot.unlink()  # as after a crash between the summary and the plots
    mv.resume(run.folder)
    assert plot.stat().st_size > 1000


def test_weights_to_start_from_are_not_fetched_again(monkeypatch):
    asked = []

    def encoder(name: str, **settings) -> Encoder:
        asked.append(settings["pretrained"])
        return Encoder(name, **settings | {"pretrained": False})

    monkeypatch.setattr(loop, "Encoder", encoder)
    recipe = override(get("simclr_tiny"), "backbone.pretrained", True)
    for trained in (False, True):
        loop.build(recipe, trained=trained)
    assert asked == [True, False]


def test_other_images_are_noticed_on_resume(images: Path, tmp_path: Path, monkeypatch):
    from manyviews.engine import loop

    real = loop.backpropagate
    monkeypatch.setattr(loop, "backpropagate", lambda *a, **k: (os.kill(os.getpid(), signal.SIGINT), real(*a, **k))[1])
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


def test_a_signal_whose_message_nobody_reads_is_obeyed(monkeypatch):
    """As that of Ctrl-C, where `tee` reads and is gone first."""

    def broken(*args):
        raise BrokenPipeError

    with watch() as stop:
        monkeypatch.setattr(os, "write", broken)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == "SIGINT"


def test_a_disk_that_fails_costs_nothing_of_what_was_trained(images: Path, tmp_path: Path, monkeypatch):
    from manyviews.engine import loop

    real = loop.feed

    def failing(batches, device):
        for i, batch in enumerate(real(batches, device)):
            if i == 3:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            yield batch

    monkeypatch.setattr(loop, "feed", failing)
    with pytest.raises(OSError, match="Stale"):
        pretrain(images, tmp_path / "run")
    assert checkpoint.load_tensors(tmp_path / "run" / files.CHECKPOINT)[1]["step"] == 3
    monkeypatch.undo()
    assert same(weights(mv.resume(tmp_path / "run")), weights(pretrain(images, tmp_path / "whole")))


def _fails_on_the_second_rank(images: Path, out: Path) -> str:
    from manyviews import distributed
    from manyviews.engine import loop

    real = loop.feed

    def failing(batches, device):
        for i, batch in enumerate(real(batches, device)):
            if i == 3 and distributed.rank() == 1:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            yield batch

    loop.feed = failing  # in a process of its own
    try:
        pretrain(images, out)
    except (OSError, Stopped) as error:
        return str(error)
    return "went on"


def test_a_disk_that_fails_one_process_of_several_costs_nothing_either(images: Path, tmp_path: Path):
    first, second = on_ranks(_fails_on_the_second_rank, images, tmp_path / "run")
    assert "another process at step 3" in first
    assert "Stale" in second
    assert checkpoint.load_tensors(tmp_path / "run" / files.CHECKPOINT)[1]["step"] == 3


def test_many_bad_images_are_said_while_a_run_goes_on(images: Path, tmp_path: Path, capsys):
    for path in sorted(images.rglob("*.png")):
        (tmp_path / "some" / path.parent.name).mkdir(parents=True, exist_ok=True)
        whole = int(path.stem) >= 30
        (tmp_path / "some" / path.parent.name / path.name).write_bytes(path.read_bytes() if whole else b"none")
    for memory in (0, 1):
        pretrain(tmp_path / "some", tmp_path / f"run{memory}", **{"data.memory_gb": memory, "data.holdout": 0})
        said = capsys.readouterr().err
        assert said.count("could not be used so far, such as") == 1
        assert not memory or "30 images could not be used so far" in said


def test_canvases_of_another_size_are_said(images: Path, tmp_path: Path, capsys):
    for size, warned in ((32, 0), (48, 1)):
        canvases = mv.prepare(images, tmp_path / f"canvases{size}", size)
        pretrain(canvases, tmp_path / f"run{size}", **{"data.holdout": 0})
        assert capsys.readouterr().err.count("--canvas 32") == warned


def test_a_tracker_that_fails_is_left_behind(images: Path, tmp_path: Path, monkeypatch, capsys):
    from manyviews.engine import log

    def down(numbers, step):
        raise ConnectionError("no route to the server")

    monkeypatch.setitem(log._LOGGERS, "tensorboard", lambda folder, step: (down, lambda: None))
    run = pretrain(images, tmp_path / "run", **{"monitor.loggers": "tensorboard"})
    assert run.summary is not None and len([r for r in run.log if "loss" in r]) > 2
    assert capsys.readouterr().err.count("tensorboard is told nothing more of this run") == 1


def test_images_in_memory_train_and_must_be_given_again(tmp_path: Path):
    run = mv.pretrain(noise(64), "simclr_tiny", out=tmp_path / "run", settings=SETTINGS, epochs=1)
    assert run.summary is not None
    with pytest.raises(mv.UserError, match="given in memory"):
        (run.folder / files.SUMMARY).unlink()
        run.resume()


def test_tensorboard_receives_the_numbers(images: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = pretrain(images, tmp_path / "run", **{"monitor.loggers": "tensorboard"})
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    logged = {e.step: e.value for e in events.Scalars("loss")}
    assert logged == pytest.approx({r["step"]: r["loss"] for r in run.log if "loss" in r}, rel=1e-5)


def test_any_seed_that_a_recipe_takes_can_be_trained_with(tmp_path: Path):
    run = mv.pretrain(noise(64), "simclr_tiny", out=tmp_path / "run", settings=SETTINGS | {"seed": 2**31 - 1}, epochs=1)
    assert run.summary is not None


def test_a_run_killed_between_its_last_step_and_its_end_is_completed(images: Path, tmp_path: Path):
    run = pretrain(images, tmp_path / "run")
    before = run.summary
    for name in (files.SUMMARY, files.ENCODER):
        (run.folder / name).unlink()
    (run.folder / f".{files.CHECKPOINT}.abcd").write_bytes(b"half a checkpoint")
    after = mv.resume(run.folder).summary
    assert after["last"] == before["last"]
    assert (run.folder / files.ENCODER).exists()
    assert not (run.folder / f".{files.CHECKPOINT}.abcd").exists()


def test_a_signal_that_is_passed_on_twice_counts_once(images: Path, tmp_path: Path, monkeypatch):
    """Launchers send to their processes what the whole group has received already."""
    from manyviews.engine import loop

    real = loop.backpropagate

    def twice(*args, **kwargs):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "backpropagate", twice)
    with pytest.raises(mv.engine.Stopped):
        pretrain(images, tmp_path / "run")


def test_weights_are_as_open_as_other_new_files(images: Path, tmp_path: Path):
    before = os.umask(0o077)
    try:
        run = pretrain(images, tmp_path / "run")
    finally:
        os.umask(before)
    assert (run.folder / files.ENCODER).stat().st_mode & 0o777 == 0o600
