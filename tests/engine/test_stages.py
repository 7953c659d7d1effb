"""Stages: parts of one run with settings of their own."""

import os
import shutil
import signal

import numpy as np
import pytest
import torch

import manyviews as mv
from manyviews import checkpoint
from manyviews.adaptation import Full, LastBlocks, Warmed
from manyviews.engine import Stopped, loop
from manyviews.engine.folder import CHECKPOINT, PREVIOUS, SUMMARY
from manyviews.errors import UserError
from manyviews.recipes import get
from manyviews.schedules import WarmupCosine
from manyviews.settings import Stage, from_json, override, parts, to_json


@pytest.fixture(autouse=True, scope="module")
def _brief():
    """No pictures, and no steps to measure the pace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manyviews.verbs.pretrain.draw_views", lambda *args: None)
        patch.setattr("manyviews.verbs.pretrain.plots.training", lambda *args: [])
        patch.setattr("manyviews.verbs.pretrain.measure", lambda *args: None)
        yield


PIXELS = np.random.default_rng(0).integers(0, 256, (48, 40, 40, 3), dtype=np.uint8)
SETTINGS = {"data.batch_size": 16, "monitor.steps": 1, "monitor.epochs": 0, "data.holdout": 0.4}
LARGER = Stage(2, {"method.view.size": 40, "test_size": 40, "optimizer.lr": 1e-3, "data.batch_size": 8})


def pretrain(out, *stages, recipe="mae_tiny", **settings) -> mv.Run:
    given = SETTINGS | {"stages": stages} | settings
    return mv.pretrain(PIXELS, recipe, epochs=2, out=out, settings=given)


def tensors(run):
    return checkpoint.load_tensors(run.folder / CHECKPOINT)[0]


def test_parts_add_up_and_survive_json():
    text = "stages=Stage(3, {'method.view.size': 48, 'optimizer.schedule': WarmupCosine(warmup=1)}, 'fresh')"
    recipe = override(get("mae_tiny"), *text.split("=", 1))
    recipe = override(recipe, "stages", (*recipe.stages, Stage(1, {"optimizer.lr": 0.5})))
    assert from_json(to_json(recipe)) == recipe
    assert override(recipe, "stages.0.epochs", 4).stages[0].epochs == 4
    first, second, third = parts(recipe)
    assert (first.recipe.epochs, second.recipe.epochs, third.recipe.epochs) == (recipe.epochs, 3, 1)
    assert [p.recipe.method.settings["view"].size for p in (first, second, third)] == [32, 48, 48]
    assert second.recipe.optimizer.schedule == WarmupCosine(warmup=1) == third.recipe.optimizer.schedule
    assert (second.carried, third.carried, third.recipe.optimizer.lr) == (False, True, 0.5)
    assert len({p.recipe.seed for p in (first, second, third)}) == 3
    assert recipe.all_epochs == recipe.epochs + 4
    assert [p.recipe for p in parts(get("mae_tiny"))] == [get("mae_tiny")]
    waiting = override(override(recipe, "adaptation", Warmed(1, LastBlocks(1))), "stages", (Stage(1),))
    assert [p.recipe.adaptation for p in parts(waiting)] == [Warmed(1, LastBlocks(1)), LastBlocks(1)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> mv.Run:
    torch.manual_seed(0)
    return pretrain(tmp_path_factory.mktemp("whole") / "run", LARGER)


def test_a_run_in_stages_logs_them_and_ends_with_the_last_ones_settings(whole):
    rows = [row for row in whole.log if "loss" in row]
    per_epoch = [rows[0]["step"] / rows[0]["epoch"], 1 / (rows[-1]["epoch"] - rows[-2]["epoch"])]
    assert per_epoch[1] >= 2 * per_epoch[0] >= 2  # half the batch
    first = [row for row in rows if row["stage"] == 1]
    assert {row["stage"] for row in rows} == {1, 2} and rows[-1]["epoch"] == pytest.approx(4)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert whole.summary["steps"] == len(rows) and whole.summary["epochs"] == pytest.approx(4)
    assert first[-1]["epoch"] == pytest.approx(2)
    measured = [(row["step"], row["stage"]) for row in whole.log if "monitor/spread" in row]
    assert measured == [(0, 1), (len(first), 1), (len(first), 2), (len(rows), 2)]  # before and after the change of size
    assert mv.load(whole.folder).test_size == 40 and whole.method.views[0].size == 40


def interrupted(at: int):
    real, calls = loop.backpropagate, []

    def backpropagate(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    return backpropagate


@pytest.mark.parametrize("at", ["first", "border", "second"])
def test_it_resumes_to_the_same_bits_across_the_border(at, whole, tmp_path, monkeypatch):
    steps = [sum(row["stage"] == k for row in whole.log if "loss" in row) for k in (1, 2)]
    stop = {"first": 1, "border": steps[0], "second": steps[0] + 2}[at]
    monkeypatch.setattr(loop, "backpropagate", interrupted(stop))
    with pytest.raises(Stopped, match=rf"at step {stop} of .*stage {1 + (at == 'second')} of 2"):
        pretrain(tmp_path / "run", LARGER)
    monkeypatch.undo()
    if at == "second":
        unfinished = mv.load(tmp_path / "run")
        assert unfinished.test_size == 40 and "is not finished" in unfinished.note
    run = mv.resume(tmp_path / "run", PIXELS)
    found, expected = tensors(run), tensors(whole)
    assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)
    assert [(r["step"], r["stage"]) for r in run.log] == [(r["step"], r["stage"]) for r in whole.log]


def test_a_run_killed_in_its_second_stage_before_a_checkpoint_begins_that_stage_again(whole, tmp_path, monkeypatch):
    steps = sum(row["stage"] == 1 for row in whole.log if "loss" in row)
    real, calls = loop.backpropagate, []

    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) == steps + 2:
            raise RuntimeError("killed")
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "backpropagate", broken)
    with pytest.raises(RuntimeError, match="killed"):
        pretrain(tmp_path / "run", LARGER)
    monkeypatch.undo()
    run = mv.resume(tmp_path / "run", PIXELS)
    assert all(torch.equal(x, tensors(whole)[k]) for k, x in tensors(run).items())
    assert [(r["step"], r["stage"]) for r in run.log] == [(r["step"], r["stage"]) for r in whole.log]


@pytest.mark.parametrize("ended", ["before", "after"])
def test_a_run_killed_at_its_very_end_is_left_as_others_are(whole, tmp_path, ended):
    """It is killed before its summary is written, or after that, before the checkpoint before the last is removed."""
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    shutil.copy(folder / CHECKPOINT, folder / PREVIOUS)
    if ended == "before":
        (folder / SUMMARY).unlink()
    run = mv.resume(folder, PIXELS)
    assert run.summary["last"] == whole.summary["last"] and run.summary.keys() == whole.summary.keys()
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.folder.iterdir()}


def test_the_optimizer_is_carried_or_fresh(tmp_path):
    """With a rate of zero nothing moves in the second stage, whose steps only add to the optimizer's counts."""
    still = {"optimizer.lr": 0.0}
    counts = {}
    for how in ("carried", "fresh"):
        run = pretrain(tmp_path / how, Stage(1, still, how))
        found = tensors(run)
        counts[how] = {float(v) for k, v in found.items() if k.startswith("optimizer.") and k.endswith(".step")}
    assert counts == {"carried": {3.0}, "fresh": {1.0}}


