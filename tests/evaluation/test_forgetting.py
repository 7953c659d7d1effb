"""What is kept of the weights that a run started from: closed forms, and the numbers of a run."""

import numpy as np
import pytest
import torch
from torch import Tensor

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.engine import monitor
from manyviews.evaluation.unlabeled.kept import cosine, layers, linear_cka, moved
from manyviews.reporting import summary
from manyviews.reporting.page import gather


@pytest.fixture(autouse=True, scope="module")
def _brief():
    """No pictures, and no steps to measure the pace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manyviews.verbs.pretrain.draw_views", lambda *args: None)
        patch.setattr("manyviews.verbs.pretrain.plots.training", lambda *args: [])
        patch.setattr("manyviews.verbs.pretrain.measure", lambda *args: None)
        yield


def hsic_cka(a: Tensor, b: Tensor) -> float:
    """Kornblith et al. 2019, equations 1 and 2, by traces of doubly centered kernels, sum by sum."""
    n = len(a)
    center = np.eye(n) - np.ones((n, n)) / n
    k, m = ((x.double().numpy() @ x.double().numpy().T) for x in (a, b))

    def hsic(p, q):
        p, q = center @ p @ center, center @ q @ center
        return sum(p[i, j] * q[j, i] for i in range(n) for j in range(n)) / (n - 1) ** 2

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize(("n", "d", "e"), [(12, 5, 7), (12, 40, 7), (30, 4, 4)])
def test_cka_is_that_of_the_paper_and_does_not_see_rotation_scale_and_shift(n, d, e):
    a = torch.randn(n, d)
    b = a @ torch.randn(d, e) + 0.5 * torch.randn(n, e) + 3
    assert linear_cka(a, b) == pytest.approx(hsic_cka(a, b), abs=1e-9)
    assert linear_cka(a, b) == pytest.approx(linear_cka(b, a))
    rotation, _ = torch.linalg.qr(torch.randn(e, e).double())
    assert linear_cka(a, b.double() @ rotation * 0.1 - 7) == pytest.approx(linear_cka(a, b), abs=1e-9)
    assert linear_cka(a, a) == pytest.approx(1, abs=1e-12)
    stretched = a.clone()
    stretched[:, 0] *= 100  # no rotation: it sees that one dimension takes over
    assert linear_cka(a, stretched) < 0.9
    assert linear_cka(torch.ones(n, d), torch.zeros(n, e)) == 1 and linear_cka(torch.ones(n, d), a) == 0


def test_cka_of_two_dimensions_with_known_angle():
    """One feature each: CKA is the squared correlation."""
    a, b = torch.randn(50, 1), torch.randn(50, 1)
    r = np.corrcoef(a[:, 0], b[:, 0])[0, 1]
    assert linear_cka(a, b) == pytest.approx(r**2, abs=1e-6)
    assert cosine(a, -a) == pytest.approx(-1) and cosine(a, 3 * a) == pytest.approx(1)


def test_moved_is_the_relative_distance_of_each_layer_and_of_all():
    before = {"stem.weight": torch.tensor([3.0, 4.0]), "blocks.1.w": torch.tensor([[0.0, 12.0]])}
    before |= {"blocks.1.bn.running_mean": torch.ones(2), "blocks.1.bn.num_batches_tracked": torch.tensor(1)}
    now = {k: v.clone() for k, v in before.items()}
    assert set(moved(before, now).values()) == {0.0}
    now["stem.weight"] += torch.tensor([0.0, 1.0])
    now["blocks.1.bn.running_mean"] += 5
    assert moved(before, now) == pytest.approx({"": 1 / 13, "stem": 0.2, "blocks.1": 0.0})


def test_layers_of_a_transformer_and_of_a_network_of_convolutions():
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    for encoder in (
        Encoder("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2),
        Encoder("resnet18", layers=(1, 1, 1, 1), channels=(4, 4, 8, 8)),
    ):
        found = layers(encoder, pixels, mean=(0.5,) * 3, std=(0.5,) * 3, batch_size=2)
        assert list(found) == ["", *encoder.layer_names]
        encoder.eval()
        torch.testing.assert_close(found[""], encoder((pixels / 255 - 0.5) / 0.5))
        assert all(len(x) == 5 and x.ndim == 2 for x in found.values())


def blocks(n: int, seed: int = 0) -> np.ndarray:
    """Pictures of four large blocks."""
    colors = np.random.default_rng(seed).uniform(0, 255, (n, 2, 2, 3))
    return colors.repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8)


def test_a_run_from_weights_measures_what_it_keeps(tmp_path, monkeypatch):
    """Nothing is lost before the first step, and the last row says what the encoder's file does."""
    settings = {"monitor.epochs": 1, "data.holdout": 0.25, "data.batch_size": 16, "step.precision": "float32"}
    first = mv.pretrain(blocks(80), "dino_tiny", epochs=1, out=tmp_path / "first", settings=settings)
    old = mv.data.open_source(blocks(64, seed=3), labels=np.arange(64) % 2)
    settings |= {"optimizer.lr": 3e-3}
    run = mv.pretrain(
        blocks(80, 1), "simclr_tiny", epochs=2, init=first.folder, out=tmp_path / "run", settings=settings, old=old
    )
    rows = monitor.measurements(run.log)
    start, end = rows[0], rows[-1]
    likeness = {k: v for k, v in start.items() if k.startswith("cka")} | {"cosine": start["cosine"]}
    assert likeness and all(v == pytest.approx(1, abs=1e-5) for v in likeness.values())
    assert {v for k, v in start.items() if k.startswith("moved")} == {0.0}
    assert 0 < end["moved"] < 1 and 0 < end["cka"] < 1 and 0 <= end["old_knn"] <= 1
    names = run.encoder.layer_names
    assert {f"cka/{name}" for name in names} <= set(end)
    before = mv.load(run.folder / "start.safetensors").encoder.model.state_dict()
    assert end["moved"] == pytest.approx(moved(before, run.encoder.model.state_dict())[""])
    words = summary.kept(run.log)
    assert f"CKA {end['cka']:.2f}" in words and "k-NN on the old images went from" in words
    charts = {chart["id"]: chart for chart in gather.curves([run])}
    assert {"monitor/cka", "monitor/moved", "monitor/old_knn"} <= set(charts)
    assert [line["layer"] for line in charts["monitor/cka/"]["lines"]] == list(names)
    assert summary.kept(first.log) is None and "monitor/cka" not in first.log[-1]
