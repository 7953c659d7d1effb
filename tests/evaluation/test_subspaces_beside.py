"""What is looked at next to MAST's subspaces: another method's embedding, MAST-5's order, two maps."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.data import open_source
from manyviews.errors import UserError
from manyviews.evaluation.unlabeled import subspaces
from manyviews.evaluation.unlabeled.subspaces import analyze, correlation, diverse, invariances, order, pictured
from manyviews.methods import MAE, MAST, VICReg
from manyviews.reporting.subspaces import draw
from manyviews.views import MAST_15, Composed, Global

LOOK = {"test_size": 12, "mean": (0.5,) * 3, "std": (0.25,) * 3}
NAMES = [a.name for a in MAST_15]


def images(n: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng, labels = np.random.default_rng(0), np.arange(n) % 2
    pixels = np.array([[200, 60, 60], [60, 60, 200]])[labels][:, None, None] + rng.normal(0, 40, (n, 12, 12, 3))
    return pixels.clip(0, 255).astype(np.uint8), labels


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder("resnet18", stem="small", channels=(4, 4, 8, 8))


def test_another_method_is_one_subspace_of_all_dimensions(tmp_path):
    """Figure 7's upper row. Its strengths are those of MAST-5 if it does not compose its views."""
    method = VICReg(encoder(), view=Global(2, size=12), hidden_dim=16, output_dim=20)
    found = analyze(method, open_source(images()), **LOOK, swept=10)
    assert found["subspaces"] == found["order"] == ["all"] and found["masks"] == [[1.0] * 20]
    assert list(found["invariance"]) == ["color_jitter", "gaussian_blur", "resized_crop"]
    for sweep in found["invariance"].values():
        assert sweep["subspaces"][0] == pytest.approx(sweep["all"], abs=1e-6) and sweep["trace"] is None
        assert sweep["all"][0] == pytest.approx(1, abs=1e-3) and sweep["all"][-1] < 1
    assert found["uncertainty"] is None
    assert all(f.stat().st_size for f in draw(found, tmp_path))
    kinds = Composed(2, 12, augmentations=MAST_15[1:3])
    assert [a.name for a in subspaces.swept_of(VICReg(encoder(), view=kinds, hidden_dim=8, output_dim=8))] == [
        "gaussian_blur"
    ]


def test_methods_without_projections_are_refused():
    method = MAE(Encoder("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2))
    with pytest.raises(UserError, match="no projections"):
        invariances(method, open_source(images()), test_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_fifteen_are_ordered_as_in_figure_4_from_the_five_on():
    alike = correlation(torch.rand(30, 15))
    found = order(NAMES, alike)
    assert found[:5] == NAMES[:5] and sorted(found) == sorted(NAMES)
    assert found == [NAMES[k] for k in diverse(alike, range(5))]
    assert order(NAMES[:5], alike[:5, :5]) == [NAMES[k] for k in diverse(alike[:5, :5])]  # among themselves


def test_two_subspaces_are_mapped():
    method = MAST(encoder(), view=Composed(2, 12), hidden_dim=16, output_dim=20)
    seen = []

    def lay_out(x: torch.Tensor) -> tuple[np.ndarray, str]:
        seen.append(x)
        return x[:, :2].numpy(), "first two"

    found = analyze(method, open_source(images()), **LOOK, swept=4, lay_out=lay_out, mapped=20)["maps"]
    assert found["subspaces"] == ["resized_crop", "grayscale"] and found["algorithm"] == "first two"
    assert np.array(found["positions"]).shape == (2, 20, 2) and len(found["labels"]) == 20
    masks = method.masks().detach()
    for x, k in zip(seen, (4, 3), strict=True):
        assert torch.equal(x != 0, (masks[:, k] > 0).expand(20, -1))
    alike = torch.tensor([[1, 0.9, 0.3], [0.9, 1, 0.1], [0.3, 0.1, 1]])
    assert pictured(["a", "b", "c"], alike) == [1, 2] and pictured(["all"], alike[:1, :1]) == [0]


def test_a_baselines_invariance_stands_next_to_the_subspaces(tmp_path, monkeypatch):
    flat = lambda x: (x[:, :2].numpy(), "first two")  # noqa: E731 (t-SNE and UMAP take seconds)
    monkeypatch.setattr(importlib.import_module("manyviews.verbs.subspaces"), "lay_out", flat)
    small = {"method.hidden_dim": 16, "method.output_dim": 20, "data.holdout": 0.0, "monitor.epochs": 0.0}
    for name in ("mast", "vicreg"):
        mv.pretrain(images(), f"{name}_tiny", epochs=1, settings=small, out=tmp_path / name)
    found = mv.subspaces(tmp_path / "mast", images(), tmp_path / "both", baseline=tmp_path / "vicreg")
    alone = mv.subspaces(tmp_path / "vicreg", images(), tmp_path / "alone")
    for name, sweep in found["invariance"].items():
        assert sweep["baseline"] == pytest.approx(alone["invariance"][name]["all"], abs=1e-6)
        assert "baseline" not in alone["invariance"][name]
    assert json.loads((tmp_path / "both" / "subspaces.json").read_text()) == found
    assert {"maps.png", "invariance.png"} <= {f.name for f in (tmp_path / "both").iterdir()}
