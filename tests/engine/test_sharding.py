"""Runs over several processes whose weights are spread, or whose loss breaks on one: the loss curve of one process."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manyviews as mv
from manyviews import checkpoint, distributed
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

RECOMPUTED = ("dino_tiny", "mae_tiny")  # a ResNet and a transformer


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
    for recipe in RECOMPUTED:
        pretrain(folder / recipe / "recomputed", recipe, **{"step.shard": True, "step.recompute_blocks": True})


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
        for name in ("on one", "on four", "damaged"):
            shutil.copytree(run.path, tmp_path / recipe / name)
        shard = tmp_path / recipe / "damaged" / facts["shards"]["folder"] / next(iter(facts["shards"]["files"]))
        content = bytearray(shard.read_bytes())
        content[-3] ^= 4
        shard.write_bytes(content)
        with pytest.raises(mv.UserError, match=f"{shard.name} is damaged"):
            mv.resume(shard.parents[1], data=images())
    resumed(tmp_path, "on one")
    on_ranks(resumed, tmp_path, "on four", world=4)
    for recipe in CASES:
        one = curve(tmp_path / recipe / "one")
        for name in ("two", "on one", "on four", *(("recomputed",) if recipe in RECOMPUTED else ())):
            np.testing.assert_allclose(curve(tmp_path / recipe / name), one, rtol=1e-5, err_msg=f"{recipe} {name}")


def breaking(folder: Path) -> None:
    """A run whose third batch has a loss that is not a number, on the last rank alone."""
    real, calls = loop.backpropagate, []

    def backpropagate(method: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) != 3 or distributed.rank() + 1 < distributed.world_size():
            return real(method, *args, **kwargs)
        sound = method.loss
        method.loss = lambda *a: ({k: v * math.nan for k, v in terms.items()} for terms in sound(*a))
        try:
            return real(method, *args, **kwargs)
        finally:
            del method.loss

    loop.backpropagate = backpropagate
    try:
        pretrain(folder, "dino_tiny", **{"step.not_finite": "rollback"})
    finally:
        loop.backpropagate = real


def test_ranks_go_back_together_from_a_loss_that_broke_on_one(tmp_path: Path) -> None:
    """A rank that goes on alone waits forever, and one that leaves out another batch has other weights."""
    breaking(tmp_path / "one")
    on_ranks(breaking, tmp_path / "two")
    one, two = mv.Run(tmp_path / "one"), mv.Run(tmp_path / "two")
    assert one.summary is not None and two.summary is not None
    assert one.summary["left_out"] == two.summary["left_out"] == [1, 2]  # of 0 to 4
    steps, losses = zip(*((row["step"], row["loss"]) for row in one.log if "loss" in row), strict=True)
    again, found = zip(*((row["step"], row["loss"]) for row in two.log if "loss" in row), strict=True)
    assert steps == again == (1, 4, 5)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    named = [json.loads((tmp_path / name / "suspects.json").read_text())[0]["images"] for name in ("one", "two")]
    assert sorted(named[0]) == sorted(named[1]) and len(set(named[0])) == 16
