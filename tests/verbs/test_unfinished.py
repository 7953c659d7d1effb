"""A run can be used before it is finished, and says that it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import manyviews as mv
from manyviews.errors import UserError

FEW = {"data.batch_size": 8, "data.holdout": 0.0, "monitor.epochs": 0}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("recipe", ["simclr_tiny", "dino_tiny"])
def test_an_unfinished_run_gives_the_encoder_of_its_last_checkpoint(recipe: str, images, tmp_path: Path, capfd):
    run = mv.pretrain(images, recipe, epochs=1, settings=FEW, out=tmp_path / "run")
    whole = run.encoder.state_dict()
    for name in ("encoder.safetensors", "summary.json"):
        (run.folder / name).unlink(missing_ok=True)
    found = mv.load(run.folder)
    assert found.note.startswith(f"The run in {run.folder} is not finished: its encoder is that of step 3 of 3; ")
    assert found.test_size == run.recipe.test_size and found.mean == tuple(run.recipe.data.mean)
    assert all(torch.equal(v, whole[k]) for k, v in found.encoder.state_dict().items())
    capfd.readouterr()
    mv.embed(run.folder, images, tmp_path / "f.npy")
    assert capfd.readouterr().err.count("is not finished") == 1
    (run.folder / "checkpoint.safetensors").unlink()
    with pytest.raises(UserError, match="not finished, and has no checkpoint yet"):
        mv.load(run.folder)


def test_a_finished_run_says_so_and_no_run_is_no_run(images, tmp_path: Path, capfd):
    run = mv.pretrain(images, "simclr_tiny", epochs=1, settings=FEW, out=tmp_path / "run")
    capfd.readouterr()
    mv.resume(run.folder, images)
    assert "is finished: for more epochs, give --epochs" in capfd.readouterr().err
    with pytest.raises(UserError, match="no run folder"):
        mv.Run(tmp_path / "nowhere")