def test_what_cannot_be_a_stage_is_refused_before_there_is_a_folder(tmp_path):
    for stage, words in (
        (Stage(1, {"backbone.depth": 3}), "Stage 2 cannot change backbone.depth"),
        (Stage(1, {"data.mean": (0.0,) * 3}), "Stage 2 cannot change data.mean"),
        (Stage(1, {"method.decoder_dim": 64}), "Stage 2 of 2 changes the shape of weights"),
        (Stage(1, {"optimizer.name": "sgd"}), 'give the stage optimizer="fresh"'),
        (Stage(1, {"adaptation": LastBlocks(1)}), 'give the stage optimizer="fresh"'),
        (Stage(1, {"method.view.size": 33}), "do not tile"),
        (Stage(1, {"optimizer.lrr": 1}), "optimizer.lrr"),
        (Stage(1, {"data.batch_size": 64}), "fewer than a batch of 64"),
    ):
        with pytest.raises(UserError, match=words):
            pretrain(tmp_path / "run", stage)
    with pytest.raises(UserError, match="A run in stages has epochs for each of them"):
        mv.pretrain(PIXELS, "mae_tiny", budget=60, settings={"stages": (Stage(1),)})
    assert not (tmp_path / "run").exists()


def test_frozen_first_then_everything_and_the_early_end(tmp_path, monkeypatch):
    """Adaptations may differ between stages; only the last one can be ended early; a longer run goes on from it."""
    stage = Stage(3, {"adaptation": Full()}, "fresh")
    monkeypatch.setattr(loop, "backpropagate", interrupted(1))
    with pytest.raises(Stopped):
        pretrain(tmp_path / "run", stage, adaptation="Frozen()")
    monkeypatch.undo()
    with pytest.raises(UserError, match="stages yet to come"):
        mv.finish(tmp_path / "run", 1, PIXELS)
    run = mv.resume(tmp_path / "run", PIXELS)
    fresh = mv.engine.build.build_method(run.recipe).kept_encoder.model.state_dict()
    assert any(not torch.equal(v, fresh[k]) for k, v in run.encoder.model.state_dict().items())
    longer = mv.resume(run.folder, PIXELS, epochs=1, out=tmp_path / "longer")
    assert longer.recipe.stages == () and longer.recipe.adaptation == Full()
