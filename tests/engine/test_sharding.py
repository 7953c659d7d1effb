"""Weights that are spread over processes: the loss curve of one process, and checkpoints for any number of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import manyviews as mv
from manyviews import checkpoint
from manyviews.engine import Stopped, loop
from manyviews.engine.folder import RunFolder
from manyviews.settings import Optimizer
from tests.ranks import on_ranks

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

SETTINGS = {
    **{"data.batch_size": 16, "data.holdout": 0, "monitor.steps": 1, "monitor.epochs": 0, "step.precision": "float32"},
    **{"epochs": 1},
}
CASES = {
    "dino_tiny": {"optimizer.lr": 3e-4, "optimizer.clip": 1.0, "adaptation": mv.adaptation.Full(layer_decay=0.8)},
    "mae_tiny": {"data.holdout": 0.3},  # and is measured
    "byol_tiny": {"optimizer": Optimizer("lars", lr=0.02, lr_scaling="constant", weight_decay=1e-4)},
}


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)


def pretrain(out: Path, recipe: str, stop: int = 0, **more: object) -> None:
    """A run that a signal stops in a step, if one is given."""
    real, calls = loop.backpropagate, []

    def backpropagate(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    loop.backpropagate = backpropagate
    try:
        mv.pretrain(images(), recipe, out=out, settings={**SETTINGS, **CASES[recipe], **more})
    except Stopped:
        assert stop
    finally:
        loop.backpropagate = real


def on_two(folder: Path) -> None:
    for recipe in CASES:
        pretrain(folder / recipe / "two", recipe, **{"step.shard": True})
        pretrain(folder / recipe / "stopped", recipe, stop=2, **{"step.shard": True})


def resumed(folder: Path, name: str) -> None:
    for recipe in CASES:
        mv.resume(folder / recipe / name, data=images())


def curve(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 1 + len([r for r in rows if "loss" in r])))
    return [row["loss"] for row in rows if "loss" in row]


def test_two_that_share_the_weights_have_the_curve_of_one_and_any_number_goes_on(tmp_path: Path) -> None:
    for recipe in CASES:
        pretrain(tmp_path / recipe / "one", recipe)
    on_ranks(on_two, tmp_path)
    for recipe in CASES:
        run = RunFolder(tmp_path / recipe / "stopped")
        facts = checkpoint.facts_of(run.checkpoint)
        assert facts["step"] == 2 and len(facts["shards"]["files"]) == 2
        assert not [p for p in run.path.rglob("*") if p.suffix == ".metadata" or p.name == ".metadata"]  # no pickle
        for name in ("on one", "on four"):
            shutil.copytree(run.path, tmp_path / recipe / name)
    resumed(tmp_path, "on one")
    on_ranks(resumed, tmp_path, "on four", world=4)
    for recipe in CASES:
        one = curve(tmp_path / recipe / "one")
        for name in ("two", "on one", "on four"):
            found = curve(tmp_path / recipe / name)
            print(recipe, name, max(abs(a - b) / abs(a) for a, b in zip(one, found, strict=True)))
    for recipe in CASES:
        one = curve(tmp_path / recipe / "one")
        for name in ("two", "on one", "on four"):
            np.testing.assert_allclose(curve(tmp_path / recipe / name), one, rtol=1e-5, err_msg=f"{recipe} {name}")
