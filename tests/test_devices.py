"""Devices other than NVIDIA's. There are none here, so an Apple GPU is played by the processor: see `pretend`."""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import manyviews as mv
from manyviews import distributed, evaluation, machine
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.engine.build import build_method
from manyviews.engine.step import backpropagate
from manyviews.evaluation.corrupt import corrupt
from manyviews.recipes import get
from manyviews.types import Progress
from manyviews.views import Views
from tests.methods.conftest import canvases
from tests.pretend import MPS, There, apple

LABELS = np.arange(60) % 2
IMAGES = (
    np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    >> LABELS.astype(np.uint8)[:, None, None, None]
)
AT = Progress(0, 10, 5)


def test_pretraining_runs_on_an_apple_gpu_and_says_what_it_lacks(tmp_path: Path, monkeypatch, capsys):
    settings = {"data.batch_size": 16, "data.holdout": 0.3, "monitor.epochs": 0, "step.precision": "float32"}
    with apple(monkeypatch):
        run = mv.pretrain((IMAGES, LABELS), "byol_tiny", out=tmp_path / "run", epochs=0.5, settings=settings)
    assert run.summary["device"] == "mps" and np.isfinite(run.summary["last"]["loss"])
    said = capsys.readouterr().err
    assert "no float64" in said and "PYTORCH_ENABLE_MPS_FALLBACK=1" in said and "not tested" in said
    assert run.encoder(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("name", ["simclr", "dino", "ijepa"])  # ResNets and transformers, colors, blocks of patches
def test_a_step_on_an_apple_gpu_is_that_on_the_processor(name: str, monkeypatch):
    """Draws are of 64 bits and boxes of float64, wherever they are made."""
    batch, built = canvases(4), build_method(get(f"{name}_tiny")).train()

    def gradient(device: str) -> dict[str, Tensor]:
        method = copy.deepcopy(built).to(device)
        part = partial(Views, batch.to(device), method.views, progress=AT.progress)
        backpropagate(method, [part], AT, device=torch.device(device))
        return {k: p.grad.cpu() for k, p in method.named_parameters() if p.grad is not None}

    here = gradient("cpu")
    with apple(monkeypatch):
        there = gradient("mps")
    for word, g in here.items():
        torch.testing.assert_close(there[word], g, rtol=0.01, atol=1e-3 * max(1.0, g.abs().max().item()))


def test_evaluation_on_an_apple_gpu_is_that_on_the_processor(monkeypatch):
    """With protocols that count, rank, draw and learn on the device."""
    names = ["knn", "knn_majority", "logistic", "retrieval", "copy_detection"]
    encoder = Encoder("resnet10t", pretrained=False)

    def report(device: str) -> evaluation.Report:
        source = open_source((IMAGES, LABELS))
        look = {"test_size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        return evaluation.evaluate(encoder, source, protocols=names, device=device, baselines=False, **look)

    here = report("cpu").representations["trained"]
    with apple(monkeypatch):
        there = report("mps").representations["trained"]
    for name in here.scores:
        assert there.scores[name].top1 == here.scores[name].top1
    for name in here.measures:
        assert there.measures[name].value == pytest.approx(here.measures[name].value, abs=1e-6)


@pytest.mark.parametrize("kind", ["shot_noise", "snow", "elastic"])  # which need float64
def test_corruptions_on_an_apple_gpu_are_those_on_the_processor(kind: str, monkeypatch):
    pixels = torch.from_numpy(IMAGES[:4]).permute(0, 3, 1, 2)
    here = corrupt(pixels, kind, 3)
    with apple(monkeypatch):
        there = corrupt(There(pixels), kind, 3)
        assert there.device == MPS and torch.equal(there.cpu(), here)


def test_the_device_is_the_one_that_is_there_or_that_is_asked_for(monkeypatch):
    here = {"xpu", "mps", "cpu"}
    monkeypatch.setattr(machine, "available", lambda kind: kind in here)
    monkeypatch.delenv(machine.DEVICE, raising=False)
    assert machine.device() == torch.device("xpu")
    here.remove("xpu")
    assert machine.device() == MPS and machine.exact(MPS) == torch.device("cpu")
    monkeypatch.setenv(machine.DEVICE, "cpu")
    assert machine.device() == torch.device("cpu") == machine.exact("cpu")
    for word, says in (("mpx", "Did you mean 'mps'"), ("cuda", "sees no device 'cuda' here, only mps, cpu")):
        monkeypatch.setenv(machine.DEVICE, word)
        with pytest.raises(mv.UserError, match=says):
            machine.device()


def test_processes_on_one_apple_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(machine, "available", lambda kind: kind in ("mps", "cpu"))
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(mv.UserError, match="cannot connect processes on Apple's GPU"):
        distributed.start()
